"""Inspection of a text that arrives in pieces, such that the pieces make no difference.

The text so far is scanned from the last released character on. Everything before `Scan.stable` can no longer change,
whatever comes: it is edited and released. The rest is held. Three facts make the result independent of how the text is
cut. The stable offset never lies inside a candidate of any detector, so that scanning from there on finds what scanning
from the beginning would. It depends on the text so far alone: a match that can still change could at every earlier
moment, so no earlier release can have passed it. And the hold-back limit is judged at fixed offsets of the text only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from shared.inspection.findings import HOLD_BACK, Action, Finding
from shared.inspection.redaction import GROWING_SURROGATE, SURROGATE, Surrogates, groups, replacement
from shared.inspection.rules import SCAN_SECONDS
from shared.inspection.scanner import START, Scan, Scanner

_STEP = 256
# Below this many held characters every piece is looked at as it comes.
_EAGER = 512


@dataclass(frozen=True, kw_only=True)
class Released:
    """Text that may go out, the findings acted on in it, and the finding that ended the stream, if one did.

    Offsets are those of the text as it was fed.
    """

    text: str
    findings: tuple[tuple[Finding, Action], ...]
    cut: Finding | None


class StreamInspector:
    """Inspects one text. To release only when all was inspected, feed it all and take `finish`."""

    def __init__(
        self,
        scanner: Scanner,
        actions: Mapping[str, Action],
        *,
        surrogates: Surrogates | None = None,
        restore: bool = False,
        max_held: int = 8192,
    ) -> None:
        """Act on findings by `actions`; a kind it lacks cuts. `restore` puts back what `surrogates` issued.

        At most `max_held` characters (and one step of 256) are held back; more cuts the stream.
        """
        self._scanner = scanner
        self._actions = actions
        self._surrogates = surrogates if restore else None
        self._max_held = max_held
        self._behind = START
        self._buffer = ""
        self._offset = 0
        self._cut: Finding | None = None
        self._finished = False

    def feed(self, chunk: str) -> Released:
        """Take the next piece and return what it makes certain. After a cut nothing is ever released."""
        if self._finished:
            raise ValueError("nothing may be fed after the end")
        text: list[str] = []
        findings: list[tuple[Finding, Action]] = []
        position = 0
        while position < len(chunk) and self._cut is None:
            room = _STEP - (self._offset + len(self._buffer)) % _STEP
            self._buffer += chunk[position : position + room]
            position += room
            if len(self._buffer) > _EAGER and (self._offset + len(self._buffer)) % _STEP:
                # What is held is read again each time: a long hold is looked at once a step, or a model that emits
                # an endless run would cost the square of its length. When text is looked at changes no result.
                continue
            released = self._advance(final=False)
            text.append(released.text)
            findings.extend(released.findings)
        return Released(text="".join(text), findings=tuple(findings), cut=self._cut)

    def finish(self, text: str = "") -> Released:
        """Return the rest, `text` the last of it; nothing may be fed afterwards."""
        first = Released(text="", findings=(), cut=self._cut)
        if len(self._buffer) + len(text) > self._max_held:
            first = self.feed(text)
        else:  # what cannot be too much to hold need not be looked at before it is whole
            self._buffer += text
        if self._cut is not None or self._finished:
            return dataclasses.replace(first, cut=self._cut)
        self._finished = True
        last = self._advance(final=True)
        return Released(text=first.text + last.text, findings=first.findings + last.findings, cut=last.cut)

    def _advance(self, *, final: bool) -> Released:
        # Until this step has ended well the stream counts as cut: no fault lets a later one release anything.
        self._cut = Finding(kind=HOLD_BACK, detector="fault", start=self._offset, end=self._offset)
        try:
            surrogates, open_surrogate = self._issued(final)
            scan = self._scanner.examine(
                self._buffer, behind=self._behind, final=final, keep=surrogates, before=open_surrogate
            )
        except TimeoutError:
            self._buffer = ""
            self._cut = dataclasses.replace(self._cut, detector="time")
            return Released(text="", findings=(), cut=self._cut)
        released = self._edit(scan, surrogates)
        self._behind = self._behind.then(self._buffer[: scan.stable])
        self._buffer = self._buffer[scan.stable :]
        self._offset += scan.stable
        self._cut = released.cut
        at_step = (self._offset + len(self._buffer)) % _STEP == 0
        if self._cut is None and at_step and not final and len(self._buffer) > self._max_held:
            self._cut = Finding(kind=HOLD_BACK, detector="held", start=self._offset, end=self._offset)
        if self._cut is not None:
            self._buffer = ""
        return dataclasses.replace(released, cut=self._cut)

    def _edit(self, scan: Scan, surrogates: list[tuple[int, int]]) -> Released:
        """Return the buffer up to the stable offset after its obligations."""
        # Nothing is made of what merely looks like something inside a surrogate of this call.
        findings = [
            item
            for item in scan.findings
            if not any(first <= item.start and item.end <= last for first, last in surrogates)
        ]
        parts: list[str] = []
        done: list[tuple[Finding, Action]] = []
        position = 0
        for group in groups(findings, self._actions):
            if group.action is Action.BLOCK:
                parts.append(self._restored(position, group.start, surrogates))
                return Released(text="".join(parts), findings=tuple(done), cut=self._shifted(group.leading))
            done.extend((self._shifted(item), action) for item, action in group.members)
            if group.action is Action.PASS:
                continue
            parts.append(self._restored(position, group.start, surrogates))
            # What the answer repeats has its own placeholder: it was not this call's to tokenise.
            parts.append(replacement(group, self._buffer[group.start : group.end], None))
            position = group.end
        parts.append(self._restored(position, scan.stable, surrogates))
        return Released(text="".join(parts), findings=tuple(done), cut=None)

    def _issued(self, final: bool) -> tuple[list[tuple[int, int]], int]:
        """Return the spans of surrogates of this call in the buffer, and where one may still be arriving."""
        if self._surrogates is None:
            return [], len(self._buffer)
        spans = [
            match.span()
            for match in SURROGATE.finditer(self._buffer)
            if self._surrogates.value(match.group()) is not None
        ]
        if final:
            return spans, len(self._buffer)
        growing = GROWING_SURROGATE.search(self._buffer, partial=True, timeout=SCAN_SECONDS)
        return spans, len(self._buffer) if growing is None else growing.start()

    def _restored(self, start: int, end: int, surrogates: list[tuple[int, int]]) -> str:
        """Return buffer text that no finding edits, with this call's surrogates put back."""
        parts: list[str] = []
        for first, last in surrogates:
            if self._surrogates is not None and start <= first and last <= end:
                parts.append(self._buffer[start:first])
                parts.append(self._surrogates.value(self._buffer[first:last]) or "")
                start = last
        parts.append(self._buffer[start:end])
        return "".join(parts)

    def _shifted(self, finding: Finding) -> Finding:
        return dataclasses.replace(finding, start=finding.start + self._offset, end=finding.end + self._offset)

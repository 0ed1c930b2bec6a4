"""Inspection of a text that arrives in pieces, such that the pieces make no difference.

The text so far is scanned from the last released character on. Everything before `Scan.stable` can no longer change,
whatever comes: it is edited and released. The rest is held. Two facts make the result independent of how the text is
cut: the stable offset never lies inside a span that a detector considered, so that scanning from there on finds what
scanning from the beginning would; and the hold-back limit is judged at fixed offsets of the text only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.inspection.findings import HOLD_BACK, Action, Finding
from shared.inspection.redaction import GROWING_SURROGATE, SURROGATE, Surrogates, groups, replacement
from shared.inspection.scanner import MATCH_SECONDS, Scanner

# Look-behinds see one character, and the longest of the rules' none beyond a line's start.
_CONTEXT = 8
_STEP = 256


@dataclass(frozen=True, kw_only=True)
class Released:
    """Text that may go out, the findings acted on in it, and the finding that ended the stream, if one did."""

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
        self._surrogates = surrogates
        self._restore = restore
        self._max_held = max_held
        self._buffer = ""
        self._begin = 0
        self._offset = 0
        self._cut: Finding | None = None

    def feed(self, chunk: str) -> Released:
        """Take the next piece and return what it makes certain. After a cut nothing is ever released."""
        text: list[str] = []
        findings: list[tuple[Finding, Action]] = []
        while chunk and self._cut is None:
            arrived = self._offset + len(self._buffer)
            room = _STEP - arrived % _STEP
            self._buffer += chunk[:room]
            chunk = chunk[room:]
            at_step = (self._offset + len(self._buffer)) % _STEP == 0
            if chunk and not at_step:
                continue
            released = self._advance(final=False, judge=at_step)
            text.append(released.text)
            findings.extend(released.findings)
        return Released(text="".join(text), findings=tuple(findings), cut=self._cut)

    def finish(self) -> Released:
        """Return the rest; nothing may be fed afterwards."""
        if self._cut is not None:
            return Released(text="", findings=(), cut=self._cut)
        return self._advance(final=True, judge=False)

    def _advance(self, *, final: bool, judge: bool) -> Released:
        try:
            scan = self._scanner.examine(self._buffer, begin=self._begin, final=final)
            surrogates, open_surrogate = self._issued(final)
        except TimeoutError:
            return self._end("", (), Finding(kind=HOLD_BACK, detector="time", start=0, end=0))
        stable = min(scan.stable, open_surrogate)
        for start, end in (*scan.spans, *surrogates):
            if start < stable < end:
                stable = min(stable, start)
        findings = [
            item
            for item in scan.findings
            if item.end <= stable and not any(start <= item.start and item.end <= end for start, end in surrogates)
        ]
        parts: list[str] = []
        done: list[tuple[Finding, Action]] = []
        position = self._begin
        for group in groups(findings, self._actions):
            if group.action is Action.BLOCK:
                parts.append(self._plain(position, group.start, surrogates))
                return self._end("".join(parts), tuple(done), self._shifted(group.leading))
            done.extend((self._shifted(item), action) for item, action in group.members)
            if group.action is Action.PASS:
                continue
            parts.append(self._plain(position, group.start, surrogates))
            # What the answer repeats has its own placeholder: it was not this call's to tokenise.
            parts.append(replacement(group, self._buffer[group.start : group.end], None))
            position = group.end
        parts.append(self._plain(position, max(stable, position), surrogates))
        self._drop(max(stable, position))
        if judge and len(self._buffer) - self._begin > self._max_held:
            return self._end("".join(parts), tuple(done), Finding(kind=HOLD_BACK, detector="held", start=0, end=0))
        return Released(text="".join(parts), findings=tuple(done), cut=None)

    def _issued(self, final: bool) -> tuple[list[tuple[int, int]], int]:
        """Return the spans of surrogates of this call in the buffer, and where one may still be arriving."""
        if self._surrogates is None or not self._restore:
            return [], len(self._buffer)
        spans = [
            match.span()
            for match in SURROGATE.finditer(self._buffer, pos=self._begin)
            if self._surrogates.value(match.group()) is not None
        ]
        if final:
            return spans, len(self._buffer)
        growing = GROWING_SURROGATE.search(self._buffer, pos=self._begin, partial=True, timeout=MATCH_SECONDS)
        return spans, len(self._buffer) if growing is None else growing.start()

    def _plain(self, start: int, end: int, surrogates: list[tuple[int, int]]) -> str:
        """Return buffer text that no finding covers, with this call's surrogates put back."""
        if self._surrogates is None:
            return self._buffer[start:end]
        parts: list[str] = []
        for first, last in surrogates:
            if start <= first and last <= end:
                parts.append(self._buffer[start:first])
                parts.append(self._surrogates.value(self._buffer[first:last]) or "")
                start = last
        parts.append(self._buffer[start:end])
        return "".join(parts)

    def _drop(self, position: int) -> None:
        """Forget what was released, but for the few characters that look-behinds see."""
        kept = max(0, position - _CONTEXT)
        self._buffer = self._buffer[kept:]
        self._offset += kept
        self._begin = position - kept

    def _shifted(self, finding: Finding) -> Finding:
        return Finding(
            kind=finding.kind,
            detector=finding.detector,
            start=finding.start + self._offset,
            end=finding.end + self._offset,
            score=finding.score,
            label=finding.label,
        )

    def _end(self, text: str, findings: tuple[tuple[Finding, Action], ...], cut: Finding) -> Released:
        self._cut = cut
        self._buffer = ""
        return Released(text=text, findings=findings, cut=cut)

"""Inspection of a text that arrives in pieces, such that the pieces make no difference.

Everything before the offset that `Reading.settle` names can no longer change, whatever comes: it is edited and
released. The rest is held. That offset depends on the text so far only, not on how it was cut, and the hold-back
limit is judged at fixed offsets of the text. One chunk runs through the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shared.inspection.findings import HOLD_BACK, Action, Finding
from shared.inspection.redaction import action_of, edits
from shared.inspection.rules import Rule, where
from shared.inspection.scanner import Reading, Scanner
from shared.inspection.surrogates import SURROGATE_PATTERN, Surrogates

_SURROGATE = "SURROGATE"
_STEP = 256


@dataclass(frozen=True, kw_only=True)
class Released:
    """Text that may go out, the findings in it with what was done about each, and what ended the stream, if it did.

    Findings have the offsets of the text as it was fed.
    """

    text: str
    findings: tuple[tuple[Finding, Action], ...]
    cut: Finding | None


class StreamInspector:
    """Inspects one text. To release only when all was inspected (BUFFERED), feed it all and then take `finish`."""

    def __init__(
        self,
        scanner: Scanner,
        actions: Mapping[str, Action],
        *,
        surrogates: Surrogates | None = None,
        restore: bool = False,
        max_held: int = 8192,
    ) -> None:
        """Act on findings by `actions`; a kind it lacks cuts, and TOKENISE does as REDACT.

        `restore` puts back what `surrogates` issued; nothing looks into a surrogate or into what it stands for.
        Never are more than `max_held` characters held back: a text that would need it is cut.
        """
        if max_held < 8:
            raise ValueError("max_held is at least 8 characters")
        self._actions = actions
        self._restore: Callable[[str], str | None] = surrogates.value if surrogates and restore else lambda _: None
        detectors = scanner.detectors
        if surrogates is not None:
            issued = where(lambda text: surrogates.value(text) is not None)
            rule = Rule(name="surrogate", kind=_SURROGATE, pattern=SURROGATE_PATTERN, locate=issued, needs=(":",))
            detectors = (*detectors, rule)
        self._reading = Reading(detectors)
        self._max_held = max_held
        self._step = min(_STEP, max_held // 8)
        self._cut: Finding | None = None
        self._finished = False

    def feed(self, chunk: str) -> Released:
        """Take the next piece and return what it makes certain. After a cut nothing is ever released."""
        if self._finished:
            raise ValueError("nothing may be fed after the end")
        released: list[Released] = []
        while chunk and self._cut is None:
            room = self._step - self._reading.end % self._step
            self._reading.append(chunk[:room])
            released.append(self._advance(final=False))
            chunk = chunk[room:]
        return Released(
            text="".join(item.text for item in released),
            findings=tuple(finding for item in released for finding in item.findings),
            cut=self._cut,
        )

    def finish(self) -> Released:
        """Return the rest; nothing may be fed afterwards."""
        if self._finished or self._cut is not None:
            return Released(text="", findings=(), cut=self._cut)
        self._finished = True
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> Released:
        # Until this step ends well the stream counts as cut, so that no fault can let a later one release anything.
        reading = self._reading
        start = reading.taken
        self._cut = Finding(start=start, end=reading.end, kind=HOLD_BACK, detector="fault")
        settled = reading.settle(final=final)
        text = reading.text(start, settled)
        released = self._edit(text, reading.take(settled), start)
        at_step = reading.end % self._step == 0
        if released.cut is None and not final and at_step and reading.end - settled + self._step > self._max_held:
            held = Finding(start=settled, end=reading.end, kind=HOLD_BACK, detector="held")
            released = Released(text=released.text, findings=released.findings, cut=held)
        self._cut = released.cut
        return released

    def _edit(self, text: str, found: Sequence[Finding], offset: int) -> Released:
        surrogates = [finding for finding in found if finding.kind == _SURROGATE]
        findings = [
            finding
            for finding in found
            if finding.kind != _SURROGATE
            and not any(own.start <= finding.start and finding.end <= own.end for own in surrogates)
        ]
        parts: list[str] = []
        position = offset
        for edit in edits(findings, self._actions):
            parts.append(self._restored(text, offset, position, edit.start, surrogates))
            position = edit.end
            if edit.action is Action.BLOCK:
                before = [(item, action_of(item, self._actions)) for item in findings if item.end <= edit.start]
                return Released(text="".join(parts), findings=tuple(before), cut=edit.leading)
            parts.append(edit.replacement("", None))
        parts.append(self._restored(text, offset, position, offset + len(text), surrogates))
        done = tuple((item, action_of(item, self._actions)) for item in findings)
        return Released(text="".join(parts), findings=done, cut=None)

    def _restored(self, text: str, offset: int, start: int, end: int, surrogates: Sequence[Finding]) -> str:
        """Return the text from `start` to `end`, which no finding edits, with the surrogates in it put back."""
        parts: list[str] = []
        for own in surrogates:
            if start <= own.start and own.end <= end:
                surrogate = text[own.start - offset : own.end - offset]
                parts.append(text[start - offset : own.start - offset])
                parts.append(self._restore(surrogate) or surrogate)
                start = own.end
        parts.append(text[start - offset : end - offset])
        return "".join(parts)

"""Runs detectors over a text, as it is and normalised, and knows up to where nothing can change any more.

What a text holds is defined place by place: a detector is tried at every offset of each reading, and its candidate
there depends on the characters around it only. A `Reading` therefore need not see a text at once: each detector goes
on from the first offset whose candidate more text could still make or change.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from shared.inspection.control_tokens import CONTROL_TOKENS
from shared.inspection.encoding import with_encodings
from shared.inspection.findings import Finding
from shared.inspection.injection import INJECTION
from shared.inspection.normalisation import normalise_character
from shared.inspection.personal import PERSONAL
from shared.inspection.rules import LOOK_BEHIND, Detector
from shared.inspection.secret import SECRET
from shared.inspection.topics import topic_rules

KINDS: tuple[str, ...] = tuple(
    sorted({rule.kind for rule in (*PERSONAL, *SECRET, *INJECTION, *CONTROL_TOKENS)} | {"TOPIC"})
)
"""Every kind that a scanner can report."""


class Scanner:
    """A fixed set of detectors. Immutable; safe to share between threads."""

    def __init__(
        self, *, topics: Mapping[str, Sequence[str]] | None = None, control_tokens: bool = True, injection: bool = True
    ) -> None:
        """Detect personal data and secrets always; deny-listed `topics`, control tokens and injections as asked."""
        self.detectors: tuple[Detector, ...] = with_encodings(
            (
                *PERSONAL,
                *SECRET,
                *(INJECTION if injection else ()),
                *(CONTROL_TOKENS if control_tokens else ()),
                *topic_rules(topics or {}),
            ),
            find,
        )

    def scan(self, text: str) -> tuple[Finding, ...]:
        """Return the findings of a whole text by start. Takes time linear in its length; callers bound that."""
        return find(text, self.detectors)


def find(text: str, detectors: Sequence[Detector]) -> tuple[Finding, ...]:
    """Return what `detectors` find in a whole text, by start."""
    reading = Reading(detectors)
    reading.append(text)
    reading.settle(final=True)
    return reading.take(len(text))


class Reading:
    """A text under inspection, of which only what may still matter is kept. Offsets are those of the whole text."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        """Begin an empty text."""
        self._detectors = detectors
        self._raw = _View(len(detectors))
        self._normal: _View | None = None
        self._pending: set[Finding] = set()
        self.taken = 0
        self.end = 0

    def append(self, text: str) -> None:
        """Go on with `text`."""
        if self._normal is None and not text.isascii():
            # Up to here both readings are the same, and so is what was made of them.
            self._normal = self._raw.copy()
        self._raw.append(text, range(self.end, self.end + len(text)))
        if self._normal is not None:
            characters: list[str] = []
            origins: list[int] = []
            for index, character in enumerate(text, start=self.end):
                normal = normalise_character(character)
                characters.append(normal)
                origins.extend([index] * len(normal))
            self._normal.append("".join(characters), origins)
        self.end += len(text)

    def settle(self, *, final: bool) -> int:
        """Return the offset before which all findings are known and lie, whatever comes after; the end if `final`."""
        settled = self.end
        for view in (self._raw, self._normal):
            if view is not None:
                self._pending |= view.advance(self._detectors, final=final)
                settled = min(settled, view.settled(self.end))
        for finding in sorted(self._pending, reverse=True):
            if finding.start < settled < finding.end:
                settled = finding.start
        return settled

    def text(self, start: int, end: int) -> str:
        """Return a part of the text that was not taken yet."""
        return self._raw.slice(start, end)

    def take(self, settled: int) -> tuple[Finding, ...]:
        """Return the findings before `settled`, which MUST come from `settle`, and forget the text before it."""
        taken = tuple(sorted(finding for finding in self._pending if finding.end <= settled))
        self._pending.difference_update(taken)
        for view in (self._raw, self._normal):
            if view is not None:
                view.forget(settled)
        self.taken = settled
        return taken


class _View:
    """One reading's characters with the offset that each came from, and how far each detector got."""

    def __init__(self, detectors: int) -> None:
        self._text = ""
        self._origins: list[int] = []
        self._next = [0] * detectors

    def copy(self) -> _View:
        view = _View(0)
        view._text, view._origins, view._next = self._text, list(self._origins), list(self._next)
        return view

    def append(self, text: str, origins: Sequence[int]) -> None:
        self._text += text
        self._origins.extend(origins)

    def advance(self, detectors: Sequence[Detector], *, final: bool) -> set[Finding]:
        """Run each detector up to where its candidates can still change; return what it found."""
        text, origins = self._text, self._origins
        lowered = text.lower()
        found: set[Finding] = set()
        for index, detector in enumerate(detectors):
            limit = len(text)
            if not final and (growing := detector.grow.search(text, pos=self._next[index], partial=True)) is not None:
                limit = growing.start()
            if not detector.needs or any(needed in lowered for needed in detector.needs):
                match = detector.search.search(text, self._next[index])
                while match is not None and match.start() < limit:
                    for finding in detector.judge(match.group()):
                        start, end = match.start() + finding.start, match.start() + finding.end
                        found.add(finding.moved(origins[start], origins[end - 1] + 1))
                    match = detector.search.search(text, match.start() + 1)
            self._next[index] = limit
        return found

    def settled(self, end: int) -> int:
        """Return the original offset before which every detector is done; `end` is where the original text ends."""
        position = min(self._next, default=len(self._text))
        return self._origins[position] if position < len(self._origins) else end

    def slice(self, start: int, end: int) -> str:
        first = bisect.bisect_left(self._origins, start)
        return self._text[first : first + end - start]

    def forget(self, settled: int) -> None:
        cut = max(0, bisect.bisect_left(self._origins, settled) - LOOK_BEHIND)
        self._text = self._text[cut:]
        del self._origins[:cut]
        self._next = [position - cut for position in self._next]

"""The form of a rule, and the patterns that say where rules could still come to match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import regex

LOOK_BEHIND = 12
MATCH_SECONDS = 0.25
"""No search may take longer: hostile text must not hold a worker. The TimeoutError fails closed in the caller."""
_DIGIT = regex.compile("[0-9]")

# Leads: what holds wherever a rule matches. They only save trying it elsewhere.
ANYWHERE = ""
AT_DIGIT = r"(?=[0-9+(XYZ])"
AT_MARK = r"(?=[<\[-])"
AT_WORD = r"(?<![A-Za-z0-9])"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One detector: a pattern, a check of what it matched, and substrings without one of which it cannot match.

    `needs` are lower case where `ignore_case` holds. A rule with a check is tried at every offset, so that what only
    looks like a match hides none, save where `overlapping` is false because its matches have no bound. With `trim`, a
    match that is not valid is tried again without what `trim` matches.
    """

    name: str
    kind: str
    pattern: str
    valid: Callable[[str], bool] | None = None
    trim: regex.Pattern[str] | None = None
    overlapping: bool = True
    lead: str = ANYWHERE
    needs: tuple[str, ...] = ()
    needs_digit: bool = False
    score: float = 1.0
    label: str = ""
    ignore_case: bool = False
    ascii: bool = True
    search: regex.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the pattern."""
        flags = (regex.IGNORECASE if self.ignore_case else 0) | (regex.ASCII if self.ascii else 0)
        object.__setattr__(self, "search", regex.compile(self.pattern, flags))

    def candidates(self, view: View) -> Iterator[tuple[tuple[int, int], int | None]]:
        """Yield the span of every match in the view, and where what is valid of it ends, if anything is."""
        if self.needs_digit and not view.has_digit:
            return
        text = view.lowered if self.ignore_case else view.text
        if self.needs and not any(needed in text for needed in self.needs):
            return
        for match in self.search.finditer(
            view.text, pos=view.start, overlapped=self.overlapping and self.valid is not None, timeout=MATCH_SECONDS
        ):
            yield match.span(), self._valid_end(match)

    def _valid_end(self, match: regex.Match[str]) -> int | None:
        if self.valid is None:
            return match.end()
        value = match.group()
        while not self.valid(value):
            tail = None if self.trim is None else self.trim.search(value)
            if tail is None:
                return None
            value = value[: tail.start()]
        return match.start() + len(value)


class View:
    """One reading of a text: its characters from `start` on are inspected, those before are only looked back at."""

    def __init__(self, text: str, start: int, origin: Sequence[int]) -> None:
        """`origin` gives for each character from `start` on the offset in the inspected text."""
        self.text = text
        self.start = start
        self.lowered = text.lower()
        self.longest_word = max(map(len, text.split()), default=0)
        self.has_digit = _DIGIT.search(text, pos=start) is not None
        self._origin = origin

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the inspected text's span of a non-empty one of the view, with whatever invisible lies within."""
        return self._origin[start - self.start], self._origin[end - 1 - self.start] + 1

    def offset(self, position: int, length: int) -> int:
        """Return the inspected text's offset of a position; `length`, the inspected text's, at the view's end."""
        index = position - self.start
        return self._origin[index] if index < len(self._origin) else length


def growing(rules: Sequence[Rule], blobs: Sequence[re.Pattern[str]]) -> tuple[regex.Pattern[str], ...]:
    """Return patterns whose leftmost partial match is where a match could still begin, end otherwise or vanish.

    `\\Z(?s:.)` can never match: whatever way a pattern finds to the end of the text, in a look-ahead too, ends as a
    partial match, and complete matches never hide it.
    """
    by_lead: dict[tuple[str, bool], list[str]] = {(AT_WORD, True): [f"(?:{blob.pattern})" for blob in blobs]}
    for rule in rules:
        scoped = f"(?i:{rule.pattern})" if rule.ignore_case else f"(?:{rule.pattern})"
        by_lead.setdefault((rule.lead, rule.ascii), []).append(scoped)
    return tuple(
        regex.compile(rf"{lead}(?:{'|'.join(parts)})\Z(?s:.)", regex.ASCII if only_ascii else 0)
        for (lead, only_ascii), parts in by_lead.items()
        if parts
    )

"""The form of a detector: a pattern that is tried at every place, and what it says about each candidate.

Three properties make streaming exact, and every pattern MUST keep them:

- it looks at most LOOK_BEHIND characters before its start and LOOK_AHEAD after its end, by negated character classes
  only (a `\\b`, `^` or `$` there would change its mind when more text comes; a start of line is `(?<![^\\n])`);
- its repeats are bounded or possessive, so that a try takes time linear in what it reads, and where a repeat is
  unbounded a look-behind keeps other tries from starting inside it;
- it means the same to `re`, which searches, and to `regex`, which knows partial matches: only explicit ASCII classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import regex

from shared.inspection.findings import Finding

LOOK_BEHIND = 16
LOOK_AHEAD = 2
DIGITS = tuple("0123456789")

BEFORE_WORD = r"(?<![A-Za-z0-9_])"
AFTER_WORD = r"(?![A-Za-z0-9_])"

Span = tuple[int, int]


def whole(candidate: str) -> Span | None:
    """Return the span of all of `candidate`."""
    return 0, len(candidate)


def where(valid: Callable[[str], bool]) -> Callable[[str], Span | None]:
    """Return a `Rule.locate` that takes a whole candidate if it is `valid`."""
    return lambda candidate: (0, len(candidate)) if valid(candidate) else None


class Detector(Protocol):
    """What a scan needs of a detector."""

    @property
    def search(self) -> re.Pattern[str]:
        """Find the candidates; tried at every place, so that they may overlap."""

    @property
    def grow(self) -> regex.Pattern[str]:
        """Match partially from where more text could make or change a candidate."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Lower-case strings; every candidate, in lower case, holds one of them. Empty: no such string is known."""

    def judge(self, candidate: str) -> Iterator[Finding]:
        """Yield what is really in `candidate`, by offsets in it. Depends on nothing else."""


def searching(pattern: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """Compile `pattern` for finding."""
    return re.compile(pattern, re.ASCII | (re.IGNORECASE if ignore_case else 0))


def growing(pattern: str, *, ignore_case: bool = False) -> regex.Pattern[str]:
    """Compile `pattern` for finding what may still grow.

    It can never match whole; its leftmost partial match is the first place where `pattern`, or a look-ahead behind it,
    meets the end of the text. The atomic group keeps out ways of matching that a search would never take.
    """
    return regex.compile(
        rf"(?>{pattern})(?s:.{{0,{LOOK_AHEAD - 1}}})\Z(?s:.)",
        regex.ASCII | (regex.IGNORECASE if ignore_case else 0),
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A detector of one kind. `locate` says which span of a candidate is meant, or that it is none."""

    name: str
    kind: str
    pattern: str
    locate: Callable[[str], Span | None] = whole
    needs: tuple[str, ...] = ()
    score: float = 1.0
    label: str = ""
    ignore_case: bool = False
    search: re.Pattern[str] = field(init=False, repr=False)
    grow: regex.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the pattern."""
        object.__setattr__(self, "search", searching(self.pattern, ignore_case=self.ignore_case))
        object.__setattr__(self, "grow", growing(self.pattern, ignore_case=self.ignore_case))

    def judge(self, candidate: str) -> Iterator[Finding]:
        """Yield at most one finding."""
        if (span := self.locate(candidate)) is not None:
            yield Finding(
                start=span[0], end=span[1], kind=self.kind, detector=self.name, score=self.score, label=self.label
            )

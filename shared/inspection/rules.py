"""The form of a rule, and the patterns that say where rules could still come to match."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import regex

LOOK_BEHIND = 24
SCAN_SECONDS = 0.25
SCAN_CHARACTERS = 1 << 16
MAX_DECODED_TEXTS = 1 << 12
MAX_DECODED_CHARACTERS = 1 << 20
"""The bounds of one scan; see `Effort`."""
_DIGIT = re.compile("[0-9]")
_DIGITS = re.compile("[0-9]{2,}+")
# Digits with little between them, and how far to the sides a number and what it is told by may reach.
_NUMBER = re.compile(r"[0-9](?:[AB]?[ ()\[\]._/+-]{0,4}[0-9]){6,}+")
_NUMBER_BEFORE, _NUMBER_AFTER = 5, 8
# Two searches cost more than to search so many characters.
_NEAR = 48
# No rule matches more digits in a row, nor a part of them.
_MOST_DIGITS = 19

# Characters without a shape of their own: Unicode tags, variation selectors, zero-width and bidirectional marks.
TAGS = "\U000e0020-\U000e007e"
SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
UNSEEN = f"\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff{SELECTORS}"
_UNSEEN = re.compile(f"[{TAGS}{UNSEEN}]")

# Leads: what holds wherever a rule matches. They only save trying it elsewhere.
ANYWHERE = ""
AT_DIGIT = r"(?=[0-9+(\[XYZ])"
AT_HEX = r"(?=[0-9A-Fa-f\\])"
AT_MARK = r"(?=[<\[-])"
AT_UNSEEN = f"(?=[{TAGS}{UNSEEN}])"
AT_WORD = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"
"""The start of a word, or what follows an escaped line end or tab."""
_WORD_START = re.compile(AT_WORD)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One detector: a pattern, a check of what it matched, and substrings without one of which it cannot match.

    `needs` are lower case where `ignore_case` holds. A rule with a check is tried at every offset, so that what only
    looks like a match hides none, save where `overlapping` is false because its matches have no bound. With `trim`, a
    match that is not valid is tried again without what `trim` matches. With `digits`, every match holds as many (seven
    at least) with at most four separators between them, and begins and ends within five characters of those; where
    `country`, it begins a word with two letters, perhaps a space, and two digits; it holds `shortest` characters
    without white space. All of these only save looking elsewhere.
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
    digits: int = 0
    country: bool = False
    shortest: int = 0
    score: float = 1.0
    label: str = ""
    ignore_case: bool = False
    ascii: bool = True
    search: regex.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the pattern."""
        flags = (regex.IGNORECASE if self.ignore_case else 0) | (regex.ASCII if self.ascii else 0)
        object.__setattr__(self, "search", regex.compile(self.pattern, flags))

    def candidates(self, view: View) -> Iterable[tuple[tuple[int, int], int | None]]:
        """Return the span of every match in the view, and where what is valid of it ends, if anything is.

        Raises TimeoutError when the view's scan has used up its time.
        """
        return self._candidates(view) if self._possible(view) else ()

    def _possible(self, view: View) -> bool:
        if self.shortest > view.longest_word or (self.needs_digit and not view.has_digit):
            return False
        if (self.digits and not view.numbers) or (self.country and not view.countries):
            return False
        if self.lead == AT_UNSEEN and not view.has_unseen:
            return False
        text = view.lowered if self.ignore_case else view.text
        return not self.needs or any(needed in text for needed in self.needs)

    def _candidates(self, view: View) -> Iterator[tuple[tuple[int, int], int | None]]:
        for match in self._matches(view):
            yield match.span(), self._valid_end(match)
            view.effort.seconds()

    def _matches(self, view: View) -> Iterator[regex.Match[str]]:
        seconds = view.effort.seconds()
        if self.country:
            for start in view.countries:
                match = self.search.match(view.text, start, timeout=seconds)
                if match is not None:
                    yield match
            return
        overlapped = self.overlapping and self.valid is not None
        for start, end, digits in view.numbers if self.digits else ((view.start, len(view.text), 0),):
            if digits >= self.digits:
                yield from self.search.finditer(view.text, start, end, overlapped=overlapped, timeout=seconds)

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


class Effort:
    """What one scan has left: SCAN_SECONDS and as long again for each SCAN_CHARACTERS, and texts to decode.

    Hostile text must not hold a worker; a long table is no attack, nor is a busy machine: the seconds are those of the
    thread. What is used up raises TimeoutError.
    """

    def __init__(self, length: int) -> None:
        """Begin the scan of `length` characters."""
        self._left = SCAN_SECONDS * (1 + length / SCAN_CHARACTERS)
        self._end = time.thread_time() + self._left
        self._look = time.monotonic() + self._left
        self._texts = MAX_DECODED_TEXTS
        self._characters = MAX_DECODED_CHARACTERS

    def seconds(self) -> float:
        """Return the seconds left, when last looked at; no thread's clock is faster than the wall's."""
        now = time.monotonic()
        if now > self._look:
            self._left = self._end - time.thread_time()
            if self._left <= 0:
                raise TimeoutError
            self._look = now + self._left
        return self._left

    def decode(self, text: str) -> None:
        """Count a text that was decoded."""
        self._texts -= 1
        self._characters -= len(text)
        if self._texts < 0 or self._characters < 0:
            raise TimeoutError


class View:
    """One reading of a text: its characters from `start` on are inspected, those before are only looked back at."""

    def __init__(self, text: str, start: int, origin: Sequence[int], effort: Effort) -> None:
        """`origin` gives for each character from `start` on the offset in the inspected text."""
        self.effort = effort
        self.text = text
        self.start = start
        self.lowered = text.lower()
        self.longest_word = max(map(len, text.split()), default=0)
        self.has_digit = _DIGIT.search(text, start) is not None
        self.has_unseen = not text.isascii() and _UNSEEN.search(text, start) is not None
        self._origin = origin

    @functools.cached_property
    def numbers(self) -> Sequence[tuple[int, int, int]]:
        """Where numbers of seven digits and more are, with what a rule may look at around them, and their digits.

        Neighbours are joined: the digits are then those of the longest.
        """
        numbers: list[tuple[int, int, int]] = []
        for match in _NUMBER.finditer(self.text, self.start) if self.has_digit else ():
            digits = sum(map(str.isdecimal, match.group()))
            if digits <= _MOST_DIGITS or digits < match.end() - match.start():
                start, end = max(match.start() - _NUMBER_BEFORE, self.start), match.end() + _NUMBER_AFTER
                if numbers and start <= numbers[-1][1] + _NEAR:
                    start, _, most = numbers.pop()
                    digits = max(digits, most)
                numbers.append((start, end, digits))
        return numbers

    @functools.cached_property
    def countries(self) -> Sequence[int]:
        """Where a word begins with two letters, perhaps a space, and two digits."""
        starts = []
        for match in _DIGITS.finditer(self.text, self.start) if self.has_digit else ():
            start = match.start() - (3 if self.text[match.start() - 1 : match.start()] == " " else 2)
            if start >= self.start and self.text[start : start + 2].isalpha() and _WORD_START.match(self.text, start):
                starts.append(start)
        return starts

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the inspected text's span of a non-empty one of the view, with whatever invisible lies within."""
        return self._origin[start - self.start], self._origin[end - 1 - self.start] + 1

    def offset(self, position: int, length: int) -> int:
        """Return the inspected text's offset of a position; `length`, the inspected text's, at the view's end."""
        index = position - self.start
        return self._origin[index] if index < len(self._origin) else length


def growing(rules: Sequence[Rule], blobs: Sequence[tuple[str, re.Pattern[str]]]) -> tuple[regex.Pattern[str], ...]:
    """Return patterns whose leftmost partial match is where a match could still begin, end otherwise or vanish.

    `blobs` are leads and what follows them. `\\Z(?s:.)` can never match: whatever way a pattern finds to the end of the
    text, in a look-ahead too, ends as a partial match, and complete matches never hide it.
    """
    by_lead: dict[tuple[str, bool], list[str]] = {}
    for lead, blob in blobs:
        by_lead.setdefault((lead, True), []).append(f"(?:{blob.pattern})")
    for rule in rules:
        rest = rule.pattern.removeprefix(rule.lead)
        scoped = f"(?i:{rest})" if rule.ignore_case else f"(?:{rest})"
        by_lead.setdefault((rule.lead, rule.ascii), []).append(scoped)
    return tuple(
        regex.compile(rf"{lead}(?:{'|'.join(parts)})\Z(?s:.)", regex.ASCII if only_ascii else 0)
        for (lead, only_ascii), parts in by_lead.items()
        if parts
    )

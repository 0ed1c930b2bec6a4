"""Telephone numbers, judged by the numbering plans that `phonenumbers` (libphonenumber) carries."""

from __future__ import annotations

import re

import phonenumbers

from shared.inspection.checksums import date
from shared.inspection.rules import Span

# National notation is believed only where one of these countries' plans calls the number valid.
REGIONS = ("GB", "DE", "FR", "ES", "IT")
_GROUP_END = re.compile(r"(?<=[0-9])(?![0-9])")
# A number and what follows it read as one candidate; so many of its ends are tried, the longest first.
_TRIES = 4


def international(candidate: str) -> Span | None:
    """Return the longest beginning that is valid in the plan of its country code (E.164, ITU-T E.123)."""
    prefix = 2 if candidate.startswith("00") else 0
    for end in _ends(candidate):
        if _valid("+" + candidate[prefix:end].lstrip("+"), None):
            return 0, end
    return None


def national(candidate: str) -> Span | None:
    """Return the longest beginning that is valid with a trunk prefix in one of REGIONS, and is no date."""
    for end in _ends(candidate):
        number = candidate[:end]
        if not date(number) and any(_valid(number, region) for region in REGIONS):
            return 0, end
    return None


def north_american(candidate: str) -> Span | None:
    """Take a candidate that is valid in the North American plan."""
    return (0, len(candidate)) if _valid(candidate, "US") else None


def announced(candidate: str) -> Span | None:
    """Take the bare digits at the end of a candidate that begins with a word for telephone."""
    start = len(candidate.rstrip("0123456789"))
    if any(_valid(candidate[start:], region) for region in ("US", *REGIONS)):
        return start, len(candidate)
    return None


def _ends(candidate: str) -> list[int]:
    return [match.start() for match in _GROUP_END.finditer(candidate)][: -_TRIES - 1 : -1]


def _valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False

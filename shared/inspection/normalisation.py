"""Text as detectors should read it: without disguises, with a way back to the original offsets.

Every code point is normalised by itself (compatibility decomposition without marks, UAX #15; confusables after UTS #39;
nothing for what cannot be seen). The result therefore does not depend on where a text is cut.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

# The letters of other scripts that pass for ASCII in common fonts (a subset of UTS #39 confusables.txt).
_CONFUSABLE = str.maketrans(
    "аеорсухіјѕԁһԛԝѵАВЕЗІЈКМНОРСТХЅԌΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανικρτυϲⅼ∕⁄‐‑‒–—―−∶։“”‘’｀´",
    "aeopcyxijsdhqwvABE3IJKMHOPCTXSGABEZHIKMNOPTYXoavikptucl//-------::\"\"''''",
)
_INVISIBLE_CATEGORIES = frozenset({"Mn", "Me", "Cf"})


@functools.lru_cache(maxsize=8192)
def _normal(character: str) -> str:
    decomposed = unicodedata.normalize("NFKD", character)
    kept = "".join(part for part in decomposed if unicodedata.category(part) not in _INVISIBLE_CATEGORIES)
    return kept.translate(_CONFUSABLE)


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """Normalised text and, for each of its characters, the index of the character it came from."""

    text: str
    origin: tuple[int, ...]
    length: int

    def raw(self, position: int) -> int:
        """Return the original offset of a position in the normalised text; its end is the original's end."""
        return self.origin[position] if position < len(self.origin) else self.length

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original span of a non-empty normalised one, with whatever invisible lies within."""
        return self.origin[start], self.origin[end - 1] + 1


def normalise(text: str) -> Normalised | None:
    """Return the normalised form, or None where it is the text itself."""
    if text.isascii():
        return None
    parts: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        normal = character if character.isascii() else _normal(character)
        parts.append(normal)
        origin.extend([index] * len(normal))
    return Normalised(text="".join(parts), origin=tuple(origin), length=len(text))

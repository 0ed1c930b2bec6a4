"""Text as detectors should read it: without disguises, with a way back to the original offsets.

Every code point is normalised by itself (compatibility decomposition without marks, UAX #15; confusables after UTS #39;
digits of any script and shape as ASCII; nothing for what cannot be seen). The result therefore does not depend on where
a text is cut.
"""

from __future__ import annotations

import functools
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import regex

# What passes for ASCII in common fonts (a subset of UTS #39 confusables.txt, and letters with a stroke), by script.
_CONFUSABLE = str.maketrans(
    {
        other: ascii_
        for others, ascii_letters in (
            ("аеорсухіјѕԁһԛԝѵӏҽАВЕЗІЈКМНОРСТХЅԌ", "aeopcyxijsdhqwvleABE3IJKMHOPCTXSG"),
            ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανικρτυϲ", "ABEZHIKMNOPTYXoavikptuc"),
            ("ցհոօսզՏՍ", "ghnouqSU"),
            ("ᎪᏴᏟᎠᎬᏀᎻᎥᎫᏦᏞᎷᏢᏒᏚᎢᏙᎳᎩᏃᏆ", "ABCDEGHiJKLMPRSTVWYZI"),
            ("ꓮꓐꓚꓓꓰꓝꓖꓧꓲꓙꓗꓡꓟꓠꓳꓑꓣꓢꓔꓴꓦꓪꓫꓬꓜ", "ABCDEFGHIJKLMNOPRSTUVWXYZ"),
            ("ⲀⲂⲤⲈⲎⲒⲔⲘⲚⲞⲢⲦⲬⲟ", "ABCEHIKMNOPTXo"),
            ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz"),
            ("ɑɡıȷⅼøłđħŧƀØŁĐĦŦɃ", "agijloldhtbOLDHTB"),
            ("∕⁄‐‑‒–—―−⁃˗֊⸺ー➖∶։·•“”‘’｀´", "//-------------::..\"\"''''"),
        )
        for other, ascii_ in zip(others, ascii_letters, strict=True)
    }
    | {
        chr(first + at): letter
        for first in (0x1F150, 0x1F170, 0x1F1E6)
        for at, letter in enumerate(string.ascii_uppercase)
    }
)
_INVISIBLE_CATEGORIES = frozenset({"Mn", "Me", "Cf", "Cc"})
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
# Letters and symbols by category, blank on the screen.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc")
_PLAIN = regex.compile(r"[\t\n\v\f\r -~]*+")


@functools.lru_cache(maxsize=8192)
def _normal(character: str) -> str:
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":
        return "\n" if character in "\n\x85\u2028\u2029" else " " if character > "~" else character
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    return "".join(map(_visible, unicodedata.normalize("NFKD", character.translate(_CONFUSABLE))))


def _visible(character: str) -> str:
    if unicodedata.category(character) in _INVISIBLE_CATEGORIES or character in _BLANK or _IGNORABLE.match(character):
        return ""
    return character.translate(_CONFUSABLE)


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """Normalised text and, for each of its characters, the index of the character it came from."""

    text: str
    origin: Sequence[int]


def normalise(text: str) -> Normalised | None:
    """Return the normalised form, or None where it is the text itself."""
    if _PLAIN.fullmatch(text):
        return None
    parts: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        normal = character if " " <= character <= "~" else _normal(character)
        parts.append(normal)
        origin.extend([index] * len(normal))
    return Normalised(text="".join(parts), origin=origin)

"""Text as detectors should read it: without disguises, with a way back to the original offsets.

Every code point is normalised by itself: compatibility decomposition without marks (UAX #15), decimal digits of any
script, look-alikes (UTS #39), nothing for what cannot be seen (Default_Ignorable_Code_Point). So NFKC's composition,
which would reach across the end of a chunk, never matters: what it would compose has lost its marks here.
"""

from __future__ import annotations

import functools
import unicodedata

# Letters and signs that pass for ASCII in common fonts (a subset of UTS #39 confusables.txt).
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁһԛԝѵгкмтпиАВЕЗІЈКМНОРСТУХЅԌΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανικρτυϲεօսոցıɑɡɪɴʀʏʟᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢƖǀ∣∕⁄⧸‐‑‒–—―−⁃∶։꞉“”„‘’‚´ʹʼ•∙·․",
    "aeopcyxijsdhqwvrkmtnuABE3IJKMHOPCTYXSGABEZHIKMNOPTYXoavikptuceounqıagINRYLACDEJKMOPTUVWZlll///--------:::\"\"\"''''''.."
    "..".replace("ı", "i"),
)
_INVISIBLE_CATEGORIES = frozenset({"Mn", "Me", "Cf"})
_INVISIBLE = frozenset("\u115f\u1160\u2800\u3164\uffa0")


@functools.lru_cache(maxsize=8192)
def normalise_character(character: str) -> str:
    """Return what one code point reads as: mostly one character, sometimes none or several."""
    if character.isascii():
        return character
    kept = []
    for part in unicodedata.normalize("NFKD", character):
        if part in _INVISIBLE or unicodedata.category(part) in _INVISIBLE_CATEGORIES:
            continue
        digit = unicodedata.decimal(part, None)
        kept.append(part if digit is None else str(digit))
    return "".join(kept).translate(_LOOK_ALIKES)


def normalise(text: str) -> str:
    """Return `text` as detectors should read it. A concatenation's normal form is its parts', concatenated."""
    return text if text.isascii() else "".join(map(normalise_character, text))

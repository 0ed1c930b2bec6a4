"""Encoded blobs: what might be base64, hex or percent-encoding, decoded to be scanned too."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

MAX_DEPTH = 2
"""How many encodings within one another are undone."""
_PRINTABLE_SHARE = 0.9
_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One encoding: what a blob of it looks like, how short it can be, and how it is undone (raising ValueError).

    Blobs have no upper length, or a longer one would pass unread: in a stream the hold-back limit bounds them.
    """

    name: str
    needs: str = ""
    shortest: int
    search: re.Pattern[str]
    decode: Callable[[str], bytes]


def _base64(text: str) -> bytes:
    compact = text.rstrip("=").translate(_STANDARD)
    if len(compact) % 4 == 1:
        compact = compact[:-1]  # no encoding ends so; the rest may be one
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


FORMS: tuple[Form, ...] = (
    Form(
        name="base64",
        shortest=16,
        search=re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}+={0,2}+"),
        decode=_base64,
    ),
    Form(
        name="hex",
        shortest=16,
        search=re.compile(r"(?<![A-Za-z0-9])(?:0x)?(?:[0-9A-Fa-f]{2}){8,}+(?![A-Za-z0-9])"),
        decode=_hex,
    ),
    Form(
        name="percent",
        needs="%",
        shortest=6,
        search=re.compile(r"(?<![A-Za-z0-9_.@+%-])(?=[A-Za-z0-9_.@+%-]*?%[0-9A-Fa-f]{2})[A-Za-z0-9_.@+%-]{6,}+"),
        decode=urllib.parse.unquote_to_bytes,
    ),
)


def decoded(blob: str, form: Form) -> str | None:
    """Return what `blob` decodes to where that is mostly printable text, else None."""
    try:
        plain = form.decode(blob).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    printable = len(plain) if plain.isprintable() else sum(map(_printable, plain))
    return plain if plain and printable >= _PRINTABLE_SHARE * len(plain) else None


def _printable(character: str) -> bool:
    # Unicode tags are letters to those who hide text in them.
    return character.isprintable() or character in "\n\r\t" or "\U000e0020" <= character <= "\U000e007e"

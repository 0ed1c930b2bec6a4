"""Encoded blobs: what might be base64, hex or percent-encoding, decoded within bounds to be scanned too."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Callable

import regex

MAX_DEPTH = 2
_PRINTABLE_SHARE = 0.9

Decode = Callable[[str], bytes]


def _base64(text: str) -> bytes:
    compact = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _percent(text: str) -> bytes:
    return urllib.parse.unquote_to_bytes(text)


FORMS: tuple[tuple[str, regex.Pattern[str], regex.Pattern[str], Decode], ...] = tuple(
    (name, regex.compile(pattern), regex.compile(rf"(?:{pattern})\Z(?s:.)"), decode)
    for name, pattern, decode in (
        ("base64", r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,2048}={0,2}(?![A-Za-z0-9+/_=-])", _base64),
        ("hex", r"(?<![A-Za-z0-9])(?:0x)?(?:[0-9A-Fa-f]{2}){8,1024}(?![A-Za-z0-9])", _hex),
        ("percent", r"(?<![\w%.+-])(?:[\w.@+-]{0,32}%[0-9A-Fa-f]{2}){2,128}[\w.@+-]{0,32}(?![\w%.@+-])", _percent),
    )
)


def decoded(text: str, decode: Decode) -> str | None:
    """Return what `text` decodes to where that is mostly printable text, else None."""
    try:
        plain = decode(text).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    printable = sum(character.isprintable() or character in "\n\r\t" for character in plain)
    return plain if plain and printable >= _PRINTABLE_SHARE * len(plain) else None

"""Encoded blobs: what might be base64, hex or percent-encoding, decoded to be scanned too."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

import regex

MAX_DEPTH = 2
"""How many encodings within one another are undone."""
_PRINTABLE_SHARE = 0.9
_UNPRINTABLE = regex.compile(r"[^\P{C}\n\r\t]")
_STANDARD = str.maketrans("-_", "+/")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One encoding: what a blob of it looks like, and how it is undone (raising ValueError).

    Blobs have no upper length, or a longer one would pass unread: in a stream the hold-back limit bounds them.
    """

    name: str
    search: regex.Pattern[str]
    decode: Callable[[str], bytes]


def _base64(text: str) -> bytes:
    compact = text.rstrip("=").translate(_STANDARD)
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


FORMS: tuple[Form, ...] = (
    Form(
        name="base64",
        search=regex.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}+={0,2}+"),
        decode=_base64,
    ),
    Form(
        name="hex",
        search=regex.compile(r"(?<![A-Za-z0-9])(?:0x)?(?:[0-9A-Fa-f]{2}){8,}+(?![A-Za-z0-9])"),
        decode=_hex,
    ),
    Form(
        name="percent",
        search=regex.compile(r"(?<![A-Za-z0-9_.@+%-])(?=[A-Za-z0-9_.@+-]*+%[0-9A-Fa-f]{2})[A-Za-z0-9_.@+%-]{6,}+"),
        decode=urllib.parse.unquote_to_bytes,
    ),
)


def decoded(blob: str, form: Form) -> str | None:
    """Return what `blob` decodes to where that is mostly printable text, else None."""
    try:
        plain = form.decode(blob).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    unprintable = sum(1 for _ in _UNPRINTABLE.finditer(plain))
    return plain if plain and unprintable <= (1 - _PRINTABLE_SHARE) * len(plain) else None

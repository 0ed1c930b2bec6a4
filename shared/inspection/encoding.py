"""Encoded blobs: what might be base64, hex, percent-encoding, escapes or unseen letters, decoded to be scanned too.

A blob is found by its form alone and decoded from every place where its first byte may start: what is glued to its
front hides nothing.
"""

from __future__ import annotations

import binascii
import html
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.inspection.rules import AT_HEX, AT_UNSEEN, AT_WORD, SELECTORS, TAGS, UNSEEN

MAX_DEPTH = 2
"""How many encodings within one another are undone."""
_PRINTABLE_SHARE = 0.9
_STANDARD = str.maketrans("-_", "+/")
_WHITE = str.maketrans("", "", "\n\r\t")

_LETTER = "[A-Za-z0-9+/_-]"
# Where a line of base64 goes on: broken as such or as in a string literal, indented or quoted.
_JOINT = r"(?:(?:\\r)?\\n|[ \t]{0,2}\r?\n[ \t>]{0,8})"
# A full line of what is not hexadecimal: lists of digests and of identifiers are no blob.
_FULL = rf"(?<={_LETTER}{{48}})(?<![0-9A-Fa-f]{{48}})"
_JOINTS = re.compile(_JOINT)

_HEX = "[0-9A-Fa-f]"
_GROUP = f"(?:{_HEX}{{2}}){{1,4}}"
_NOT_HEX = re.compile(r"0[xX]|\\x|[^0-9A-Fa-f]")

# Printable ASCII without quotes: what an escape may stand in.
_INK = "[!#-&(-;=?-~]"
_BACKSLASH = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4}))")

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# A run of well-formed UTF-8 without controls, in bytes that are no text as a whole.
_RUN_BYTES = re.compile(rb"[\t\n\r -~\x80-\xf4]{12,}")
_RUN = re.compile(rb"(?:[\t\n\r -~]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}){12,}+")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One encoding: what a blob of it looks like, how short its words can be, and the ways in which it is undone.

    Most blobs have no upper length, or a longer one would pass unread: in a stream the hold-back limit bounds them.
    Without one of `needs` there is none.
    """

    name: str
    lead: str = AT_WORD
    needs: tuple[str, ...] = ("",)
    shortest: int
    search: re.Pattern[str]
    decode: Callable[[str], Iterator[bytes]]


def _base64(blob: str) -> Iterator[bytes]:
    letters = _JOINTS.sub("", blob).rstrip("=").translate(_STANDARD)
    for first in range(4):
        part = letters[first:]
        part = part[: len(part) - (len(part) % 4 == 1)]  # no encoding ends so; the rest may be one
        yield binascii.a2b_base64(part + "=" * (-len(part) % 4))


def _hex(blob: str) -> Iterator[bytes]:
    digits = _NOT_HEX.sub("", blob)
    for first in range(2):
        yield bytes.fromhex(digits[first : len(digits) - (len(digits) - first) % 2])


def _percent(blob: str) -> Iterator[bytes]:
    yield urllib.parse.unquote_to_bytes(blob)
    if "+" in blob:
        yield urllib.parse.unquote_to_bytes(blob.replace("+", " "))


def _escapes(blob: str) -> Iterator[bytes]:
    plain = _BACKSLASH.sub(lambda match: chr(int(match[1] or match[2], 16)), html.unescape(blob))
    yield plain.encode("utf-8", "ignore")


def _tags(blob: str) -> Iterator[bytes]:
    yield bytes(ord(letter) - 0xE0000 for letter in blob if "\U000e0020" <= letter <= "\U000e007e")


def _selectors(blob: str) -> Iterator[bytes]:
    yield bytes(ord(letter) - (0xFE00 if letter < "\U000e0100" else 0xE00F0) for letter in blob)


FORMS: tuple[Form, ...] = (
    Form(
        name="base64",
        shortest=16,
        search=re.compile(
            rf"(?<!{_LETTER}){_LETTER}{{16,}}+(?:{_FULL}{_JOINT}{_LETTER}{{48,}}+)*+"
            rf"(?:{_FULL}{_JOINT}{_LETTER}{{1,47}}+(?=={{0,2}}[ \t]*(?:[\"'\\\r\n<]|\Z)))?+={{0,2}}+"
        ),
        decode=_base64,
    ),
    Form(
        name="hex",
        lead=AT_HEX,
        shortest=16,
        search=re.compile(
            rf"(?<!{_HEX}){_HEX}{{16,}}+(?:(?<={_HEX}{{32}}){_JOINT}{_HEX}{{2,}}+(?![A-Za-z0-9])){{0,31}}+"
        ),
        decode=_hex,
    ),
    Form(
        name="hex-groups",
        lead=AT_HEX,
        shortest=2,
        # Bounded, or a table of numbers would be held to its end.
        search=re.compile(
            rf"(?<![A-Za-z0-9])(?:0[xX]|\\x)?{_GROUP}"
            rf"(?:(?:(?:[ ,:-]{{1,2}}|,\r?\n[ \t]{{0,8}})(?:0[xX])?|\\x){_GROUP}(?![A-Za-z0-9])){{3,255}}+"
        ),
        decode=_hex,
    ),
    Form(
        name="percent",
        needs=("%",),
        shortest=6,
        search=re.compile(r"(?<![A-Za-z0-9_.@+%~-])(?=[A-Za-z0-9_.@+%~-]*?%[0-9A-Fa-f]{2})[A-Za-z0-9_.@+%~-]{6,}+"),
        decode=_percent,
    ),
    Form(
        name="escape",
        needs=("\\x", "\\u", "&#"),
        shortest=6,
        search=re.compile(
            rf"(?<!{_INK})(?={_INK}*?(?:\\x[0-9A-Fa-f]{{2}}|\\u[0-9A-Fa-f]{{4}}|&#[xX]?[0-9A-Fa-f]{{1,6}};)){_INK}{{6,}}+"
        ),
        decode=_escapes,
    ),
    Form(
        name="tags",
        lead=AT_UNSEEN,
        shortest=6,
        search=re.compile(rf"(?:[{TAGS}][{UNSEEN}]{{0,8}}){{6,}}+"),
        decode=_tags,
    ),
    Form(
        name="selectors",
        lead=AT_UNSEEN,
        shortest=6,
        search=re.compile(rf"[{SELECTORS}]{{6,}}+"),
        decode=_selectors,
    ),
)


def plain_texts(blob: str, form: Form) -> list[str]:
    """Return what `blob` may decode to: whole where it is mostly printable text, else the runs of text in it."""
    texts: list[str] = []
    for data in form.decode(blob):
        text = _text(data)
        if text and not any(text in other for other in texts):
            texts.append(text)
    return texts


def _text(data: bytes) -> str:
    if data.startswith(_UTF16_MARKS):
        return data[: len(data) & ~1].decode("utf-16", "ignore")
    # Without NUL, UTF-16 and UTF-32 of Latin text are that text.
    data = data.replace(b"\0", b"")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    seen = text.translate(_WHITE)
    if seen and (seen.isprintable() or sum(map(str.isprintable, seen)) >= _PRINTABLE_SHARE * len(seen)):
        return text
    runs = (run for part in _RUN_BYTES.findall(data) for run in _RUN.findall(part))
    return "\n".join(run.decode("utf-8", "ignore") for run in runs)

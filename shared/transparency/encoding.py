"""The strict scalar encodings that the C2SP text formats share."""

from __future__ import annotations

import base64
import binascii

from shared.transparency.errors import Malformed
from shared.transparency.merkle import HASH_SIZE, MAX_TREE_SIZE


def encode_base64(data: bytes) -> str:
    """Return standard padded Base 64 (RFC 4648 section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Decode standard padded Base 64 in its one canonical spelling; raises `Malformed` otherwise."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("not standard base64") from None
    if encode_base64(data) != text:
        raise Malformed("not canonical base64")
    return data


def decode_hash(text: str) -> bytes:
    """Decode a SHA-256 hash in Base 64; raises `Malformed`."""
    data = decode_base64(text)
    if len(data) != HASH_SIZE:
        raise Malformed("a hash has 32 bytes")
    return data


def decode_decimal(text: str, maximum: int = MAX_TREE_SIZE) -> int:
    """Decode an ASCII decimal without sign or leading zeroes, at most `maximum`; raises `Malformed`."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(maximum)):
        raise Malformed("not a decimal number within its limit")
    if text[0] == "0" and text != "0":
        raise Malformed("a decimal number has a leading zero")
    value = int(text)
    if value > maximum:
        raise Malformed("not a decimal number within its limit")
    return value

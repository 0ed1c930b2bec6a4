"""Page tokens: the key of the last row of a page, so that pages hold together while rows are added.

A token holds no secret and grants nothing: a forged one only starts the same list elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import re

from shared.errors import InvalidArgument

DEFAULT_PAGE = 50
MAX_PAGE = 200


def page_size(requested: int) -> int:
    """Return the rows a page gets; 0 asks for the default. Raises `InvalidArgument`."""
    if not 0 <= requested <= MAX_PAGE:
        raise InvalidArgument(f"a page has 1 to {MAX_PAGE} rows", field="page_size")
    return requested or DEFAULT_PAGE


def encode_page_token(last: str) -> str:
    """Return the token that goes on after the row whose key is `last`."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def decode_page_token(token: str, keys: re.Pattern[str]) -> str:
    """Return the last key, which matches `keys` whole. Raises `InvalidArgument` for any other token."""
    try:
        last = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        last = ""
    if not keys.fullmatch(last):
        raise InvalidArgument("not a page token of this list", field="page_token")
    return last

"""Page tokens: the position of the last row of a page, so that pages hold together while rows are added.

A token holds no secret and grants nothing: a forged one only starts the same list elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TypeVar

from shared.errors import InvalidArgument

DEFAULT_PAGE = 50
MAX_PAGE = 200
_MAX_TOKEN = 512

T = TypeVar("T", int, str)


def page_size(requested: int) -> int:
    """Return the rows a page gets; 0 asks for the default. Raises `InvalidArgument`."""
    if not 0 <= requested <= MAX_PAGE:
        raise InvalidArgument(f"a page has 1 to {MAX_PAGE} rows", field="page_size")
    return requested or DEFAULT_PAGE


def encode_page_token(*position: int | str) -> str:
    """Return the token that goes on after the row at `position`."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def decode_page_token(token: str, *kinds: type[int] | type[str]) -> list[int | str]:
    """Return the position, members of exactly `kinds`. Raises `InvalidArgument` for any other token."""
    try:
        position = json.loads(base64.b64decode(token[: _MAX_TOKEN + 1], altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        position = None
    if len(token) > _MAX_TOKEN or not isinstance(position, list) or [type(item) for item in position] != list(kinds):
        raise InvalidArgument("not a page token of this list", field="page_token")
    return position

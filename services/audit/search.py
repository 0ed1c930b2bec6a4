"""Which entries a search finds, and how its pages hold together."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from datetime import datetime

import rfc8785
from sqlalchemy import ColumnElement

from services.audit.entry import to_micros
from services.audit.tables import entries
from shared.errors import InvalidArgument

_TOKEN = struct.Struct(">q16s")
_EXACT = ("writer", "record_id", "call_id", "decision_id", "tenant", "principal", "model", "method", "outcome")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What an entry must match; an empty member matches all. `since` is included, `until` is not.

    Raises `InvalidArgument` where a text is not printable, as every text of an entry is.
    """

    kinds: frozenset[str] = frozenset()
    writer: str = ""
    record_id: str = ""
    call_id: str = ""
    decision_id: str = ""
    tenant: str = ""
    principal: str = ""
    model: str = ""
    method: str = ""
    outcome: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name in _EXACT:
            if not getattr(self, name).isprintable():
                raise InvalidArgument("a printable text is needed", field=name)

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the filter as SQL, to be joined by AND."""
        found = [entries.c[name] == value for name in _EXACT if (value := getattr(self, name))]
        if self.kinds:
            found.append(entries.c.kind.in_(sorted(self.kinds)))
        if self.since is not None:
            found.append(entries.c.time >= to_micros(self.since))
        if self.until is not None:
            found.append(entries.c.time < to_micros(self.until))
        return found

    @property
    def keyed(self) -> bool:
        """Whether an index leads to the few entries that can match, however long the log is."""
        return bool(self.call_id or self.decision_id or self.record_id)

    def digest(self, *, descending: bool) -> bytes:
        """Return 16 bytes that differ for every other filter or order."""
        members: dict[str, str | list[str]] = {name: getattr(self, name) for name in _EXACT}
        members["kinds"] = sorted(self.kinds)
        members["since"] = str(to_micros(self.since)) if self.since else ""
        members["until"] = str(to_micros(self.until)) if self.until else ""
        members["order"] = "descending" if descending else "ascending"
        return hashlib.sha256(rfc8785.dumps(members)).digest()[:16]


def encode_page_token(last_index: int, digest: bytes) -> str:
    """Return the token that goes on after `last_index` for the search with this `digest`."""
    return base64.urlsafe_b64encode(_TOKEN.pack(last_index, digest)).decode("ascii")


def decode_page_token(token: str, digest: bytes) -> int:
    """Return the last index of the page before; raises `InvalidArgument` if it is another search's token.

    A token holds no secret and grants nothing: a forged one only starts the same search elsewhere.
    """
    try:
        index, bound = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, struct.error):
        raise InvalidArgument("not a page token of this server", field="page_token") from None
    if index < 0 or not hmac.compare_digest(bound, digest):
        raise InvalidArgument("the page token belongs to another search", field="page_token")
    return int(index)

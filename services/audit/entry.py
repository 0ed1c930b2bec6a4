"""What is put in the log, and the leaf it becomes.

A leaf is canonical JSON (RFC 8785), with every fact that the index is searched by, so that an auditor can rebuild
the index from the leaves alone:

    {"lease_expires":"...Z","record":{"data":{...},"fields":{...}},"record_id":"...","time":"...Z","version":1,
     "writer":"..."}

`record` is what the writer states; its SHA-256, over the tags of what is sealed beside it too, tells a repeated record
from another one with the same id. Time and the lease's end are audit's, and differ when a writer tries again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import rfc8785

from shared.errors import InvalidArgument
from shared.transparency.merkle import hash_leaf
from shared.transparency.proof import TlogProof

MAX_LEAF_BYTES = 16 * 1024
MAX_SEALED_BYTES = 1024 * 1024 + 4096
MAX_SEALED_PARTS = 4
_MAX_TEXT = 255

INTERRUPTED = "interrupted"
# Kinds that end the call an `authorised` or other leased record opened.
END_KINDS = frozenset({"completed", "changed", "denied", "refused", "cut", "cancelled", "failed", INTERRUPTED})

TEXT_FIELDS = ("kind", "call_id", "decision_id", "tenant", "principal", "model", "method", "outcome")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(time: datetime) -> int:
    """Return microseconds since 1970 UTC of an aware time."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """Return the UTC time of `to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


def format_time(time: datetime) -> str:
    """Return RFC 3339 in UTC with six decimals."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Content kept outside the leaf: ciphertext under the key of the person `pseudonym` names.

    `tag` is the same for the same content of the same record, and says nothing without that key.
    """

    name: str
    pseudonym: str
    ciphertext: bytes
    tag: bytes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A fact as its writer states it. Empty strings mean: not applicable.

    `data` is the writer's statement, a JSON object without text of prompts or documents; `principal`
    is a pseudonym. `lease_expires` asks audit to close the call `interrupted` if no end of it comes by then.
    """

    writer: str
    record_id: str
    kind: str
    data: Mapping[str, Any]
    call_id: str = ""
    decision_id: str = ""
    tenant: str = ""
    principal: str = ""
    model: str = ""
    method: str = ""
    outcome: str = ""
    lease_expires: datetime | None = None
    sealed: tuple[Sealed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An entry as a leaf, ready for its place. `closes` names the entry whose lease it ends, if it still has one."""

    entry: Entry
    time: int
    digest: bytes
    leaf: bytes
    leaf_hash: bytes
    closes: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What the digest is compared under when a record comes again."""
        return self.entry.writer, self.entry.record_id

    @property
    def size(self) -> int:
        """Bytes it takes in memory and in the store, roughly."""
        return len(self.leaf) + sum(len(part.ciphertext) for part in self.entry.sealed)


@dataclass(frozen=True, kw_only=True)
class Record:
    """An entry as the log keeps it; `fields` are the entry's searchable texts by name, absent if empty."""

    index: int
    time: datetime
    writer: str
    record_id: str
    leaf: bytes
    leaf_hash: bytes
    fields: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Appended:
    """Where an entry lies, for good, and the proof of it to a checkpoint signed before this was returned."""

    index: int
    leaf: bytes
    proof: TlogProof

    @property
    def leaf_hash(self) -> bytes:
        """The RFC 6962 hash of the leaf."""
        return hash_leaf(self.leaf)

    @property
    def checkpoint(self) -> str:
        """The signed checkpoint that the proof leads to."""
        return self.proof.checkpoint


def draft(entry: Entry, now: datetime, *, closes: int | None = None) -> Draft:
    """Return `entry` as a leaf written at `now`; raises `InvalidArgument` naming what breaks a limit."""
    _check(entry)
    fields = {name: value for name in TEXT_FIELDS if (value := getattr(entry, name))}
    lease = b""
    if entry.lease_expires is not None:
        lease = b'"lease_expires":"%b",' % format_time(entry.lease_expires).encode()
    try:
        statement = rfc8785.dumps({"data": dict(entry.data), "fields": fields})
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeError):
        raise InvalidArgument("the data has no canonical JSON (RFC 8785)", field="data") from None
    leaf = b'{%b"record":%b,"record_id":%b,"time":"%b","version":1,"writer":%b}' % (
        lease,
        statement,
        rfc8785.dumps(entry.record_id),
        format_time(now).encode(),
        rfc8785.dumps(entry.writer),
    )
    if len(leaf) > MAX_LEAF_BYTES:
        raise InvalidArgument("a leaf has at most 16 KiB", field="data")
    return Draft(
        entry=entry,
        time=to_micros(now),
        digest=hashlib.sha256(b"".join((statement, *(part.tag for part in entry.sealed)))).digest(),
        leaf=leaf,
        leaf_hash=hash_leaf(leaf),
        closes=closes,
    )


def _check(entry: Entry) -> None:
    for name in ("writer", "record_id", *TEXT_FIELDS):
        value: str = getattr(entry, name)
        required = name in ("writer", "record_id", "kind")
        if len(value) > _MAX_TEXT or not value.isprintable() or (required and not value):
            raise InvalidArgument("a printable text of at most 255 characters is needed", field=name)
    if entry.lease_expires is not None and not (entry.call_id and entry.lease_expires.tzinfo):
        raise InvalidArgument("a lease needs a call id and a time with its zone", field="lease_expires")
    names = {part.name for part in entry.sealed}
    if len(names) != len(entry.sealed) or len(names) > MAX_SEALED_PARTS:
        raise InvalidArgument("sealed parts have different names, at most 4", field="sealed")
    for part in entry.sealed:
        if not part.name.isidentifier() or not part.pseudonym or len(part.ciphertext) > MAX_SEALED_BYTES:
            raise InvalidArgument("a sealed part has a name, a person and at most 1 MiB", field="sealed")

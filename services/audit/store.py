"""The log's rows, inside a transaction that the caller holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.entry import END_KINDS, TEXT_FIELDS, Draft, Record, from_micros, to_micros
from services.audit.errors import LogCorrupt
from services.audit.tables import entries, head, leases, sealed
from shared.transparency.merkle import hash_leaf

_HEAD_ID = 1

# What every append runs, built once: building a statement takes longer than running it.
_READ_HEAD = select(head.c.size, head.c.root, head.c.checkpoint).where(head.c.id == _HEAD_ID)
_LOCK_HEAD = _READ_HEAD.with_for_update()
_SWAP_HEAD = update(head).where(
    head.c.id == _HEAD_ID, head.c.size == bindparam("old_size"), head.c.root == bindparam("old_root")
)
_FIND_KEYS = select(entries.c.record_id, entries.c.entry_index, entries.c.digest).where(
    entries.c.writer == bindparam("of"), entries.c.record_id.in_(bindparam("ids", expanding=True))
)
_INSERT_ENTRIES = insert(entries)
_INSERT_SEALED = insert(sealed)
_INSERT_LEASES = insert(leases)
_END_LEASES = delete(leases).where(
    leases.c.writer == bindparam("of"), leases.c.call_id.in_(bindparam("calls", expanding=True))
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The newest signed tree."""

    size: int
    root: bytes
    checkpoint: str


async def read_head(connection: AsyncConnection, *, lock: bool = False) -> Head | None:
    """Return the head, or None before the log began. With `lock`, other writers wait until this one commits."""
    row = (await connection.execute(_LOCK_HEAD if lock else _READ_HEAD)).one_or_none()
    return None if row is None else Head(size=row.size, root=row.root, checkpoint=row.checkpoint)


async def create_head(connection: AsyncConnection, new: Head) -> None:
    """Begin the log; the database's `IntegrityError` says that another replica did."""
    values = {"id": _HEAD_ID, "size": new.size, "root": new.root, "checkpoint": new.checkpoint}
    await connection.execute(insert(head).values(values))


async def swap_head(connection: AsyncConnection, old: Head, new: Head) -> None:
    """Replace `old` by `new`; raises `LogCorrupt` if `old` is not the head, which the lock should rule out."""
    values = {"size": new.size, "root": new.root, "checkpoint": new.checkpoint}
    result = await connection.execute(_SWAP_HEAD, {"old_size": old.size, "old_root": old.root, **values})
    if result.rowcount != 1:
        raise LogCorrupt("the head changed under its lock")


async def find_keys(
    connection: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Return (index, digest) by (writer, record id) of those of `keys` that are in the log."""
    found: dict[tuple[str, str], tuple[int, bytes]] = {}
    for writer in {writer for writer, _ in keys}:
        ids = [record_id for of, record_id in keys if of == writer]
        rows = await connection.execute(_FIND_KEYS, {"of": writer, "ids": ids})
        found |= {(writer, record_id): (index, digest) for record_id, index, digest in rows}
    return found


async def find_leases(connection: AsyncConnection, indices: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return (writer, call id) of those of `indices` whose calls still have no end."""
    if not indices:
        return {}
    query = select(leases.c.entry_index, leases.c.writer, leases.c.call_id)
    rows = await connection.execute(query.where(leases.c.entry_index.in_(indices)))
    return {index: (writer, call_id) for index, writer, call_id in rows}


async def insert_entries(connection: AsyncConnection, drafts: Sequence[tuple[int, Draft]]) -> None:
    """Write entries at their indices, with their sealed parts, and open and end leases in their order."""
    rows = [
        {
            "entry_index": index,
            "time": draft.time,
            "writer": draft.entry.writer,
            "record_id": draft.entry.record_id,
            "digest": draft.digest,
            "leaf": draft.leaf,
            "leaf_hash": draft.leaf_hash,
            **{name: getattr(draft.entry, name) or None for name in TEXT_FIELDS},
        }
        for index, draft in drafts
    ]
    await connection.execute(_INSERT_ENTRIES, rows)
    parts = [
        {"entry_index": index, "name": p.name, "pseudonym": p.pseudonym, "ciphertext": p.ciphertext}
        for index, draft in drafts
        for p in draft.entry.sealed
    ]
    if parts:
        await connection.execute(_INSERT_SEALED, parts)
    await _update_leases(connection, drafts)


async def _update_leases(connection: AsyncConnection, drafts: Sequence[tuple[int, Draft]]) -> None:
    opened: dict[int, dict[str, Any]] = {}
    ended: set[tuple[str, str]] = set()
    closed: set[int] = set()
    for index, draft in drafts:
        entry = draft.entry
        if draft.closes is not None:
            closed.add(draft.closes)
        elif entry.kind in END_KINDS and entry.call_id:
            call = (entry.writer, entry.call_id)
            ended.add(call)
            opened = {i: row for i, row in opened.items() if (row["writer"], row["call_id"]) != call}
        if entry.lease_expires is not None:
            expires = to_micros(entry.lease_expires)
            opened[index] = {
                "entry_index": index,
                "writer": entry.writer,
                "call_id": entry.call_id,
                "expires": expires,
            }
    for writer in {writer for writer, _ in ended}:
        calls = [call_id for of, call_id in ended if of == writer]
        await connection.execute(_END_LEASES, {"of": writer, "calls": calls})
    if closed:
        await connection.execute(delete(leases).where(leases.c.entry_index.in_(closed)))
    if opened:
        await connection.execute(_INSERT_LEASES, list(opened.values()))


RECORD_COLUMNS = (
    entries.c.entry_index,
    entries.c.time,
    entries.c.writer,
    entries.c.record_id,
    entries.c.leaf,
    entries.c.leaf_hash,
    *(entries.c[name] for name in TEXT_FIELDS),
)


def to_record(row: Row[Any]) -> Record:
    """Return a row of `RECORD_COLUMNS`; raises `LogCorrupt` if its leaf is not the one that was hashed."""
    if hash_leaf(row.leaf) != row.leaf_hash:
        raise LogCorrupt(f"entry {row.entry_index} was altered in the store")
    return Record(
        index=row.entry_index,
        time=from_micros(row.time),
        writer=row.writer,
        record_id=row.record_id,
        leaf=row.leaf,
        leaf_hash=row.leaf_hash,
        fields={name: value for name in TEXT_FIELDS if (value := getattr(row, name))},
    )

"""The ledger's rows, inside a transaction that the caller holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Any

from sqlalchemy import Row, Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.ledger import Changes, Counter, Held, Ledger
from services.policy_guard.tables import counters, from_micros, request_ids, reservations, to_micros
from services.policy_guard.upsert import put


async def read_counters(connection: AsyncConnection, keys: Collection[str] | None = None) -> dict[str, Counter]:
    """Return the counters of `keys` that exist, or all."""
    query = select(counters) if keys is None else select(counters).where(counters.c.key.in_(keys))
    return {row.key: _to_counter(row) for row in await connection.execute(query)}


async def read_reservations(connection: AsyncConnection, calls: Collection[str] | None = None) -> dict[str, Held]:
    """Return the reservations of `calls` that exist, or all."""
    query = select(reservations) if calls is None else select(reservations).where(reservations.c.call_id.in_(calls))
    return {row.call_id: _to_held(row) for row in await connection.execute(query)}


async def read_requests(connection: AsyncConnection, keys: Collection[bytes]) -> dict[bytes, int]:
    """Return when those of `keys` that were used may be used again."""
    rows = await connection.execute(select(request_ids).where(request_ids.c.key.in_(keys)))
    return {row.key: to_micros(row.forget_at) for row in rows}


async def stream_requests(connection: AsyncConnection) -> AsyncIterator[bytes]:
    """Yield every key that was used."""
    async with connection.stream_scalars(select(request_ids.c.key)) as keys:
        async for key in keys:
            yield key


async def write_changes(connection: AsyncConnection, ledger: Ledger, changes: Changes) -> None:
    """Make the rows that `changes` names equal to the ledger as it is when this is called."""
    # All rows are made before the first wait, in which the ledger may go on: they must be of one moment.
    rows: list[tuple[Table, list[dict[str, Any]]]] = [
        (
            counters,
            [
                {
                    "key": key,
                    "window": counter.window,
                    "slots": {str(slot): units for slot, units in counter.slots.items()},
                    "forget_at": from_micros(counter.forget_at),
                }
                for key in sorted(changes.counters)
                if (counter := ledger.counters.get(key)) is not None
            ],
        ),
        (
            reservations,
            [
                {
                    "call_id": call_id,
                    "tokens": held.tokens,
                    "charges": [list(charge) for charge in held.charges],
                    "expires_at": from_micros(held.expires_at),
                    "settled": held.settled,
                    "forget_at": from_micros(held.forget_at),
                }
                for call_id in sorted(changes.reservations)
                if (held := ledger.reservations.get(call_id)) is not None
            ],
        ),
        (
            request_ids,
            [{"key": key, "forget_at": from_micros(at)} for key, at in sorted(changes.requests.items())],
        ),
    ]
    for table, changed in rows:
        await put(connection, table, changed)


async def forget_rows(connection: AsyncConnection, now: int) -> None:
    """Delete what no longer counts."""
    for table in (counters, reservations, request_ids):
        await connection.execute(delete(table).where(table.c.forget_at <= from_micros(now)))


def _to_counter(row: Row[Any]) -> Counter:
    return Counter(window=row.window, slots={int(slot): units for slot, units in row.slots.items()})


def _to_held(row: Row[Any]) -> Held:
    return Held(
        tokens=row.tokens,
        charges=[(key, slot) for key, slot in row.charges],
        expires_at=to_micros(row.expires_at),
        forget_at=to_micros(row.forget_at),
        settled=row.settled,
    )

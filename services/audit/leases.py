"""Closes calls whose end never came: the model server died, and nobody is left to say so."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter
from sqlalchemy import select

from services.audit.entry import INTERRUPTED, Entry, Record, format_time, from_micros, to_micros
from services.audit.log import Log
from services.audit.store import RECORD_COLUMNS, to_record
from services.audit.tables import entries, leases
from shared.records.store import Records

CLOSED = Counter("bastide_log_leases_closed_total", "Calls closed INTERRUPTED because their end never came.")
_PAGE = 256


@dataclass(frozen=True, kw_only=True)
class _Lapsed:
    opened: Record
    expires: int


class Leases:
    """The calls that are open. Their leases live in the store, so that a restart forgets none."""

    def __init__(self, records: Records, log: Log, *, writer: str = "audit", append_seconds: float = 10.0) -> None:
        """Close into `log`, by its clock, as `writer`, the same for all replicas; the rest bounds each append."""
        self._records = records
        self._log = log
        self._writer = writer
        self._append_seconds = append_seconds

    async def close_lapsed(self) -> int:
        """Append `interrupted` for each call whose lease has lapsed, once over all replicas; return how many.

        An end that is recorded later is appended all the same: the log then tells both. Raises
        `AuditUnavailable` or `RecordsUnavailable`; what was not closed is closed by a later call.
        """
        closed = 0
        while lapsed := await self._lapsed():
            for item in lapsed:
                appended = await self._log.close_lease(
                    _interruption(item, self._writer), item.opened.index, within=self._append_seconds
                )
                if appended is not None:
                    closed += 1
                    CLOSED.inc()
        return closed

    async def _lapsed(self) -> list[_Lapsed]:
        query = (
            select(leases.c.expires, *RECORD_COLUMNS)
            .join(entries, entries.c.entry_index == leases.c.entry_index)
            .where(leases.c.expires <= to_micros(self._log.clock()))
            .order_by(leases.c.expires)
            .limit(_PAGE)
        )
        async with self._records.read() as connection:
            rows = await connection.execute(query)
            return [_Lapsed(opened=to_record(row), expires=row.expires) for row in rows]


def _interruption(item: _Lapsed, writer: str) -> Entry:
    """The same bytes from every replica, so that the log takes it once."""
    opened = item.opened
    return Entry(
        writer=writer,
        record_id=f"{INTERRUPTED}-{opened.index}",
        kind=INTERRUPTED,
        data=(
            {
                "authorised_index": opened.index,
                "authorised_leaf_hash": opened.leaf_hash.hex(),
                "authorised_record_id": opened.record_id,
                "lease_expired": format_time(from_micros(item.expires)),
                "writer": opened.writer,
            }
        ),
        call_id=opened.fields.get("call_id", ""),
        decision_id=opened.fields.get("decision_id", ""),
        tenant=opened.fields.get("tenant", ""),
        principal=opened.fields.get("principal", ""),
        model=opened.fields.get("model", ""),
        method=opened.fields.get("method", ""),
        outcome=INTERRUPTED,
    )

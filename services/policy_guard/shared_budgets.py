"""Budgets of any number of replicas: counted in PostgreSQL, where an advisory lock orders them.

Each replica has one task that does whatever waits in one transaction, so that waiting is shared as well.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.budget_lag import Lag
from services.policy_guard.budget_rows import (
    forget_rows,
    read_counters,
    read_requests,
    read_reservations,
    write_changes,
)
from services.policy_guard.claim import Claim, Reservation, TooManyReservations
from services.policy_guard.ledger import Ledger
from services.policy_guard.tables import from_micros, to_micros
from shared.errors import Error
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records

MAX_WAITING = 4096
MAX_GROUP = 256
_FORGET_EVERY = 60 * 1_000_000
# Any constant will do: PostgreSQL's advisory locks are numbers, one space for each database.
_LOCK = text(
    "SELECT pg_advisory_xact_lock(7089073951207450724), "
    # A budget is not worth a wait for the disk; a crash of the database loses under a second of it.
    "set_config('synchronous_commit', 'off', true)"
)

_logger = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Operation:
    call_id: str
    counters: Collection[str] = ()
    request_key: bytes | None = None
    apply: Callable[[Ledger, int], Any]
    done: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class SharedBudgets:
    """See `Budgets`."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep budgets in `records`, a PostgreSQL database."""
        self._records = records
        self._clock = clock
        self._forgotten_at = 0
        self._lag = Lag()
        self._queue: deque[_Operation] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        self._worker = asyncio.create_task(self._work(), name="budget-worker")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do what waits, refuse what comes, and end."""
        self._closing = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker

    async def reserve(self, claim: Claim) -> Reservation:
        """See `Budgets`."""
        granted, expires_at = await self._submit(
            claim.call_id,
            lambda ledger, now: ledger.reserve(claim, now),
            counters=claim.counters.keys(),
            request_key=claim.request_key,
        )
        return Reservation(max_new_tokens=granted, expires_at=from_micros(expires_at))

    async def renew(self, call_id: str, lease: dt.timedelta) -> dt.datetime:
        """See `Budgets`."""
        micros = lease // dt.timedelta(microseconds=1)
        return from_micros(await self._submit(call_id, lambda ledger, now: ledger.renew(call_id, micros, now)))

    async def settle(self, call_id: str, tokens: int) -> int:
        """See `Budgets`."""
        return await self._submit(call_id, lambda ledger, now: ledger.settle(call_id, tokens, now))

    async def _submit(
        self,
        call_id: str,
        apply: Callable[[Ledger, int], T],
        *,
        counters: Collection[str] = (),
        request_key: bytes | None = None,
    ) -> T:
        if self._closing or self._worker is None or self._worker.done():
            raise RecordsUnavailable("budgets are not open")
        if len(self._queue) >= MAX_WAITING:
            raise TooManyReservations("too many calls wait for their budget", retry_after=1.0)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(
            _Operation(call_id=call_id, counters=counters, request_key=request_key, apply=apply, done=done)
        )
        self._lag.begin()
        self._arrived.set()
        return await done

    async def _work(self) -> None:
        group: list[_Operation] = []
        try:
            while self._queue or not self._closing:
                if not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                group = [self._queue.popleft() for _ in range(min(MAX_GROUP, len(self._queue)))]
                await self._do(group)
                self._lag.reach(self._queue[0].since if self._queue else None)
        finally:
            self._closing = True
            for operation in (*group, *self._queue):
                _refuse(operation)

    async def _do(self, group: Sequence[_Operation]) -> None:
        # Whoever went away while waiting wants nothing any more.
        wanted = [operation for operation in group if not operation.done.done()]
        now = to_micros(self._clock())
        forget = now - self._forgotten_at >= _FORGET_EVERY
        try:
            async with self._records.write() as connection:
                await connection.execute(_LOCK)
                if forget:
                    await forget_rows(connection, now)
                ledger = await _load(connection, wanted)
                outcomes = [_apply(operation, ledger, now) for operation in wanted]
                await write_changes(connection, ledger, ledger.take_changes())
        except Exception as error:  # noqa: BLE001 - whatever it is, every waiter is told and the next group starts afresh
            _logger.error("budget_group_failed", operations=len(wanted), error=type(error).__name__)
            for operation in wanted:
                _refuse(operation)
            return
        if forget:
            self._forgotten_at = now
        for operation, outcome in zip(wanted, outcomes, strict=True):
            if operation.done.done():
                continue
            if isinstance(outcome, Error):
                operation.done.set_exception(outcome)
            else:
                operation.done.set_result(outcome)


async def _load(connection: AsyncConnection, operations: Sequence[_Operation]) -> Ledger:
    """Return as much of the ledger as `operations` touch."""
    held = await read_reservations(connection, {operation.call_id for operation in operations})
    keys = {key for operation in operations for key in operation.counters}
    keys |= {key for reservation in held.values() for key, _ in reservation.charges}
    requests = {operation.request_key for operation in operations if operation.request_key is not None}
    return Ledger(
        counters=await read_counters(connection, keys) if keys else {},
        reservations=held,
        requests=await read_requests(connection, requests) if requests else {},
    )


def _apply(operation: _Operation, ledger: Ledger, now: int) -> Any:
    try:
        return operation.apply(ledger, now)
    except Error as error:
        return error


def _refuse(operation: _Operation) -> None:
    if not operation.done.done():
        operation.done.set_exception(RecordsUnavailable("budgets cannot be stored"))

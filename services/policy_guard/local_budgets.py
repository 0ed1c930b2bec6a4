"""Budgets of the one process that may open a SQLite database: counted in memory, written behind.

A reservation answers in microseconds; one task writes what changed, grouped. A crash loses at most what the last
group would have held. Once the store is `max_lag` behind, claims are refused until it has caught up.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from typing import Self

import structlog

from services.policy_guard.budget_lag import Lag
from services.policy_guard.budget_rows import (
    forget_rows,
    read_counters,
    read_requests,
    read_reservations,
    stream_requests,
    write_changes,
)
from services.policy_guard.claim import Claim, RepeatedRequest, Reservation, TooManyReservations
from services.policy_guard.ledger import REQUEST_ID_KEPT, Ledger
from services.policy_guard.request_filter import RequestFilter
from services.policy_guard.tables import from_micros, to_micros
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records

MAX_RESERVATIONS = 100_000
_GROUP_SECONDS = 0.05
_RETRY_SECONDS = 0.25
_FORGET_EVERY = 60 * 1_000_000

_logger = structlog.get_logger(__name__)


class LocalBudgets:
    """See `Budgets`."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime], max_lag: float = 2.0) -> None:
        """Keep budgets in `records`, which MUST be opened with `exclusive`; `max_lag` is in seconds."""
        self._records = records
        self._clock = clock
        self._max_lag = max_lag
        self._ledger = Ledger()
        self._filter = RequestFilter(period=REQUEST_ID_KEPT, now=to_micros(clock()))
        self._checking: set[bytes] = set()
        # Fewer than the connections there are, so that questions never keep the writer from writing.
        self._lookups = asyncio.Semaphore(2)
        self._lag = Lag()
        self._forgotten_at = 0
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Load what counts. Raises `RecordsUnavailable`."""
        now = to_micros(self._clock())
        async with self._records.read() as connection:
            self._ledger.counters = await read_counters(connection)
            self._ledger.reservations = await read_reservations(connection)
            async for key in stream_requests(connection):
                self._filter.add(key, now)
        self._writer = asyncio.create_task(self._write(), name="budget-writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is left; raises `RecordsUnavailable` if that fails."""
        self._closing.set()
        self._changed.set()
        if self._writer is not None:
            await self._writer

    async def reserve(self, claim: Claim) -> Reservation:
        """See `Budgets`."""
        key = claim.request_key
        # Memory holds request ids until they are written, the store those of a whole day.
        if key is None or key in self._ledger.requests or not self._filter.may_hold(key):
            return self._reserve(claim)
        if key in self._checking:
            raise RepeatedRequest("the request_id was used before")
        self._checking.add(key)
        try:
            async with self._lookups, self._records.read() as connection:
                used = await read_requests(connection, [key])
            if used.get(key, 0) > to_micros(self._clock()):
                raise RepeatedRequest("the request_id was used before")
            return self._reserve(claim)
        finally:
            self._checking.discard(key)

    async def renew(self, call_id: str, lease: dt.timedelta) -> dt.datetime:
        """See `Budgets`."""
        self._check_open()
        expires_at = self._ledger.renew(call_id, lease // dt.timedelta(microseconds=1), to_micros(self._clock()))
        self._note_change()
        return from_micros(expires_at)

    async def settle(self, call_id: str, tokens: int) -> int:
        """See `Budgets`."""
        self._check_open()
        settled = self._ledger.settle(call_id, tokens, to_micros(self._clock()))
        self._note_change()
        return settled

    def _reserve(self, claim: Claim) -> Reservation:
        self._check_open()
        if self._lag.seconds() > self._max_lag:
            raise RecordsUnavailable("budgets cannot be stored")
        if len(self._ledger.reservations) >= MAX_RESERVATIONS:
            raise TooManyReservations("too many calls are in flight", retry_after=1.0)
        micros = to_micros(self._clock())
        granted, expires_at = self._ledger.reserve(claim, micros)
        if claim.request_key is not None:
            self._filter.add(claim.request_key, micros)
        self._note_change()
        return Reservation(max_new_tokens=granted, expires_at=from_micros(expires_at))

    def _check_open(self) -> None:
        if self._writer is None or self._writer.done() or self._closing.is_set():
            raise RecordsUnavailable("budgets are not open")

    def _note_change(self) -> None:
        self._lag.begin()
        self._changed.set()

    async def _write(self) -> None:
        while not self._closing.is_set():
            await self._changed.wait()
            # A group costs about the same as a change: wait for more of them.
            await self._pause(_GROUP_SECONDS)
            self._changed.clear()
            try:
                await self._write_group()
            except Exception as error:  # noqa: BLE001 - whatever it is, claims are refused until a later group succeeds
                _logger.error("budget_write_failed", error=type(error).__name__)
                self._changed.set()
                await self._pause(_RETRY_SECONDS)
        await self._write_group()
        self._lag.reach(None)

    async def _write_group(self) -> None:
        started = time.monotonic()
        now = to_micros(self._clock())
        changes = self._ledger.take_changes()
        forget = now - self._forgotten_at >= _FORGET_EVERY
        if forget:
            self._ledger.forget(now)
        try:
            async with self._records.write() as connection:
                if forget:
                    await forget_rows(connection, now)
                await write_changes(connection, self._ledger, changes)
        except BaseException:
            self._ledger.restore_changes(changes)
            raise
        if forget:
            self._forgotten_at = now
        for key in changes.requests:
            self._ledger.requests.pop(key, None)
        self._lag.reach(started if self._changed.is_set() else None)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

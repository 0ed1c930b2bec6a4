"""Budgets of the one process that may open a SQLite database: counted in memory, written behind.

A reservation answers in microseconds; one task writes what changed, grouped. A crash loses at most what the last
group would have held. Once the store is `max_lag` behind, claims are refused until it has caught up.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Self

import structlog

from services.policy_guard.budget_rows import (
    forget_rows,
    read_counters,
    read_requests,
    read_reservations,
    write_changes,
)
from services.policy_guard.claim import Claim, RepeatedRequest, Reservation, TooManyReservations
from services.policy_guard.ledger import Ledger
from services.policy_guard.tables import from_micros, to_micros
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records

MAX_RESERVATIONS = 100_000
_GROUP_SECONDS = 0.02
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
        self._checking: set[bytes] = set()
        self._behind_since: float | None = None
        self._forgotten_at = 0
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Load what counts. Raises `RecordsUnavailable`."""
        async with self._records.read() as connection:
            self._ledger.counters = await read_counters(connection)
            self._ledger.reservations = await read_reservations(connection)
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
        self._check_writer()
        if len(self._ledger.reservations) >= MAX_RESERVATIONS:
            raise TooManyReservations("too many calls are in flight", retry_after=1.0)
        if claim.request_key is None:
            return self._reserve(claim)
        if claim.request_key in self._checking or claim.request_key in self._ledger.requests:
            raise RepeatedRequest("the request_id was used before")
        self._checking.add(claim.request_key)
        try:
            # Memory holds request ids until they are written, the store those of a whole day.
            async with self._records.read() as connection:
                used = await read_requests(connection, [claim.request_key], to_micros(self._clock()))
            if used:
                raise RepeatedRequest("the request_id was used before")
            return self._reserve(claim)
        finally:
            self._checking.discard(claim.request_key)

    async def renew(self, call_id: str, lease: dt.timedelta) -> dt.datetime:
        """See `Budgets`."""
        self._check_writer()
        expires_at = self._ledger.renew(call_id, lease // dt.timedelta(microseconds=1), to_micros(self._clock()))
        self._note_change()
        return from_micros(expires_at)

    async def settle(self, call_id: str, tokens: int) -> int:
        """See `Budgets`. Settles in memory also while the store is behind: it can only give budget back."""
        settled = self._ledger.settle(call_id, tokens, to_micros(self._clock()))
        self._note_change()
        return settled

    def _reserve(self, claim: Claim) -> Reservation:
        granted, expires_at = self._ledger.reserve(claim, to_micros(self._clock()))
        self._note_change()
        return Reservation(max_new_tokens=granted, expires_at=from_micros(expires_at))

    def _check_writer(self) -> None:
        if self._writer is None or self._writer.done() or self._closing.is_set():
            raise RecordsUnavailable("budgets are not open")
        if self._behind_since is not None:
            lag = asyncio.get_running_loop().time() - self._behind_since
            if lag > self._max_lag:
                raise RecordsUnavailable("budgets cannot be stored")

    def _note_change(self) -> None:
        if self._behind_since is None:
            self._behind_since = asyncio.get_running_loop().time()
        self._changed.set()

    async def _write(self) -> None:
        while not self._closing.is_set():
            await self._changed.wait()
            # A group costs about the same as a change: wait for more of them.
            await self._pause(_GROUP_SECONDS)
            self._changed.clear()
            try:
                await self._write_group()
            except RecordsUnavailable as error:
                _logger.error("budget_write_failed", error=type(error.__cause__).__name__)
                self._changed.set()
                await self._pause(_RETRY_SECONDS)
        await self._write_group()

    async def _write_group(self) -> None:
        started = asyncio.get_running_loop().time()
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
        self._ledger.requests -= changes.requests.keys()
        self._behind_since = started if self._changed.is_set() else None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

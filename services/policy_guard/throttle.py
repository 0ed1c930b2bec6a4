"""Slows down guessing at passwords and codes, without letting a guesser lock anybody out.

Each attempt is charged before it is judged, so that many at once gain nothing, to the person it names and to the
workload that makes it. A person's workloads, through which they signed in with both factors before, are charged apart
from strangers and to the person alone (device cookies: OWASP, "Slow Down Online Guessing Attacks with Device
Cookies"): guesses from elsewhere, and other people's slips on a shared workload, never delay them there. Delays double
from one second up to a bound; failures are forgotten one by one (a leaky bucket); both are kept across restarts.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, case, delete, exists, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.tables import Instant, guesses, known_workloads
from services.policy_guard.upsert import insert_missing, put
from services.policy_guard.users import is_subject
from shared.errors import ResourceExhausted
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records


class TooManyGuesses(ResourceExhausted):
    """Too many attempts failed; `retry_after` says when the next is judged."""

    reason = "TOO_MANY_GUESSES"


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """`free` failures cost nothing; then 1, 2, 4 ... seconds pass before the next attempt, never over `longest`.

    One failure is forgotten every `leak`, however many come meanwhile.
    """

    free: int
    longest: dt.timedelta
    leak: dt.timedelta

    def delay(self, failures: int) -> dt.timedelta:
        """Return the wait after so many failures."""
        if failures < self.free:
            return dt.timedelta(0)
        return min(self.longest, dt.timedelta(seconds=1 << (failures - self.free)))

    def one_more(self, failures: int, since: dt.datetime, now: dt.datetime) -> tuple[int, dt.datetime]:
        """Return the failures with another one, and up to when forgetting is counted in: whole leaks after `since`."""
        forgotten = max(0, (now - since) // self.leak)
        if forgotten >= failures:
            return 1, now
        return min(failures - forgotten + 1, self.free + _COUNTED_BEYOND_FREE), since + forgotten * self.leak


_TRIES = 8
# More change no delay, and would only have to be forgotten again.
_COUNTED_BEYOND_FREE = 10
# One workload may be the gateway of many people.
_OF_WORKLOAD = Backoff(free=30, longest=dt.timedelta(minutes=1), leak=dt.timedelta(minutes=2))
_OF_SUBJECT = Backoff(free=5, longest=dt.timedelta(minutes=5), leak=dt.timedelta(minutes=12))
# By then every failure is forgotten.
_EMPTY_AFTER = max((item.free + _COUNTED_BEYOND_FREE) * item.leak for item in (_OF_WORKLOAD, _OF_SUBJECT))


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One failure held against `key` until the attempt turns out well, and the delay that it put there."""

    key: bytes
    backoff: Backoff
    blocked_until: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that was charged and may be judged."""

    subject: str
    spiffe_id: str
    subject_key: bytes
    charges: tuple[Charge, ...]


class Throttle:
    """Counts failed attempts at proving who one is."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime]) -> None:
        """Count in `records`."""
        self._records = records
        self._clock = clock

    async def begin(self, subject: str, spiffe_id: str) -> Attempt:
        """Charge an attempt on `subject` through the workload `spiffe_id`, whether they exist or not.

        Callers MUST call `succeed` if it turns out well; otherwise the charge stands. Raises `TooManyGuesses`, and
        `RecordsUnavailable`: then callers MUST refuse.
        """
        now = self._clock()
        async with self._records.write() as connection:
            if await _is_known(connection, subject, spiffe_id):
                subject_key = _key("known", subject, spiffe_id)
                charged = {subject_key: _OF_SUBJECT}
            else:
                subject_key = _key("stranger", subject)
                charged = {subject_key: _OF_SUBJECT, _key("workload", spiffe_id): _OF_WORKLOAD}
            charges = await _charge(connection, charged, now)
            # Rows that another attempt holds can wait; waiting for them here could be a deadlock.
            old = select(guesses.c.key).where(guesses.c.last_at < now - _EMPTY_AFTER).with_for_update(skip_locked=True)
            await connection.execute(delete(guesses).where(guesses.c.key.in_(old)))
        return Attempt(subject=subject, spiffe_id=spiffe_id, subject_key=subject_key, charges=charges)

    async def succeed(self, attempt: Attempt, *, proven: bool) -> None:
        """Take the charge back. With `proven`, that is with both factors, forgive the person's other failures too.

        A password alone forgives nothing, or it would buy guesses at the second factor; nor does a person's success
        forgive the workload, or one account would buy guesses at all others.
        """
        now = self._clock()
        async with self._records.write() as connection:
            for charge in attempt.charges:
                if proven and charge.key == attempt.subject_key:
                    await connection.execute(delete(guesses).where(guesses.c.key == charge.key))
                else:
                    await _take_back(connection, charge, now)
            if proven:
                await remember(connection, attempt.subject, attempt.spiffe_id)


async def remember(connection: AsyncConnection, subject: str, spiffe_id: str) -> None:
    """Make the workload one of the person's: MUST only be called when they proved both factors through it."""
    await insert_missing(connection, known_workloads, [{"subject": subject, "spiffe_id": spiffe_id}])


async def _charge(connection: AsyncConnection, charged: dict[bytes, Backoff], now: dt.datetime) -> tuple[Charge, ...]:
    found = await _locked(connection, list(charged), now)
    blocked_until: dt.datetime = max(row.blocked_until for row in found.values())
    if blocked_until > now:
        raise TooManyGuesses("too many attempts failed", retry_after=(blocked_until - now).total_seconds())
    rows, charges = [], []
    # Sorted, so that two attempts that share a row cannot wait for each other, here and when it is taken back.
    for key, backoff in sorted(charged.items()):
        failures, since = backoff.one_more(found[key].failures, found[key].last_at, now)
        until = now + backoff.delay(failures)
        rows.append({"key": key, "failures": failures, "blocked_until": until, "last_at": since})
        charges.append(Charge(key=key, backoff=backoff, blocked_until=until))
    await put(connection, guesses, rows)
    return tuple(charges)


async def _locked(connection: AsyncConnection, keys: list[bytes], now: dt.datetime) -> dict[bytes, Row[Any]]:
    """Return the rows of `keys`, locked, made where there are none. Raises RecordsUnavailable if they always vanish."""
    fresh = {"failures": 0, "blocked_until": now, "last_at": now}
    query = select(guesses).where(guesses.c.key.in_(keys)).order_by(guesses.c.key).with_for_update()
    for _ in range(_TRIES):
        await insert_missing(connection, guesses, [{"key": key, **fresh} for key in keys])
        found = {row.key: row for row in await connection.execute(query)}
        # A row for whose lock this waited may be gone: whoever held it signed in and was forgiven.
        if len(found) == len(keys):
            return found
    raise RecordsUnavailable("the attempts could not be counted")


async def _is_known(connection: AsyncConnection, subject: str, spiffe_id: str) -> bool:
    if not is_subject(subject):
        return False
    known = known_workloads.select().where(
        known_workloads.c.subject == subject, known_workloads.c.spiffe_id == spiffe_id
    )
    return bool((await connection.execute(select(exists(known)))).scalar_one())


async def _take_back(connection: AsyncConnection, charge: Charge, now: dt.datetime) -> None:
    failures = guesses.c.failures - 1
    # A delay that somebody else's failure put there meanwhile stays.
    own = or_(failures < charge.backoff.free, guesses.c.blocked_until == literal(charge.blocked_until, Instant))
    unblocked = case((own, literal(now, Instant)), else_=guesses.c.blocked_until)
    changed = update(guesses).where(guesses.c.key == charge.key, guesses.c.failures > 0)
    await connection.execute(changed.values(failures=failures, blocked_until=unblocked))


def _key(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="replace")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()

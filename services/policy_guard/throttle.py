"""Slows down guessing at passwords and codes, without letting a guesser lock anybody out.

Each attempt is charged before it is judged, so that many at once gain nothing, to the workload that makes it and to
the person it names. A person's workloads, through which they signed in with both factors before, are charged apart
from strangers (device cookies: OWASP, "Slow Down Online Guessing Attacks with Device Cookies"): guesses from
elsewhere never delay them there. Delays double from one second up to a bound and are kept across restarts.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, case, delete, exists, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.tables import Instant, guesses, known_workloads
from services.policy_guard.upsert import insert_missing, put
from services.policy_guard.users import is_subject
from shared.errors import ResourceExhausted
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records

_FORGET = dt.timedelta(hours=1)


class TooManyGuesses(ResourceExhausted):
    """Too many attempts failed; `retry_after` says when the next is judged."""

    reason = "TOO_MANY_GUESSES"


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """`free` failures cost nothing; then 1, 2, 4 ... seconds pass before the next attempt, never over `longest`."""

    free: int
    longest: dt.timedelta

    def delay(self, failures: int) -> dt.timedelta:
        """Return the wait after so many failures in a row."""
        if failures < self.free:
            return dt.timedelta(0)
        return min(self.longest, dt.timedelta(seconds=1 << min(failures - self.free, 30)))


_TRIES = 8
# One workload may be the gateway of many people.
_OF_WORKLOAD = Backoff(free=30, longest=dt.timedelta(minutes=1))
_OF_SUBJECT = Backoff(free=5, longest=dt.timedelta(minutes=5))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that was charged and may be judged."""

    subject: str
    spiffe_id: str
    workload_key: bytes
    subject_key: bytes

    @property
    def charged(self) -> list[tuple[bytes, Backoff]]:
        """Whom it is charged to; sorted, so that two attempts that share one cannot wait for each other."""
        return sorted([(self.workload_key, _OF_WORKLOAD), (self.subject_key, _OF_SUBJECT)], key=lambda x: x[0])


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
            known = await _is_known(connection, subject, spiffe_id)
            attempt = Attempt(
                subject=subject,
                spiffe_id=spiffe_id,
                workload_key=_key("workload", spiffe_id),
                subject_key=_key("known", subject, spiffe_id) if known else _key("stranger", subject),
            )
            await _charge(connection, attempt, now)
            # Rows that another attempt holds can wait; waiting for them here could be a deadlock.
            old = select(guesses.c.key).where(guesses.c.last_at < now - _FORGET).with_for_update(skip_locked=True)
            await connection.execute(delete(guesses).where(guesses.c.key.in_(old)))
        return attempt

    async def succeed(self, attempt: Attempt, *, proven: bool) -> None:
        """Take the charge back. With `proven`, that is with both factors, forgive the person's other failures too.

        A password alone forgives nothing, or it would buy guesses at the second factor; nor does a person's success
        forgive the workload, or one account would buy guesses at all others.
        """
        now = self._clock()
        async with self._records.write() as connection:
            for key, backoff in attempt.charged:
                if proven and key == attempt.subject_key:
                    await connection.execute(delete(guesses).where(guesses.c.key == key))
                else:
                    await _take_back(connection, key, backoff, now)
            if proven:
                person = {"subject": attempt.subject, "spiffe_id": attempt.spiffe_id}
                await insert_missing(connection, known_workloads, [person])


async def _charge(connection: AsyncConnection, attempt: Attempt, now: dt.datetime) -> None:
    found = await _locked(connection, [key for key, _ in attempt.charged], now)
    blocked_until: dt.datetime = max(row.blocked_until for row in found.values())
    if blocked_until > now:
        raise TooManyGuesses("too many attempts failed", retry_after=(blocked_until - now).total_seconds())
    rows = []
    for key, backoff in attempt.charged:
        forgotten = found[key].last_at < now - _FORGET
        failures = 1 if forgotten else found[key].failures + 1
        until = now + backoff.delay(failures)
        rows.append({"key": key, "failures": failures, "blocked_until": until, "last_at": now})
    await put(connection, guesses, rows)


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


async def _take_back(connection: AsyncConnection, key: bytes, backoff: Backoff, now: dt.datetime) -> None:
    failures = guesses.c.failures - 1
    unblocked = case((failures < backoff.free, literal(now, Instant)), else_=guesses.c.blocked_until)
    changed = update(guesses).where(guesses.c.key == key, guesses.c.failures > 0)
    await connection.execute(changed.values(failures=failures, blocked_until=unblocked))


def _key(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="replace")
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()

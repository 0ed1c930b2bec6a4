"""Enrolment: a single-use code becomes a password and a second factor, both at once or not at all.

A code has 160 random bits, which nobody guesses: attempts are not throttled by name, or a stranger's would keep the
person out for as long as the code lives.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from services.policy_guard.enrolment_code import code_matches
from services.policy_guard.passwords import Passwords
from services.policy_guard.tables import credentials, enrolments, users
from services.policy_guard.throttle import remember
from services.policy_guard.totp import SecondFactors
from services.policy_guard.users import is_subject
from shared.errors import Unauthenticated
from shared.records.store import Records

_NO_CODE = bytes(32)


class EnrolmentRefused(Unauthenticated):
    """The subject, the code or the one-time password is wrong, or the code is used up or expired."""

    reason = "ENROLMENT_REFUSED"

    def __init__(self) -> None:
        """One message for every cause."""
        super().__init__("the name or code is wrong")


@dataclass(frozen=True, kw_only=True)
class ProvenCode:
    """An enrolment code whose holder proved the second factor that was begun with it."""

    subject: str
    pending: Row[Any]
    step: int


class Enrolment:
    """Takes a person from their enrolment code to their credentials."""

    def __init__(
        self,
        records: Records,
        passwords: Passwords,
        second_factors: SecondFactors,
        *,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """Keep credentials in `records`."""
        self._records = records
        self._passwords = passwords
        self._second_factors = second_factors
        self._clock = clock

    async def start(self, subject: str, code: str, password: str) -> str:
        """Take the password, which MUST have 12 to 256 characters, and return an `otpauth://` URI to show once.

        May be called again until `complete`; the last call counts. Raises `EnrolmentRefused`,
        `ResourceExhausted` when too many passwords are hashed at once, or `RecordsUnavailable`.
        """
        pending = await self._find(subject, code)
        hashed = await self._passwords.hash(password)
        secret = await asyncio.to_thread(self._second_factors.create, subject)
        begun = update(enrolments).where(enrolments.c.subject == subject, enrolments.c.code_hash == pending.code_hash)
        async with self._records.write() as connection:
            values = begun.values(password_hash=hashed, totp_secret=secret.sealed)
            if (await connection.execute(values)).rowcount != 1:
                raise EnrolmentRefused
        return secret.uri

    async def prove(self, subject: str, code: str, totp: str) -> ProvenCode:
        """Return the proof that whoever calls holds the code and the second factor begun with it.

        Nothing changes before `complete`. Raises as `start` does.
        """
        pending = await self._find(subject, code)
        if pending.totp_secret is None:
            raise EnrolmentRefused
        step = await asyncio.to_thread(
            self._second_factors.match, subject, pending.totp_secret, totp, self._clock()
        )  # fmt: skip
        if step is None:
            raise EnrolmentRefused
        return ProvenCode(subject=subject, pending=pending, step=step)

    async def complete(self, proven: ProvenCode, *, spiffe_id: str) -> None:
        """Use the code up: from now on the password and the second factor are the person's, and so is the workload.

        Raises `EnrolmentRefused` if the code was used or begun anew meanwhile, or `RecordsUnavailable`.
        """
        subject, pending = proven.subject, proven.pending
        used = delete(enrolments).where(
            enrolments.c.subject == subject,
            enrolments.c.code_hash == pending.code_hash,
            enrolments.c.totp_secret == pending.totp_secret,
        )
        row = {
            "subject": subject,
            "password_hash": pending.password_hash,
            "totp_secret": pending.totp_secret,
            "totp_step": proven.step,
        }
        async with self._records.write() as connection:
            if (await connection.execute(used)).rowcount != 1:
                raise EnrolmentRefused
            await connection.execute(insert(credentials).values(row))
            await remember(connection, subject, spiffe_id)

    async def _find(self, subject: str, code: str) -> Row[Any]:
        row = None
        if is_subject(subject):
            query = select(enrolments, users.c.disabled).join(users).where(enrolments.c.subject == subject)
            async with self._records.read() as connection:
                row = (await connection.execute(query)).one_or_none()
        right = code_matches(code, row.code_hash if row else _NO_CODE)
        if row is None or not right or row.disabled or row.expires_at <= self._clock():
            raise EnrolmentRefused
        return row

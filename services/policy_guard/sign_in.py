"""Signing in: password, and a second factor where one is given."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update

from services.policy_guard.passwords import Passwords
from services.policy_guard.tables import credentials, users
from services.policy_guard.throttle import Throttle
from services.policy_guard.totp import SecondFactors
from services.policy_guard.users import is_subject
from shared.errors import Unauthenticated
from shared.records.store import Records


class SignInRefused(Unauthenticated):
    """Something about it is wrong; what, is not said."""

    reason = "SIGN_IN_REFUSED"

    def __init__(self) -> None:
        """One message for every cause."""
        super().__init__("the name, password or code is wrong")


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """A person who proved themselves just now; `amr` as in RFC 8176."""

    subject: str
    tenant: str
    roles: tuple[str, ...]
    amr: tuple[str, ...]
    authenticated_at: dt.datetime


class SignIn:
    """Judges attempts; wrong names, passwords and codes and disabled people take the same path to one error."""

    def __init__(
        self,
        records: Records,
        passwords: Passwords,
        second_factors: SecondFactors,
        throttle: Throttle,
        *,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """Judge by the credentials in `records`."""
        self._records = records
        self._passwords = passwords
        self._second_factors = second_factors
        self._throttle = throttle
        self._clock = clock

    async def sign_in(self, subject: str, password: str, totp: str, *, spiffe_id: str) -> SignedIn:
        """Return who signed in through the workload `spiffe_id`; an empty `totp` gives `amr` without `mfa`.

        Raises `SignInRefused`, `TooManyGuesses`, `ResourceExhausted` when too many sign in at once, or
        `RecordsUnavailable`.
        """
        attempt = await self._throttle.begin(subject, spiffe_id)
        person = await self._find(subject)
        right = await self._passwords.verify(person.password_hash if person else None, password)
        now = self._clock()
        if totp:
            sealed = person.totp_secret if person else None
            step = await asyncio.to_thread(self._second_factors.match, subject, sealed, totp, now)
            # The step is used up only with the right password, or anybody could use up another's codes.
            right = right and step is not None and await self._use(person, step)
        if person is None or not right or person.disabled:
            raise SignInRefused
        await self._throttle.succeed(attempt, proven=bool(totp))
        return SignedIn(
            subject=subject,
            tenant=person.tenant,
            roles=tuple(person.roles),
            amr=("pwd", "otp", "mfa") if totp else ("pwd",),
            authenticated_at=now,
        )

    async def _find(self, subject: str) -> Row[Any] | None:
        if not is_subject(subject):
            return None
        query = select(
            users, credentials.c.password_hash, credentials.c.totp_secret
        ).join(credentials, credentials.c.subject == users.c.subject)  # fmt: skip
        async with self._records.read() as connection:
            return (await connection.execute(query.where(users.c.subject == subject))).one_or_none()

    async def _use(self, person: Row[Any] | None, step: int) -> bool:
        """Use the step up; False if it or a later one was used, or if the credentials changed meanwhile."""
        if person is None:
            return False
        used = (
            update(credentials)
            .where(
                credentials.c.subject == person.subject,
                credentials.c.password_hash == person.password_hash,
                credentials.c.totp_step < step,
            )
            .values(totp_step=step)
        )
        async with self._records.write() as connection:
            return (await connection.execute(used)).rowcount == 1

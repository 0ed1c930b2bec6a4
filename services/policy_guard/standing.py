"""What the register of people says of a caller now: a token lives for minutes, and roles can end sooner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cachetools import TTLCache
from sqlalchemy import select

from services.policy_guard.tables import credentials, users
from services.policy_guard.users import is_subject
from shared.identity.principal import Kind, Principal
from shared.records.store import Records

MAX_AGE_SECONDS = 1.0
_REMEMBERED = 10_000


class Standing:
    """Asked at every decision; the register is read at most once a second for each person."""

    def __init__(self, records: Records, *, clock: Callable[[], float]) -> None:
        """Read the register in `records`; `clock` counts seconds and never goes back."""
        self._records = records
        self._roles: TTLCache[str, frozenset[str] | None] = TTLCache(_REMEMBERED, MAX_AGE_SECONDS, timer=clock)

    async def of(self, principal: Principal) -> Principal:
        """Return `principal` with those of its roles that the register still gives, none if it lets them in no more.

        People whom the register does not know are another issuer's, and stay as their token says. Raises
        `RecordsUnavailable`.
        """
        subject = principal.subject
        if principal.kind is Kind.WORKLOAD or not is_subject(subject):
            return principal
        try:
            held = self._roles[subject]
        except KeyError:
            held = self._roles[subject] = await self._read(subject)
        if held is None:
            return principal
        return dataclasses.replace(principal, roles=tuple(role for role in principal.roles if role in held))

    def forget(self, subject: str) -> None:
        """Read the register again for a person who signs in: they may have more roles than a moment ago."""
        self._roles.pop(subject, None)

    async def _read(self, subject: str) -> frozenset[str] | None:
        query = (
            select(users.c.roles, users.c.disabled, credentials.c.subject.is_not(None).label("enrolled"))
            .outerjoin(credentials, credentials.c.subject == users.c.subject)
            .where(users.c.subject == subject)
        )
        async with self._records.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return frozenset(row.roles) if row.enrolled and not row.disabled else frozenset()

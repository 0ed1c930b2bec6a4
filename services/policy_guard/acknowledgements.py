"""Who accepted which version of the acceptable-use policy: anyone with a token, whoever signed them in."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from sqlalchemy import select

from services.policy_guard.tables import acknowledgements
from services.policy_guard.upsert import put
from shared.records.store import Records

_MAX_CACHED = 10_000


class Acknowledgements:
    """Answers from memory for those who accepted the version in force: it is asked on every call."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep acknowledgements in `records`."""
        self._records = records
        self._clock = clock
        self._cached: dict[str, str] = {}

    async def acknowledge(self, subject: str, version: str) -> None:
        """Record that `subject` accepts `version`, which MUST be the one in force. Raises `RecordsUnavailable`."""
        row = {"subject": subject, "version": version, "acknowledged_at": self._clock()}
        async with self._records.write() as connection:
            await put(connection, acknowledgements, [row])
        self._remember(subject, version)

    async def acknowledged(self, subject: str, *, in_force: str) -> str | None:
        """Return the version that `subject` accepted last, None if none. Raises `RecordsUnavailable`.

        Only `in_force` is answered from memory: any other answer may have changed at another replica.
        """
        if self._cached.get(subject) == in_force:
            return in_force
        query = select(acknowledgements.c.version).where(acknowledgements.c.subject == subject)
        async with self._records.read() as connection:
            version = (await connection.execute(query)).scalar_one_or_none()
        if version is not None:
            self._remember(subject, version)
        return version

    def _remember(self, subject: str, version: str) -> None:
        if len(self._cached) >= _MAX_CACHED:
            self._cached.clear()
        self._cached[subject] = version

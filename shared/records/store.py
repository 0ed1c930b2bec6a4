"""Transactions on a service's record store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

import asyncpg
from sqlalchemy import literal, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.records.errors import RecordsUnavailable
from shared.records.exclusive import ExclusiveLock
from shared.records.location import SQLITE_BEGIN, open_engines, parse_location, sqlite_path


class Records:
    """A database and its connections. Use as an async context manager, or call `close`.

    `exclusive` refuses a second process on a SQLite file (`DatabaseInUse`) and means nothing to PostgreSQL.
    """

    def __init__(self, url: str, *, exclusive: bool = False, deadline: float = 10.0, pool_size: int = 5) -> None:
        """Prepare the store at `url`; `deadline` is in seconds, and holds for each transaction as a whole.

        Raises `RecordsMisconfigured` or `DatabaseInUse`.
        """
        location = parse_location(url)
        path = sqlite_path(location)
        self._lock = ExclusiveLock(path) if exclusive and path is not None else None
        self._deadline = deadline
        self._engine, self._write_engine = open_engines(location, deadline=deadline, pool_size=pool_size)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction for reading. Raises `RecordsUnavailable` on any fault or past the deadline."""
        async with self._transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that commits when the block ends, durably, and rolls back when it raises.

        On SQLite it holds the one write lock from its start, and statements run on the event loop: callers MUST
        keep each short, by key or within bounds. Raises `RecordsUnavailable`, after which the
        commit may or may not have happened, so that callers MUST make a retry harmless; the database's
        `IntegrityError` passes through for callers that can tell what it means.
        """
        async with self._transaction(self._write_engine) as connection:
            yield connection

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with asyncio.timeout(self._deadline), engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except (
            DBAPIError,
            PoolTimeout,
            TimeoutError,
            OSError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
        ) as e:
            raise RecordsUnavailable("the record store did not complete the work") from e

    async def check(self) -> None:
        """Raise `RecordsUnavailable` unless the database answers."""
        async with self.read() as connection:
            await connection.execute(select(literal(1)))

    async def scrub(self) -> None:
        """Push deleted bytes out of SQLite's write-ahead log; PostgreSQL's VACUUM does its own in time.

        Callers MUST call it after deleting what must not be recoverable. Raises `RecordsUnavailable` when a
        long reader keeps the log alive.
        """
        if self.dialect != "sqlite":
            return
        autocommit = self._engine.execution_options(**{SQLITE_BEGIN: "SELECT 1"})
        async with self._transaction(autocommit) as connection:
            result = await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            busy = result.one()[0]
        if busy:
            raise RecordsUnavailable("the write-ahead log is in use")

    async def close(self) -> None:
        """Close every connection and let go of the file."""
        await self._engine.dispose()
        await self._write_engine.dispose()
        if self._lock is not None:
            self._lock.release()

    async def __aenter__(self) -> Records:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

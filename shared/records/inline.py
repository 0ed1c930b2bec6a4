"""SQLite for short transactions: statements run where they are called, and only what waits for a disk leaves.

The standard asynchronous driver sends a statement through a thread three or four times (cursor, execute, fetch,
close), which costs some thirty times what a keyed statement takes. Here a transaction leaves the event loop twice: to
begin, where it may wait for the write lock, and to end, where it waits for the disk. Callers MUST keep statements
short: each blocks the loop while it runs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

# Beyond this many rows a statement is no longer short.
_INLINE_ROWS = 64
# Threads of their own: whatever fills the event loop's default ones must not keep records from being written.
_DISK = concurrent.futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="records")


async def _on_disk(work: Callable[..., object], *arguments: object) -> None:
    """Run `work` on a thread. A cancel waits until that thread has let go of the connection, which takes one at a time.

    Rolling back or closing beside a commit that still runs would crash the process.
    """
    working = _DISK.submit(work, *arguments)
    done = asyncio.wrap_future(working)
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        working.cancel()
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done])
        if not done.cancelled():
            done.exception()  # whoever cancelled does not ask for it
        raise


class InlineCursor:
    """A cursor as SQLAlchemy's asynchronous adapter drives it: every method is awaitable and returns at once."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        self.arraysize = 1

    @property
    def description(self) -> Any:
        """See PEP 249, as for the following."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    async def __aenter__(self) -> InlineCursor:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> InlineCursor:
        if statement.startswith("BEGIN"):
            await _on_disk(self._cursor.execute, statement)
        else:
            self._cursor.execute(statement, parameters)
        return self

    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> InlineCursor:
        rows = list(rows)
        if len(rows) > _INLINE_ROWS:
            await _on_disk(self._cursor.executemany, statement, rows)
        else:
            self._cursor.executemany(statement, rows)
        return self

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()


class InlineConnection:
    """A connection as SQLAlchemy's asynchronous adapter drives it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Wrap a connection that was opened in autocommit mode and without a thread check."""
        self._connection = connection
        self.isolation_level: Literal[None] = None

    def cursor(self) -> InlineCursor:
        return InlineCursor(self._connection.cursor())

    async def commit(self) -> None:
        if self._connection.in_transaction:
            await _on_disk(self._connection.commit)

    async def rollback(self) -> None:
        self._connection.rollback()

    async def close(self) -> None:
        self._connection.close()

    def stop(self) -> None:
        """Close without waiting for anything: for a connection whose owner was cancelled."""
        self._connection.close()

    async def create_function(self, name: str, arguments: int, function: Callable[..., Any], **options: bool) -> None:
        self._connection.create_function(name, arguments, function, **options)


async def connect(path: str) -> InlineConnection:
    """Open the database at `path`."""
    return InlineConnection(
        await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
    )

"""The inline SQLite connection: one thread at a time, whatever is cancelled."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest

from shared.records import inline


class Slow:
    """A connection whose commit goes on until it is let go, and that knows who used it meanwhile."""

    in_transaction = True

    def __init__(self) -> None:
        self.committing, self.go_on = threading.Event(), threading.Event()
        self.seen: list[str] = []

    def commit(self) -> None:
        self.committing.set()
        assert self.go_on.wait(10)
        self.seen.append("committed")

    def rollback(self) -> None:
        self.seen.append("rolled back")


async def test_nobody_touches_a_connection_before_a_cancelled_commit_is_over() -> None:
    slow = Slow()
    connection = inline.InlineConnection(slow)  # type: ignore[arg-type]

    async def work() -> None:
        try:
            await connection.commit()
        finally:
            await connection.rollback()

    task = asyncio.create_task(work())
    assert await asyncio.to_thread(slow.committing.wait, 10)
    for _ in range(3):  # however often
        task.cancel()
        await asyncio.wait([task], timeout=0.05)
    assert slow.seen == []
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.seen == ["committed", "rolled back"]


async def test_what_waits_for_a_thread_is_cancelled_without_being_run() -> None:
    held, ran = threading.Event(), threading.Event()
    blockers = [asyncio.create_task(inline._on_disk(held.wait, 10)) for _ in range(inline._DISK._max_workers)]
    waiting = asyncio.create_task(inline._on_disk(ran.set))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 5)
    held.set()
    await asyncio.gather(*blockers)
    assert not ran.is_set()


async def test_what_the_thread_raises_is_raised() -> None:
    connection = await inline.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError):
        await connection.cursor().execute("BEGIN NONSENSE")
    await connection.close()

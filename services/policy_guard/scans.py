"""Where long texts are scanned: off the event loop, on threads of their own, one at a time for each principal.

A principal's long texts wait for one another and not for anybody else's, and never for the threads that other work
needs. What is scanned of a call that has ended is still the principal's turn: giving up buys nobody a second one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import weakref
from collections.abc import Callable
from typing import TypeVar

INLINE_CHARACTERS = 2048
"""Below this many characters a scan is cheaper than handing it to a thread."""
_THREADS = 2

T = TypeVar("T")


class Scans:
    """The threads and the turns. Callers MUST `close` it."""

    def __init__(self) -> None:
        """Start no thread before there is a long text."""
        self._threads = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="scan")
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def run(self, principal: str, characters: int, scan: Callable[[], T]) -> T:
        """Return what `scan` of that many `characters` returns, in `principal`'s turn if they are many.

        Raises what `scan` raises. The caller's deadline bounds the wait; the scanner's bounds `scan`.
        """
        if characters <= INLINE_CHARACTERS:
            return scan()
        turn = self._turns.setdefault(principal, asyncio.Lock())
        await turn.acquire()
        try:
            scanning = asyncio.get_running_loop().run_in_executor(self._threads, scan)
        except BaseException:
            turn.release()
            raise
        scanning.add_done_callback(lambda done: _over(turn, done))
        return await asyncio.shield(scanning)

    def close(self) -> None:
        """Begin no scan any more; those that run end by their own deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _over(turn: asyncio.Lock, done: asyncio.Future[T]) -> None:
    turn.release()
    if not done.cancelled():
        done.exception()  # told to whoever still waits; asyncio need not print it

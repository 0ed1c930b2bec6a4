"""Admission: how much work an engine takes on at once, and how much may wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from prometheus_client import Gauge

from shared import errors

CALLS = Gauge("bastide_backend_calls", "Calls that generate (`running`) or wait for their turn (`waiting`).", ["state"])
_RUNNING, _WAITING = CALLS.labels("running"), CALLS.labels("waiting")

_RETRY_AFTER = 1.0


class Admission:
    """Shares out a fixed number of cache pages and places, first come, first served.

    Nobody overtakes: a request too large for what is free holds the line until enough is given back, so that
    large requests are served at all. For use on one event loop.
    """

    def __init__(self, *, pages: int, places: int, max_waiting: int) -> None:
        """Offer `pages` to at most `places` holders at once; at most `max_waiting` more may wait."""
        self._free_pages = pages
        self._free_places = places
        self._max_waiting = max_waiting
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, pages: int) -> AsyncIterator[None]:
        """Hold a place and `pages` for the length of the block; waits, so callers MUST set a deadline.

        `pages` MUST not exceed the total. Raises `ResourceExhausted` at once when the line is full.
        """
        await self._take(pages)
        try:
            yield
        finally:
            self._give_back(pages)

    async def _take(self, pages: int) -> None:
        if not self._line and self._fits(pages):
            self._admit_one(pages)
            return
        if len(self._line) >= self._max_waiting:
            raise errors.ResourceExhausted("the model is busy", retry_after=_RETRY_AFTER)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (pages, turn)
        self._line.append(entry)
        _WAITING.inc()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_admit` may have dropped it already
                    self._line.remove(entry)
                    _WAITING.dec()
                self._admit()
            else:  # admitted and cancelled in the same turn of the loop
                self._give_back(pages)
            raise

    def _fits(self, pages: int) -> bool:
        return self._free_places > 0 and pages <= self._free_pages

    def _give_back(self, pages: int) -> None:
        self._free_pages += pages
        self._free_places += 1
        _RUNNING.dec()
        self._admit()

    def _admit_one(self, pages: int) -> None:
        self._free_pages -= pages
        self._free_places -= 1
        _RUNNING.inc()

    def _admit(self) -> None:
        while self._line:
            pages, turn = self._line[0]
            if not turn.cancelled():
                if not self._fits(pages):
                    return
                self._admit_one(pages)
                turn.set_result(None)
            self._line.popleft()
            _WAITING.dec()

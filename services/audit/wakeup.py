"""Tells whoever waits that the log grew."""

from __future__ import annotations

import asyncio


class Wakeup:
    """A signal for many waiters, none of whom misses one that came while it worked.

    Other replicas' commits make no signal here: waiters MUST look again after `seconds` as well.
    """

    def __init__(self) -> None:
        """Start at generation 0."""
        self._generation = 0
        self._event = asyncio.Event()

    @property
    def generation(self) -> int:
        """Goes up with each `notify`. Callers read it before they look at the log."""
        return self._generation

    def notify(self) -> None:
        """Wake every waiter."""
        self._generation += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, since: int, seconds: float) -> None:
        """Return once the generation is beyond `since`, or after `seconds`."""
        if self._generation != since:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return

"""Joining what a backend generates faster than the guard inspects it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from services.model_server.backends import Piece
from services.model_server.backends.deadline import expiring

MAX_COALESCED = 32 * 1024


async def coalesced(
    pieces: AsyncGenerator[Piece, None], deadline: float, *, interval: float, at_once: bool
) -> AsyncGenerator[Piece, None]:
    """Join what was generated while the consumer was busy and for `interval` seconds since it last took something.

    So a slow hop never slows generation, and many small pieces cost few hops. With `at_once` the first piece does not
    wait. Raises DeadlineExceeded when nothing came by `deadline`, whatever the backend makes of its own.
    """
    loop = asyncio.get_running_loop()
    waiting: list[Piece] = []
    arrived, due, room = asyncio.Event(), asyncio.Event(), asyncio.Event()
    room.set()

    async def pump() -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await room.wait()
                waiting.append(piece)
                if sum(len(item.text) for item in waiting) > MAX_COALESCED:
                    room.clear()
                    due.set()
                arrived.set()

    def ended(_: object) -> None:
        arrived.set()
        due.set()

    task = asyncio.create_task(pump(), name="generation")
    task.add_done_callback(ended)
    following = loop.time() + (0.0 if at_once else interval)
    try:
        while True:
            async with expiring(deadline):
                await arrived.wait()
            arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(following, deadline)):
                    await due.wait()
            if waiting:
                taken, waiting[:] = list(waiting), []
                if not task.done():
                    due.clear()
                room.set()
                following = loop.time() + interval
                yield Piece(
                    text="".join(item.text for item in taken),
                    tokens=sum(item.tokens for item in taken),
                    finish=taken[-1].finish,
                    prompt_tokens=taken[-1].prompt_tokens,
                )
            if task.done() and not waiting:
                await task
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

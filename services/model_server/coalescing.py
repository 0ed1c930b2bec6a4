"""Joining what a backend generates faster than the guard inspects it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from services.model_server.backends import Piece
from services.model_server.backends.deadline import expiring

MAX_COALESCED = 32 * 1024


async def coalesced(pieces: AsyncGenerator[Piece, None], deadline: float) -> AsyncGenerator[Piece, None]:
    """Join what was generated while the consumer was busy, so that a slow hop never slows generation.

    Raises DeadlineExceeded when nothing came by `deadline`, whatever the backend makes of its own.
    """
    waiting: list[Piece] = []
    arrived = asyncio.Event()
    room = asyncio.Event()
    room.set()

    async def pump() -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await room.wait()
                waiting.append(piece)
                if sum(len(item.text) for item in waiting) > MAX_COALESCED:
                    room.clear()
                arrived.set()

    task = asyncio.create_task(pump(), name="generation")
    task.add_done_callback(lambda _: arrived.set())
    try:
        while True:
            async with expiring(deadline):
                await arrived.wait()
            arrived.clear()
            if waiting:
                taken, waiting[:] = list(waiting), []
                room.set()
                yield Piece(
                    text="".join(item.text for item in taken),
                    tokens=sum(item.tokens for item in taken),
                    finish=taken[-1].finish,
                )
            if task.done() and not waiting:
                await task
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

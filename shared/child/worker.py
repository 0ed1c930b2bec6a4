"""A Python function in a process of its own, called with a deadline.

    parent                                   child (`shared.child.serve`)
      spawn, limits, setup message ----------> target(setup) -> handler
      <---------------------------------------- ready
      request ---------------------------------> handler(request)
      <---------------------------------------- reply

One request at a time. A child that misses a deadline, dies, or breaks the framing is killed and replaced; the
next call waits for the replacement. When a caller is cancelled, the exchange goes on to its end without it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict, dataclass
from typing import Self

from shared import errors
from shared.child import ChildFailed, ChildUnavailable, frames
from shared.child.supervisor import Restart, Supervisor

OK = b"\x00"
FAILED = b"\x01"

_BROKEN = (asyncio.IncompleteReadError, OSError, frames.FrameError, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one child."""

    max_request_bytes: int = 16 << 20
    """Longest request, and longest setup message."""
    max_reply_bytes: int = 4 << 20
    """Longest reply; a longer one counts as a broken child."""
    memory_bytes: int = 1 << 30
    """Address space (RLIMIT_AS) of the child."""


class Worker:
    """A supervised child that answers `call`. Callers MUST `close()` it; `async with` starts and closes."""

    def __init__(
        self,
        target: str,
        *,
        setup: bytes = b"",
        limits: Limits | None = None,
        restart: Restart | None = None,
    ) -> None:
        """Name the child's code: `target` is `module:function`, and `function(setup)` returns the handler.

        `target` MUST be a constant of the program, never input.
        """
        self._target = target
        self._setup = setup
        self._limits = limits or Limits()
        self._turn = asyncio.Lock()
        self._exchanges: set[asyncio.Task[bytes]] = set()
        self._supervisor = Supervisor(target, spawn=self._spawn, probe=self._prepare, restart=restart or Restart())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the child and wait until `target` took `setup`. Raises ChildUnavailable where it does not."""
        await self._supervisor.start()

    async def call(self, request: bytes, *, deadline: float) -> bytes:
        """Return the handler's reply to `request`. `deadline` is a time of the running loop's clock.

        Raises ChildUnavailable when no whole reply came by then, ChildFailed when the handler raised, and
        MessageTooLarge for a request over the limit.
        """
        if len(request) > self._limits.max_request_bytes:
            raise errors.MessageTooLarge("the request to the child process is over its limit")
        exchange = asyncio.create_task(self._exchange(request, deadline))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._forget)
        return await asyncio.shield(exchange)

    async def close(self) -> None:
        """Kill and reap the child; calls under way end in ChildUnavailable. Idempotent."""
        await self._supervisor.close()
        for exchange in tuple(self._exchanges):
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)

    def _forget(self, exchange: asyncio.Task[bytes]) -> None:
        self._exchanges.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # a caller that was cancelled will not read it

    async def _exchange(self, request: bytes, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                process = await self._supervisor.process()
                try:
                    reply = await self._round_trip(process, request)
                except BaseException:
                    self._supervisor.condemn(process)
                    raise
        except (*_BROKEN, asyncio.CancelledError):
            # Only `close` cancels an exchange, and then too its caller is owed an answer.
            raise ChildUnavailable("the child process gave no answer in time") from None
        if reply[:1] != OK:
            raise ChildFailed("the child process could not handle the request")
        return reply[1:]

    async def _round_trip(self, process: Process, message: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(frames.encode(message, maximum=self._limits.max_request_bytes))
        await process.stdin.drain()
        reply = await frames.read(process.stdout, maximum=self._limits.max_reply_bytes + 1)
        if reply[:1] not in {OK, FAILED}:
            raise frames.FrameError("a reply without a status")
        return reply

    async def _spawn(self) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *(
                "-P",
                "-m",
                "shared.child.serve",
                self._target,
                str(os.getpid()),
                json.dumps(asdict(self._limits)),
            ),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
            process_group=0,
        )

    async def _prepare(self, process: Process) -> None:
        if await self._round_trip(process, self._setup) != OK:
            raise ChildFailed("the child process refused its setup")

"""Keeps one program running: started, probed, waited for, and started again with bounded backoff."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from shared.child import ChildUnavailable

_log = structlog.get_logger(__name__)

EXITS = Counter("bastide_child_exits_total", "Supervised programs that ended by themselves or were killed.", ["child"])


@dataclass(frozen=True, kw_only=True)
class Restart:
    """How fast a program comes back. The first restart is immediate, later ones wait twice as long each."""

    first_delay: float = 0.05
    """Seconds before the second restart in a row."""
    max_delay: float = 5.0
    """Longest wait in seconds. A process that lived this long starts the series anew."""
    start_timeout: float = 10.0
    """Seconds in which a new process must have passed its probe."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after `failures` (>= 1) quick ends in a row."""
        return 0.0 if failures <= 1 else min(self.first_delay * 2.0 ** min(failures - 2, 32), self.max_delay)


class Supervisor:
    """One supervised program. Callers MUST `close()` it; nothing it started outlives that."""

    def __init__(
        self,
        name: str,
        *,
        spawn: Callable[[], Awaitable[Process]],
        probe: Callable[[Process], Awaitable[None]],
        restart: Restart,
    ) -> None:
        """Watch what `spawn` starts. `probe` returns once it serves, or raises; it is cut at the timeout."""
        self._name = name
        self._spawn = spawn
        self._probe = probe
        self._restart = restart
        self._process: Process | None = None
        self._serving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the program and wait until it serves. Raises ChildUnavailable where it does not, in time."""
        process = await self._launch()
        self._task = asyncio.create_task(self._run(process), name=f"supervise {self._name}")

    async def process(self) -> Process:
        """Return the serving process, waiting for a restart under way. Callers MUST bound the wait."""
        if self._task is None or self._task.done():
            raise ChildUnavailable(f"{self._name} is not running")
        while True:
            await self._serving.wait()
            process = self._process
            if process is not None and process.returncode is None:
                return process
            self._serving.clear()

    def condemn(self, process: Process) -> None:
        """Kill `process`, if it is still the serving one; a fresh one follows."""
        if process is self._process:
            self._serving.clear()
            _kill(process)

    async def close(self) -> None:
        """End the program and wait until it is reaped. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _launch(self) -> Process:
        try:
            process = await self._spawn()
        except OSError:
            raise ChildUnavailable(f"{self._name} could not be started") from None
        try:
            async with asyncio.timeout(self._restart.start_timeout):
                await self._probe(process)
        except BaseException as failure:
            await _end(process)
            if isinstance(failure, Exception):
                raise ChildUnavailable(f"{self._name} did not come up") from None
            raise
        self._process = process
        self._serving.set()
        return process

    async def _run(self, process: Process) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            started = clock()
            try:
                await process.wait()
            finally:
                self._serving.clear()
                await _end(process)
            EXITS.labels(self._name).inc()
            _log.warning("child_exited", child=self._name, returncode=process.returncode)
            failures = 1 if clock() - started >= self._restart.max_delay else failures + 1
            while True:
                await asyncio.sleep(self._restart.delay(failures))
                try:
                    process = await self._launch()
                    break
                except ChildUnavailable:
                    failures += 1
                    _log.error("child_not_started", child=self._name, failures=failures)
            _log.info("child_restarted", child=self._name)


def _kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def _end(process: Process) -> None:
    _kill(process)
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()

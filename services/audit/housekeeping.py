"""What the log does besides being asked: publishing, and closing lapsed calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog
from prometheus_client import Gauge

from services.audit.errors import LogCorrupt, WrongLog
from services.audit.leases import Leases
from services.audit.log import Log
from services.audit.publisher import Publisher
from shared.errors import Error

# A folder that cannot be written is no reason to refuse records; a log that is not the one published is.
WRONG = frozenset({LogCorrupt.reason, WrongLog.reason})

_logger = structlog.get_logger(__name__)

FAULTS = Gauge("bastide_housekeeping_faults", "1 while `publish` or `leases` fails.", ["task"])


class Housekeeping:
    """Runs both while it is entered; leaving it publishes what was appended last.

    `faults` holds the reason of what last failed, by task (`publish`, `leases`), until it succeeds again. While the
    published log is not a prefix of the stored one nothing is appended.
    """

    def __init__(
        self, log: Log, publisher: Publisher, leases: Leases, *, publish_seconds: float, lease_seconds: float
    ) -> None:
        """Publish at most every `publish_seconds`, look for lapsed leases every `lease_seconds`."""
        self._log = log
        self._publisher = publisher
        self._leases = leases
        self._publish_seconds = publish_seconds
        self._lease_seconds = lease_seconds
        self._tasks: list[asyncio.Task[None]] = []
        self.faults: dict[str, str] = {}

    async def __aenter__(self) -> Housekeeping:
        """Publish once, raising as `Publisher.publish` does: a log that cannot be published must not start."""
        await self._publisher.publish()
        self._tasks = [
            asyncio.create_task(self._publish(), name="audit-publisher"),
            asyncio.create_task(self._close_leases(), name="audit-leases"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, then publish a last time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._publisher.publish()

    async def _publish(self) -> None:
        while True:
            generation = self._log.grown.generation
            working = asyncio.create_task(self._attempt("publish", self._publisher.publish))
            try:
                await asyncio.shield(working)
            finally:
                # The thread that writes cannot be cancelled; the last publication must not write beside it.
                await asyncio.wait([working])
            fault = self.faults.get("publish", "")
            self._log.halt(fault if fault in WRONG else "")
            await asyncio.sleep(self._publish_seconds)
            await self._log.grown.wait(generation, self._publish_seconds)

    async def _close_leases(self) -> None:
        while True:
            await self._attempt("leases", self._leases.close_lapsed)
            await asyncio.sleep(self._lease_seconds)

    async def _attempt(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - housekeeping outlives any fault and reports it as unhealthy
            self.faults[name] = error.reason if isinstance(error, Error) else Error.reason
            FAULTS.labels(name).set(1)
            _logger.error("audit_housekeeping_failed", task=name, error=type(error).__name__)
        else:
            self.faults.pop(name, None)
            FAULTS.labels(name).set(0)

"""Background work at intervals, owned by a context."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from prometheus_client import Counter

from shared.errors import Error

log = structlog.get_logger()

FAILURES = Counter("bastide_periodic_failures_total", "Rounds of background work that failed.", ["work"])


@contextlib.asynccontextmanager
async def repeating(work: Callable[[], Awaitable[object]], *, seconds: float, name: str) -> AsyncIterator[None]:
    """Run `work` every `seconds` within the context; a failure is logged, and the next round tries again.

    `work` MUST have deadlines of its own.
    """

    failures = FAILURES.labels(name)  # shown from the start, or the first would be no increase

    async def loop() -> None:
        while True:
            try:
                await work()
            except Error as error:
                failures.inc()
                log.warning("periodic_work_failed", work=name, reason=error.reason)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            # A defect in one round must not end all later ones unseen; a panic in a library's Rust is no Exception.
            except BaseException as error:  # noqa: BLE001
                failures.inc()
                log.error("periodic_work_broken", work=name, error=error)
            await asyncio.sleep(seconds)

    task = asyncio.create_task(loop(), name=name)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

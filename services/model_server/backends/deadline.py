"""Deadlines of one call, which is awaited in many places."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from shared import errors


@contextlib.asynccontextmanager
async def expiring(when: float) -> AsyncIterator[None]:
    """Turn the event loop's time `when` into `DeadlineExceeded` for whatever the block awaits.

    A generator MUST NOT yield inside the block: the time that its consumer takes is not the block's.
    """
    try:
        async with asyncio.timeout_at(when):
            yield
    except TimeoutError:
        raise errors.DeadlineExceeded("the answer was not complete in time") from None

"""Deadlines of one call, which is awaited in many places."""

from __future__ import annotations

import asyncio
from types import TracebackType

from shared import errors


class expiring:  # noqa: N801  (it reads as what it is: `async with expiring(deadline)`)
    """Turn the event loop's time `when` into `DeadlineExceeded` for whatever the block awaits.

    A generator MUST NOT yield inside the block: the time that its consumer takes is not the block's.
    """

    def __init__(self, when: float) -> None:
        """Expire at `when`."""
        self._timeout = asyncio.timeout_at(when)

    async def __aenter__(self) -> None:
        """Begin."""
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End. Raises DeadlineExceeded when it was past the time."""
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise errors.DeadlineExceeded("the answer was not complete in time") from None

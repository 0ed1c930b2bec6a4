"""Bounds the calls in flight, so that no kind of call and no caller can take the places of the others.

Methods that need no token, streams that need none, calls of the suite's own services and guarded methods each have
places of their own, and one caller gets only so many of them: whoever holds streams open, or opens them and sends
nothing, stands in their own way.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from shared import errors

PUBLIC_CALLS = 256
"""Calls without a token in flight that are answered once, and `PUBLIC_CALLS_OF_ONE` those of one certificate."""
PUBLIC_CALLS_OF_ONE = 16
PUBLIC_STREAMS = 64
"""Streams without a token, which stay for long, and `PUBLIC_STREAMS_OF_ONE` those of one certificate."""
PUBLIC_STREAMS_OF_ONE = 4


class Busy(errors.ResourceExhausted):
    """There is no place for this call now."""


class Places:
    """The places of one kind of call."""

    def __init__(self, total: int, *, of_one: int) -> None:
        """Have `total` places, of which one caller takes at most `of_one`."""
        self._free = total
        self._of_one = of_one
        self._taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for the time of the context. Raises Busy; nobody waits."""
        if self._free < 1:
            raise Busy("too many calls in flight", retry_after=1.0)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @contextlib.contextmanager
    def share(self, caller: str) -> Iterator[None]:
        """Count a place as `caller`'s for the time of the context. Raises Busy; nobody waits."""
        if self._taken[caller] >= self._of_one:
            raise Busy("too many calls of this caller in flight", retry_after=1.0)
        self._taken[caller] += 1
        try:
            yield
        finally:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]

"""Background work goes on whatever ends one of its rounds."""

from __future__ import annotations

import asyncio

import pytest

from shared import errors
from shared.periodic import repeating
from tests.metrics import scraped


class Panic(BaseException):
    """What pyo3 raises where a library written in Rust panics: no `Exception`."""


@pytest.mark.parametrize("fault", [errors.Unavailable("away"), ValueError("defect"), Panic("rust")])
async def test_a_round_that_fails_is_counted_and_the_next_one_runs(fault: BaseException) -> None:
    rounds = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise fault
        again.set()

    async with repeating(work, seconds=0, name="test"):
        before = scraped("bastide_periodic_failures_total", work="test")
        async with asyncio.timeout(10):
            await again.wait()
        assert scraped("bastide_periodic_failures_total", work="test") == before + 1


async def test_the_work_ends_with_its_context() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with repeating(work, seconds=0, name="test"):
        await begun.wait()
    assert ended.is_set()

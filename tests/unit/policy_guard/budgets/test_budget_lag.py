"""How far the store is behind the budgets, as a scrape shows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.budgets import open_budgets
from shared.records.store import Records
from tests.metrics import scraped
from tests.unit.policy_guard.budgets.test_budgets import claim, tokens
from tests.unit.policy_guard.clock import Clock


class Gated(Records):
    """A record store whose writes wait for `go`, and tell when they are asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self.asked.set()
        await self.go.wait()
        async with super().write() as connection:
            yield connection


def lag() -> float:
    return scraped("bastide_budget_lag_seconds")


async def test_the_lag_grows_from_the_oldest_change_until_the_store_has_it(url: str, clock: Clock) -> None:
    async with Gated(url) as records:
        async with open_budgets(records, clock=clock) as budgets:
            assert lag() == 0
            first = asyncio.create_task(budgets.reserve(claim(tokens(100))))
            await records.asked.wait()
            earlier = lag()
            assert earlier > 0
            second = asyncio.create_task(budgets.reserve(claim(tokens(100))))
            await asyncio.sleep(0)
            assert lag() > earlier
            records.go.set()
            await asyncio.gather(first, second)
        assert lag() == 0

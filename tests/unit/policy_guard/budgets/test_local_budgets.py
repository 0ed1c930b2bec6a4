"""What only the budgets in memory can get wrong: what happens while the store is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.policy_guard import local_budgets
from services.policy_guard.claim import RepeatedRequest
from services.policy_guard.local_budgets import LocalBudgets
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.request_filter import RequestFilter
from shared.records.migrations import migrate
from shared.records.store import Records
from tests.unit.policy_guard.budgets.test_budgets import claim, tokens
from tests.unit.policy_guard.clock import Clock


async def test_a_request_id_that_is_being_looked_up_for_one_claim_is_taken_for_the_next(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, answered = local_budgets.read_requests, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        found = await real(*arguments)
        asked.set()
        await answered.wait()
        return found

    monkeypatch.setattr(local_budgets, "read_requests", slow)
    monkeypatch.setattr(RequestFilter, "may_hold", lambda *_: True)  # as it may of any key
    url = f"sqlite:///{tmp_path}/guard.db"
    await asyncio.to_thread(migrate, url, SCRIPTS)
    async with Records(url, exclusive=True) as records, LocalBudgets(records, clock=clock) as budgets:
        first = asyncio.create_task(budgets.reserve(claim(tokens(1000), request_id="r1")))
        await asyncio.wait_for(asked.wait(), 10)
        second = asyncio.create_task(budgets.reserve(claim(tokens(1000), request_id="r1")))
        done, _ = await asyncio.wait([second], timeout=10)
        answered.set()
        assert done, "the second claim asks the store as well"
        with pytest.raises(RepeatedRequest):
            await second
        assert (await first).max_new_tokens == 10

"""What a call costs its caller: what was used, however it ended, and never more than the budget."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from services.policy_guard.session import BudgetSession
from shared import errors
from tests.integration.stage import Stage, question, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("stage")]

BOTH = pytest.mark.parametrize("how", ["unary", "stream"])
FIRST = "The first part of it. "
PROMPT = sum(len(message.content.split()) for message in question().messages)


async def test_used_up_budget_says_when_to_come_back(stage: Stage) -> None:
    assert (await stage.ask(person=stage.budgeted)).code is grpc.StatusCode.OK
    asked = len(stage.backend.asked)
    outcome = await stage.ask("stream", person=stage.budgeted)
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
    assert outcome.retry
    assert outcome.text == ""
    assert len(stage.backend.asked) == asked
    await stage.recorded(outcome.call_id, "REFUSED")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What sessions settled, in order; leaving one after its end settles nothing more."""
    seen: list[int] = []
    settle = BudgetSession.settle

    async def watched(self: BudgetSession, tokens: int) -> None:
        if self._open:
            seen.append(tokens)
        await settle(self, tokens)

    monkeypatch.setattr(BudgetSession, "settle", watched)
    return seen


@BOTH
async def test_a_failed_backend_costs_its_caller_what_was_generated(stage: Stage, how: str, settled: list[int]) -> None:
    stage.backend.says(errors.BackendUnavailable("away"))
    outcome = await stage.ask(how)
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    await until(lambda: settled, "the session is settled")
    assert settled == [PROMPT]


async def test_a_cancelled_call_costs_its_caller_what_was_generated(stage: Stage, settled: list[int]) -> None:
    stage.backend.says(FIRST, asyncio.Event())
    before = stage.guard.passed["released"]
    asking = asyncio.create_task(stage.ask("stream"))
    await until(lambda: stage.guard.passed["released"] > before, "the first text is released")
    asking.cancel()
    await until(lambda: settled, "the session is settled")
    assert settled == [PROMPT + 1]


@BOTH
async def test_a_remote_servers_count_of_the_prompt_is_settled_recorded_and_told(
    stage: Stage, how: str, settled: list[int]
) -> None:
    outcome = await stage.ask(how, question(model="remote"))
    assert outcome.end is not None, (outcome.reason, outcome.details)
    assert (outcome.end.usage.prompt_tokens, outcome.end.usage.completion_tokens) == (9, 7)
    recorded = json.loads(outcome.receipt.leaf)["record"]["data"]["inference"]["usage"]
    assert recorded == {"prompt_tokens": 9, "completion_tokens": 7}
    assert settled == [16]

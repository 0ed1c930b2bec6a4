"""What every kind of budgets promises, on the database it is for."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.budgets import Budgets, open_budgets
from services.policy_guard.claim import (
    BudgetExhausted,
    CallInFlight,
    Claim,
    Consumer,
    RepeatedRequest,
    UnknownReservation,
)
from services.policy_guard.local_budgets import LocalBudgets
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.result import BudgetScope, BudgetUnit, Limit
from services.policy_guard.session import BudgetSession
from services.policy_guard.tables import counters, request_ids, reservations
from shared.errors import InvalidArgument
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records
from tests.stores import Stores
from tests.unit.policy_guard.clock import Clock

ADA = Consumer(tenant="acme", principal="ada", model="small")
_calls = count()


def tokens(limit: int, scope: BudgetScope = BudgetScope.TENANT, window: int = 3600) -> Limit:
    return Limit(scope=scope, unit=BudgetUnit.TOKENS, limit=limit, window_seconds=window)


def requests(limit: int, scope: BudgetScope = BudgetScope.PRINCIPAL, window: int = 3600) -> Limit:
    return Limit(scope=scope, unit=BudgetUnit.REQUESTS, limit=limit, window_seconds=window)


def claim(*limits: Limit, new: int = 10, prompt: int = 0, consumer: Consumer = ADA, **more: Any) -> Claim:
    settings = {"call_id": f"call-{next(_calls)}", "lease": dt.timedelta(minutes=1), **more}
    return Claim(consumer=consumer, limits=limits, prompt_tokens=prompt, max_new_tokens=new, **settings)


@pytest.fixture
async def budgets(records: Records, clock: Clock) -> AsyncIterator[Budgets]:
    async with open_budgets(records, clock=clock) as opened:
        yield opened


async def room(budgets: Budgets, limit: Limit, consumer: Consumer = ADA) -> int:
    """Return how many tokens `limit` leaves, by reserving them and giving them back."""
    probe = claim(limit, new=10**9, consumer=consumer)
    try:
        left = (await budgets.reserve(probe)).max_new_tokens
    except BudgetExhausted:
        return 0
    await budgets.settle(probe.call_id, 0)
    return left


async def test_a_claim_within_its_limits_gets_all_it_asks_for(budgets: Budgets, clock: Clock) -> None:
    reservation = await budgets.reserve(claim(tokens(100), requests(1), new=30, prompt=70))
    assert reservation.max_new_tokens == 30
    assert reservation.expires_at == clock() + dt.timedelta(minutes=1)


async def test_new_tokens_are_lowered_to_what_the_tightest_limit_leaves(budgets: Budgets) -> None:
    limits = (tokens(100), tokens(80, BudgetScope.MODEL), tokens(90, BudgetScope.PRINCIPAL))
    assert (await budgets.reserve(claim(*limits, new=50, prompt=60))).max_new_tokens == 20


async def test_one_token_of_room_is_enough_and_none_is_not(budgets: Budgets) -> None:
    assert (await budgets.reserve(claim(tokens(61), new=50, prompt=60))).max_new_tokens == 1
    with pytest.raises(BudgetExhausted) as refusal:
        await budgets.reserve(claim(tokens(61), new=1))
    assert refusal.value.reason == "BUDGET_EXHAUSTED"
    assert refusal.value.retry_after is not None
    assert 3600 <= refusal.value.retry_after <= 3660


async def test_room_comes_back_when_the_window_has_passed(budgets: Budgets, clock: Clock) -> None:
    await budgets.reserve(claim(tokens(10, window=60)))
    with pytest.raises(BudgetExhausted) as refusal:
        await budgets.reserve(claim(tokens(10, window=60)))
    assert refusal.value.retry_after is not None
    clock.advance(seconds=refusal.value.retry_after)
    await budgets.reserve(claim(tokens(10, window=60)))


async def test_requests_are_counted_by_call_and_not_given_back(budgets: Budgets) -> None:
    for _ in range(3):
        asked = claim(requests(3))
        await budgets.reserve(asked)
        await budgets.settle(asked.call_id, 0)
    with pytest.raises(BudgetExhausted):
        await budgets.reserve(claim(requests(3)))


async def test_scopes_count_whom_they_name(budgets: Budgets) -> None:
    others = {
        BudgetScope.TENANT: Consumer(tenant="other", principal="ada", model="small"),
        BudgetScope.PRINCIPAL: Consumer(tenant="acme", principal="bob", model="small"),
        BudgetScope.MODEL: Consumer(tenant="acme", principal="ada", model="large"),
    }
    for scope, other in others.items():
        await budgets.reserve(claim(tokens(10, scope)))
        assert await room(budgets, tokens(10, scope)) == 0
        assert await room(budgets, tokens(10, scope), other) == 10
    stranger = Consumer(tenant="other", principal="ada", model="small")
    for scope in BudgetScope:
        assert await room(budgets, tokens(10, scope), stranger) == 10


async def test_a_lowered_limit_binds_at_once(budgets: Budgets) -> None:
    await budgets.reserve(claim(tokens(100), new=50))
    with pytest.raises(BudgetExhausted):
        await budgets.reserve(claim(tokens(40), new=1))
    assert await room(budgets, tokens(60)) == 10


async def test_settling_gives_back_what_was_not_used_once(budgets: Budgets) -> None:
    asked = claim(tokens(100), new=60, prompt=20)
    await budgets.reserve(asked)
    assert await room(budgets, tokens(100)) == 20
    assert await budgets.settle(asked.call_id, 30) == 30
    assert await room(budgets, tokens(100)) == 70
    assert await budgets.settle(asked.call_id, 0) == 30
    assert await room(budgets, tokens(100)) == 70


async def test_a_call_that_used_more_than_it_reserved_is_charged_for_it(budgets: Budgets) -> None:
    asked = claim(tokens(100), new=10)
    await budgets.reserve(asked)
    assert await budgets.settle(asked.call_id, 25) == 25
    assert await room(budgets, tokens(100)) == 75


async def test_a_session_that_is_left_costs_what_was_granted_and_not_what_was_asked_for(budgets: Budgets) -> None:
    limit = tokens(1000)
    session = BudgetSession(budgets, claim(limit, new=32_768, prompt=100))
    assert await session.reserve() == 900
    await session.abandon()
    assert await room(budgets, limit) == 0
    raised = tokens(2000)
    assert await room(budgets, raised) == 1000


async def test_an_expired_lease_settles_the_whole_reservation(budgets: Budgets, clock: Clock) -> None:
    asked = claim(tokens(100), new=60)
    await budgets.reserve(asked)
    clock.advance(minutes=1)
    assert await budgets.settle(asked.call_id, 5) == 60
    assert await room(budgets, tokens(100)) == 40


async def test_a_renewed_lease_runs_on_and_an_ended_one_cannot_be_renewed(budgets: Budgets, clock: Clock) -> None:
    asked = claim(tokens(100), new=60)
    await budgets.reserve(asked)
    clock.advance(seconds=50)
    assert await budgets.renew(asked.call_id, dt.timedelta(minutes=1)) == clock() + dt.timedelta(minutes=1)
    clock.advance(seconds=50)
    assert await budgets.settle(asked.call_id, 5) == 5
    with pytest.raises(UnknownReservation):
        await budgets.renew(asked.call_id, dt.timedelta(minutes=1))
    late = claim(tokens(100))
    await budgets.reserve(late)
    clock.advance(minutes=2)
    with pytest.raises(UnknownReservation):
        await budgets.renew(late.call_id, dt.timedelta(minutes=1))


async def test_settling_what_was_never_reserved_is_refused(budgets: Budgets) -> None:
    with pytest.raises(UnknownReservation):
        await budgets.settle("never", 1)


async def test_a_call_reserves_once(budgets: Budgets) -> None:
    asked = claim(tokens(100))
    await budgets.reserve(asked)
    with pytest.raises(CallInFlight):
        await budgets.reserve(asked)
    await budgets.settle(asked.call_id, 0)
    with pytest.raises(CallInFlight):
        await budgets.reserve(asked)
    assert await room(budgets, tokens(100)) == 100


async def test_a_principal_uses_a_request_id_once_a_day(budgets: Budgets, clock: Clock) -> None:
    await budgets.reserve(claim(tokens(1000), request_id="r1"))
    with pytest.raises(RepeatedRequest):
        await budgets.reserve(claim(tokens(1000), request_id="r1"))
    await budgets.reserve(claim(tokens(1000), request_id="r2"))
    bob = Consumer(tenant="acme", principal="bob", model="small")
    await budgets.reserve(claim(tokens(1000), request_id="r1", consumer=bob))
    clock.advance(hours=23, minutes=59)
    with pytest.raises(RepeatedRequest):
        await budgets.reserve(claim(tokens(1000), request_id="r1"))
    clock.advance(minutes=1)
    await budgets.reserve(claim(tokens(1000), request_id="r1"))


async def test_a_refused_claim_does_not_use_its_request_id_up(budgets: Budgets, clock: Clock) -> None:
    await budgets.reserve(claim(tokens(10, window=1)))
    with pytest.raises(BudgetExhausted):
        await budgets.reserve(claim(tokens(10, window=1), request_id="r1"))
    clock.advance(seconds=2)
    await budgets.reserve(claim(tokens(10, window=1), request_id="r1"))


async def test_of_claims_at_once_with_one_request_id_one_is_granted(budgets: Budgets) -> None:
    outcomes = await asyncio.gather(
        *(budgets.reserve(claim(tokens(1000), request_id="r1")) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, RepeatedRequest) for outcome in outcomes) == 19
    assert await room(budgets, tokens(1000)) == 990


async def test_hundreds_of_claims_at_once_never_overspend(budgets: Budgets) -> None:
    limit, calls = tokens(1000), requests(250, BudgetScope.TENANT)
    claims = [claim(limit, calls, new=7, prompt=n % 3) for n in range(400)]
    outcomes = await asyncio.gather(*(budgets.reserve(asked) for asked in claims), return_exceptions=True)
    granted = [
        (asked, outcome) for asked, outcome in zip(claims, outcomes, strict=True) if not isinstance(outcome, Exception)
    ]
    assert all(isinstance(outcome, BudgetExhausted) for outcome in outcomes if isinstance(outcome, Exception))
    assert sum(asked.prompt_tokens + outcome.max_new_tokens for asked, outcome in granted) == 1000
    settled = await asyncio.gather(*(budgets.settle(asked.call_id, 1) for asked, _ in granted for _ in range(2)))
    assert settled == [1] * (2 * len(granted))
    assert await room(budgets, limit) == 1000 - len(granted)


async def test_replicas_share_one_budget(postgresql_stores: Stores, clock: Clock) -> None:
    url = await asyncio.to_thread(postgresql_stores.new, SCRIPTS)
    async with Records(url) as first, Records(url) as second, contextlib.AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(open_budgets(r, clock=clock)) for r in (first, second)]
        limit = tokens(1000)
        claims = [claim(limit, new=7, request_id=f"r{n // 2}") for n in range(400)]
        outcomes = await asyncio.gather(
            *((here, there)[n % 2].reserve(asked) for n, asked in enumerate(claims)), return_exceptions=True
        )
        granted = [
            (asked, outcome)
            for asked, outcome in zip(claims, outcomes, strict=True)
            if not isinstance(outcome, Exception)
        ]
        assert sum(outcome.max_new_tokens for _, outcome in granted) == 1000
        assert len({asked.request_id for asked, _ in granted}) == len(granted)
        await asyncio.gather(*((there, here)[n % 2].settle(asked.call_id, 1) for n, (asked, _) in enumerate(granted)))
        assert await room(here, limit) == await room(there, limit) == 1000 - len(granted)


async def test_consumption_reservations_and_request_ids_survive_a_restart(url: str, clock: Clock) -> None:
    asked = claim(tokens(100), requests(1), new=60, request_id="r1")
    async with Records(url, exclusive=True) as records, open_budgets(records, clock=clock) as budgets:
        await budgets.reserve(asked)
    async with Records(url, exclusive=True) as records, open_budgets(records, clock=clock) as budgets:
        assert await room(budgets, tokens(100)) == 40
        for repeated in (requests(1), tokens(1000)):
            with pytest.raises((BudgetExhausted, RepeatedRequest)):
                await budgets.reserve(claim(repeated, request_id="r1"))
        assert await budgets.settle(asked.call_id, 10) == 10
        assert await room(budgets, tokens(100)) == 90
    async with Records(url, exclusive=True) as records, open_budgets(records, clock=clock) as budgets:
        assert await room(budgets, tokens(100)) == 90
        assert await budgets.settle(asked.call_id, 0) == 10


async def test_what_no_longer_counts_is_deleted(url: str, clock: Clock) -> None:
    async with Records(url) as records:
        async with open_budgets(records, clock=clock) as budgets:
            for n in range(5):
                await budgets.reserve(claim(tokens(1000, window=60), request_id=f"r{n}"))
        clock.advance(days=1, seconds=1)
        async with open_budgets(records, clock=clock) as budgets:
            await budgets.reserve(claim(tokens(1000, BudgetScope.MODEL)))
        async with records.read() as connection:
            for table, rows in ((counters, 1), (reservations, 1), (request_ids, 0)):
                found = await connection.execute(select(func.count()).select_from(table))
                assert found.scalar_one() == rows


async def test_closed_budgets_refuse(records: Records, clock: Clock) -> None:
    budgets = open_budgets(records, clock=clock)
    with pytest.raises(RecordsUnavailable):
        await budgets.reserve(claim(tokens(10)))
    async with budgets:
        await budgets.reserve(claim(tokens(10)))
    with pytest.raises(RecordsUnavailable):
        await budgets.reserve(claim(tokens(10)))


class Faulty(Records):
    """A record store whose writes fail while it is `broken`."""

    broken = False
    failed: asyncio.Event

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        if self.broken:
            self.failed.set()
            raise RecordsUnavailable("broken for the test")
        async with super().write() as connection:
            yield connection


async def test_a_store_that_fails_refuses_claims_and_loses_no_count(stores: Stores, url: str, clock: Clock) -> None:
    async with Faulty(url) as records:
        records.failed = asyncio.Event()
        records.broken = True
        local = LocalBudgets(records, clock=clock, max_lag=0.0) if stores.kind == "sqlite" else None
        async with local or open_budgets(records, clock=clock) as budgets:
            outcomes = []
            for _ in range(2):
                outcomes += await asyncio.gather(budgets.reserve(claim(tokens(100))), return_exceptions=True)
                await records.failed.wait()
            assert isinstance(outcomes[1], RecordsUnavailable)
            records.broken = False
        granted = sum(not isinstance(outcome, BaseException) for outcome in outcomes)
        async with open_budgets(records, clock=clock) as budgets:
            assert await room(budgets, tokens(100)) == 100 - 10 * granted


class Watched(Records):
    """A record store that tells when a transaction has been committed."""

    committed: asyncio.Event

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        async with super().write() as connection:
            yield connection
        self.committed.set()


async def test_a_store_that_has_caught_up_is_trusted_again(sqlite_stores: Stores, clock: Clock) -> None:
    url = await asyncio.to_thread(sqlite_stores.new, SCRIPTS)
    async with Watched(url) as records, LocalBudgets(records, clock=clock, max_lag=0.0) as budgets:
        records.committed = asyncio.Event()
        asked = claim(tokens(100))
        await budgets.reserve(asked)
        for step in (lambda: budgets.settle(asked.call_id, 1), lambda: budgets.settle(asked.call_id, 1)):
            await records.committed.wait()
            records.committed.clear()
            await step()
        await records.committed.wait()
        await asyncio.to_thread(lambda: None)
        assert await room(budgets, tokens(100)) == 99


@pytest.mark.parametrize("wrong", [{"call_id": ""}, {"call_id": "a\x00"}, {"new": 0}, {"lease": dt.timedelta(0)}])
def test_a_claim_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        claim(**wrong)


async def test_a_caller_that_goes_away_while_waiting_leaves_a_settleable_state(budgets: Budgets) -> None:
    asked = claim(tokens(100), new=60)
    waiting = asyncio.create_task(budgets.reserve(asked))
    await asyncio.to_thread(lambda: None)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    with contextlib.suppress(UnknownReservation):
        await budgets.settle(asked.call_id, 0)
    assert await room(budgets, tokens(100)) == 100


async def test_a_session_whose_caller_goes_away_while_it_reserves_costs_nothing(budgets: Budgets) -> None:
    limit = tokens(10_000)
    for yields in range(12):
        waiting = asyncio.create_task(BudgetSession(budgets, claim(limit, new=60)).reserve())
        for _ in range(yields):
            await asyncio.sleep(0)
        if waiting.done():
            break
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await room(budgets, limit) == 10_000

"""The counting itself: no window ever holds more than its limit."""

from __future__ import annotations

import datetime as dt
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy_guard.claim import BudgetExhausted, Claim, Consumer
from services.policy_guard.ledger import SLOTS, Counter, Ledger
from services.policy_guard.result import BudgetScope, BudgetUnit, Limit

WINDOW = 60
SECOND = 1_000_000
calls = count()


def claim(tokens: int, limit: int, *, unit: BudgetUnit = BudgetUnit.TOKENS, lease: float = 30.0) -> Claim:
    return Claim(
        call_id=str(next(calls)),
        consumer=Consumer(tenant="acme", principal="ada", model="small"),
        limits=(Limit(scope=BudgetScope.TENANT, unit=unit, limit=limit, window_seconds=WINDOW),),
        prompt_tokens=0,
        max_new_tokens=tokens,
        lease=dt.timedelta(seconds=lease),
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 20 * SECOND), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 60))),
        max_size=60,
    )
)
def test_no_window_ever_holds_more_than_its_limit(steps: list[tuple[int, int, int | None]]) -> None:
    ledger, now, limit = Ledger(), 0, 100
    spent: list[tuple[int, int]] = []
    for pause, wanted, actual in steps:
        now += pause
        asked = claim(wanted, limit)
        try:
            granted, _ = ledger.reserve(asked, now)
        except BudgetExhausted:
            continue
        assert 1 <= granted <= wanted
        tokens = ledger.settle(asked.call_id, granted if actual is None else min(actual, granted), now)
        spent.append((now, tokens))
        for end, _ in spent:
            assert sum(units for at, units in spent if end - WINDOW * SECOND < at <= end) <= limit


@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(1, 31 * 86400))
def test_a_retry_after_the_wait_fits(units: int, start: int, seconds: int) -> None:
    counter = Counter(window=seconds * SECOND)
    counter.charge(units, start)
    now = start + seconds * SECOND // 3
    wait = counter.wait(units, units, now)
    assert wait is not None
    assert 0 < wait <= seconds * SECOND * (SLOTS + 1) // SLOTS + SLOTS + 1
    assert counter.used(now + wait) == 0


def test_a_unit_counts_for_the_whole_window_and_a_sixtieth_more_at_most() -> None:
    counter = Counter(window=WINDOW * SECOND)
    counter.charge(7, 999_999)
    assert counter.used(999_999 + WINDOW * SECOND) == 7
    assert counter.used(999_999 + WINDOW * SECOND + SECOND) == 0


def test_a_call_larger_than_the_budget_is_told_that_waiting_is_no_use() -> None:
    asked = claim(1, 5)
    whole = Claim(**{**_arguments(asked), "prompt_tokens": 5})
    with pytest.raises(BudgetExhausted) as refusal:
        Ledger().reserve(whole, 0)
    assert refusal.value.retry_after is None


def test_a_refused_claim_charges_nothing_anywhere() -> None:
    ledger = Ledger()
    both = Claim(
        **{
            **_arguments(claim(10, 100)),
            "limits": (
                Limit(scope=BudgetScope.TENANT, unit=BudgetUnit.TOKENS, limit=100, window_seconds=60),
                Limit(scope=BudgetScope.PRINCIPAL, unit=BudgetUnit.REQUESTS, limit=1, window_seconds=60),
            ),
        }
    )
    ledger.reserve(both, 0)
    before = {key: counter.used(0) for key, counter in ledger.counters.items()}
    with pytest.raises(BudgetExhausted) as refusal:
        ledger.reserve(Claim(**{**_arguments(both), "call_id": "another"}), 0)
    assert refusal.value.metadata == {"scope": "PRINCIPAL", "unit": "REQUESTS"}
    assert {key: counter.used(0) for key, counter in ledger.counters.items()} == before


def test_of_two_limits_on_one_count_the_lower_binds_and_it_is_charged_once() -> None:
    lower, higher = (
        Limit(scope=BudgetScope.TENANT, unit=BudgetUnit.TOKENS, limit=limit, window_seconds=60) for limit in (10, 99)
    )
    for limits in ((lower, higher), (higher, lower)):
        ledger = Ledger()
        granted, _ = ledger.reserve(Claim(**{**_arguments(claim(50, 1)), "limits": limits}), 0)
        assert granted == 10
        assert [counter.used(0) for counter in ledger.counters.values()] == [10]


def test_changes_that_could_not_be_written_are_offered_again() -> None:
    ledger = Ledger()
    first = claim(1, 10)
    ledger.reserve(first, 0)
    lost = ledger.take_changes()
    assert ledger.take_changes().reservations == frozenset()
    ledger.restore_changes(lost)
    second = claim(1, 10)
    ledger.reserve(second, 0)
    assert ledger.take_changes().reservations == {first.call_id, second.call_id}


def _arguments(of: Claim) -> dict[str, object]:
    names = ("call_id", "consumer", "limits", "prompt_tokens", "max_new_tokens", "lease", "request_id")
    return {name: getattr(of, name) for name in names}

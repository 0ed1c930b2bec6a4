from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from services.policy_guard.request_filter import RequestFilter

PERIOD = 1000


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 10**6)), max_size=40))
def test_what_was_added_within_the_period_is_never_called_new(steps: list[tuple[int, int]]) -> None:
    held, now = RequestFilter(period=PERIOD, now=0), 0
    added: list[tuple[int, int]] = []
    for pause, number in steps:
        now += pause
        held.add(key(number), now)
        added.append((now, number))
        assert all(held.may_hold(key(number)) for at, number in added if now - at <= PERIOD)


def test_few_new_keys_are_doubted_and_old_ones_are_forgotten() -> None:
    held = RequestFilter(period=PERIOD, now=0)
    for number in range(50_000):
        held.add(key(number), 0)
    assert sum(held.may_hold(key(number)) for number in range(50_000, 100_000)) < 5
    for now in (PERIOD, 2 * PERIOD):
        held.add(key(-now), now)
    assert sum(held.may_hold(key(number)) for number in range(1000)) < 5

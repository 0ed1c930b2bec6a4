"""Guessing is slow, and never locks out who is meant."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, func, select

from services.policy_guard.sign_in import SignInRefused
from services.policy_guard.tables import guesses
from services.policy_guard.throttle import Throttle, TooManyGuesses
from shared.records.store import Records
from tests.unit.policy_guard.clock import Clock
from tests.unit.policy_guard.identity.people import ELSEWHERE, LAPTOP, Identity

ADA = "ada@example.org"


async def fail(throttle: Throttle, times: int, *, subject: str = ADA, spiffe_id: str = ELSEWHERE) -> None:
    for _ in range(times):
        await throttle.begin(subject, spiffe_id)


async def wait_of(throttle: Throttle, *, subject: str = ADA, spiffe_id: str = ELSEWHERE) -> float:
    with pytest.raises(TooManyGuesses) as refusal:
        await throttle.begin(subject, spiffe_id)
    assert refusal.value.retry_after is not None
    return refusal.value.retry_after


async def test_delays_double_up_to_five_minutes(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    await fail(throttle, 5)
    waits = []
    for _ in range(12):
        wait = await wait_of(throttle)
        waits.append(wait)
        clock.advance(seconds=wait)
        await throttle.begin(ADA, ELSEWHERE)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


async def test_an_attempt_that_waits_for_a_row_which_is_then_forgiven_is_charged_anew(
    records: Records, clock: Clock
) -> None:
    throttle = Throttle(records, clock=clock)
    first = await throttle.begin(ADA, ELSEWHERE)
    async with records.write() as connection:
        await connection.execute(delete(guesses).where(guesses.c.key == first.subject_key))
        second = asyncio.create_task(throttle.begin(ADA, ELSEWHERE))
        await asyncio.wait([second], timeout=0.5)  # it waits for the row, or for the writer's turn
        assert not second.done()
    assert (await second).subject_key == first.subject_key
    async with records.read() as connection:
        query = select(guesses.c.failures).where(guesses.c.key == first.subject_key)
        assert (await connection.execute(query)).scalar_one() == 1


async def test_a_refused_attempt_does_not_lengthen_the_delay(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    await fail(throttle, 5)
    for _ in range(20):
        assert await wait_of(throttle) == 1


async def test_delays_outlive_a_restart(url: str, clock: Clock) -> None:
    async with Records(url) as records:
        await fail(Throttle(records, clock=clock), 5)
    async with Records(url) as records:
        assert await wait_of(Throttle(records, clock=clock)) == 1


async def test_many_guesses_at_once_gain_nothing(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    outcomes = await asyncio.gather(
        *(throttle.begin(ADA, f"spiffe://bastide.local/client/c{n % 4}") for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(outcome, TooManyGuesses) for outcome in outcomes) == 15


async def test_a_workload_that_tries_many_people_is_slowed(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    for number in range(30):
        await throttle.begin(f"person-{number}", ELSEWHERE)
    assert await wait_of(throttle, subject="person-31") == 1
    await throttle.begin("person-31", LAPTOP)


async def test_guesses_from_elsewhere_do_not_delay_a_person_on_their_own_workload(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    await fail(identity.throttle, 5)
    await wait_of(identity.throttle)
    assert await identity.sign_in(authenticator.at(identity.clock()))


async def test_a_password_alone_buys_no_guesses_at_the_second_factor(identity: Identity) -> None:
    await identity.enrolled()
    for _ in range(4):
        with pytest.raises(SignInRefused):
            await identity.sign_in("000000", spiffe_id=ELSEWHERE)
        await identity.sign_in(spiffe_id=ELSEWHERE)
    with pytest.raises(SignInRefused):
        await identity.sign_in("000000", spiffe_id=ELSEWHERE)
    with pytest.raises(TooManyGuesses):
        await identity.sign_in(spiffe_id=ELSEWHERE)


async def test_both_factors_forgive_earlier_failures(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    for _ in range(4):
        with pytest.raises(SignInRefused):
            await identity.sign_in(password="not the password")
    await identity.sign_in(authenticator.at(identity.clock()))
    for _ in range(4):
        with pytest.raises(SignInRefused):
            await identity.sign_in(password="not the password")
    await identity.sign_in()


async def test_one_account_buys_no_guesses_at_others(identity: Identity) -> None:
    authenticator = await identity.enrolled("mallory", spiffe_id=ELSEWHERE)
    for number in range(30):
        if number % 10 == 5:
            identity.clock.advance(seconds=30)
            await identity.sign_in(authenticator.at(identity.clock()), subject="mallory", spiffe_id=ELSEWHERE)
        with pytest.raises(SignInRefused):
            await identity.sign_in(subject=f"person-{number}", spiffe_id=ELSEWHERE)
    with pytest.raises(TooManyGuesses):
        await identity.sign_in(subject="person-31", spiffe_id=ELSEWHERE)


async def test_who_is_known_at_a_shared_workload_is_not_delayed_by_others_there(identity: Identity) -> None:
    authenticator = await identity.enrolled(spiffe_id=ELSEWHERE)
    for number in range(30):
        await fail(identity.throttle, 1, subject=f"person-{number}")
    await wait_of(identity.throttle, subject="person-31")
    assert await identity.sign_in(authenticator.at(identity.clock()), spiffe_id=ELSEWHERE)
    await wait_of(identity.throttle, subject="person-31")


async def test_a_right_sign_in_leaves_no_delay_of_its_own(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    for number in range(30):
        await throttle.begin(f"person-{number}", ELSEWHERE)
    clock.advance(seconds=1)
    for number in range(5):
        await throttle.succeed(await throttle.begin(f"newcomer-{number}", ELSEWHERE), proven=False)
    await throttle.begin("person-31", ELSEWHERE)
    wait = await wait_of(throttle, subject="person-32")
    assert wait == 2


async def test_a_right_sign_in_does_not_lift_the_delay_of_a_failure_meanwhile(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    for number in range(30):
        await throttle.begin(f"person-{number}", ELSEWHERE)
    clock.advance(seconds=1)
    right = await throttle.begin("ada", ELSEWHERE)
    clock.advance(seconds=2)
    await throttle.begin("person-31", ELSEWHERE)
    await throttle.succeed(right, proven=False)
    assert await wait_of(throttle, subject="person-32") == 4


async def test_a_busy_workload_s_few_slips_are_forgotten_while_it_is_busy(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    for number in range(500):
        attempt = await throttle.begin(f"person-{number}", ELSEWHERE)
        if number % 4:
            await throttle.succeed(attempt, proven=False)
        clock.advance(seconds=45)


async def test_many_right_sign_ins_are_never_slowed(identity: Identity) -> None:
    await identity.enrolled()
    for _ in range(40):
        await identity.sign_in()


async def test_failures_are_forgotten_with_time_and_leave_nothing_behind(records: Records, clock: Clock) -> None:
    throttle = Throttle(records, clock=clock)
    for number in range(10):
        await throttle.begin(f"nobody-{number}", ELSEWHERE)
    await fail(throttle, 5)
    clock.advance(hours=1, seconds=1)
    await fail(throttle, 5)
    assert await wait_of(throttle) == 1
    clock.advance(hours=3, seconds=1)
    await throttle.begin("somebody", ELSEWHERE)
    async with records.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(guesses))).scalar_one() == 2

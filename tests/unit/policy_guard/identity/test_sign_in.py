"""Signing in: who gets in, and that nobody learns why they did not."""

from __future__ import annotations

import asyncio
import threading

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from services.policy_guard.passwords import Passwords
from services.policy_guard.sign_in import SignedIn, SignInRefused
from services.policy_guard.tables import credentials
from services.policy_guard.throttle import TooManyGuesses
from shared.errors import DataLoss, ResourceExhausted
from tests.unit.policy_guard.identity.people import Identity


async def test_a_password_alone_signs_in_without_mfa(identity: Identity) -> None:
    await identity.enrolled()
    signed_in = await identity.sign_in()
    assert signed_in.amr == ("pwd",)
    assert signed_in.authenticated_at == identity.clock()


async def test_with_a_code_amr_holds_mfa(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    assert (await identity.sign_in(authenticator.at(identity.clock()))).amr == ("pwd", "otp", "mfa")


async def test_a_code_works_once_and_no_older_one_after_it(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    earlier = authenticator.at(identity.clock())
    identity.clock.advance(seconds=30)
    code = authenticator.at(identity.clock())
    await identity.sign_in(code)
    for used in (code, earlier):
        with pytest.raises(SignInRefused):
            await identity.sign_in(used)
    identity.clock.advance(seconds=30)
    await identity.sign_in(authenticator.at(identity.clock()))


async def test_of_sign_ins_at_once_with_one_code_one_gets_in(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    code = authenticator.at(identity.clock())
    outcomes = await asyncio.gather(*(identity.sign_in(code) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, SignedIn) for outcome in outcomes) == 1
    # The others lose the race, or are throttled for the guesses that the losers made.
    others = [outcome for outcome in outcomes if not isinstance(outcome, SignedIn)]
    assert [type(outcome) for outcome in others if not isinstance(outcome, SignInRefused | TooManyGuesses)] == []


@pytest.mark.parametrize(("steps", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
async def test_one_step_of_clock_difference_is_tolerated(identity: Identity, steps: int, accepted: bool) -> None:
    authenticator = await identity.enrolled()
    identity.clock.advance(minutes=10)
    code = authenticator.at(identity.clock(), counter_offset=steps)
    if accepted:
        await identity.sign_in(code)
    else:
        with pytest.raises(SignInRefused):
            await identity.sign_in(code)


async def test_a_wrong_password_does_not_use_the_code_up(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    code = authenticator.at(identity.clock())
    with pytest.raises(SignInRefused):
        await identity.sign_in(code, password="not the password")
    await identity.sign_in(code)


async def test_every_wrong_thing_is_one_refusal(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    await identity.users.create("not-enrolled", tenant="acme", roles=[])
    await identity.enrolled("disabled", spiffe_id="spiffe://bastide.local/client/other")
    await identity.users.update("disabled", tenant="acme", roles=[], disabled=True)
    code = authenticator.at(identity.clock())
    wrong = f"{(int(code) + 1) % 1_000_000:06}"
    attempts = [
        {"subject": "nobody"},
        {"subject": "nobody", "totp": code},
        {"subject": "no\x00body"},
        {"subject": "x' OR '1'='1"},
        {"subject": "not-enrolled"},
        {"subject": "disabled"},
        {"password": "not the password"},
        {"password": "not the password", "totp": code},
        {"totp": wrong},
    ]
    seen = set()
    for number, attempt in enumerate(attempts):
        with pytest.raises(SignInRefused) as refusal:
            await identity.sign_in(**attempt, spiffe_id=f"spiffe://bastide.local/client/c{number}")
        seen.add((refusal.value.message, refusal.value.reason, str(refusal.value.metadata), refusal.value.retry_after))
    assert len(seen) == 1


async def test_an_unknown_name_takes_the_same_hashing(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    await identity.enrolled()
    verified: list[str] = []
    real = PasswordHasher.verify

    def spy(self: PasswordHasher, stored: str, password: bytes) -> bool:
        verified.append(stored)
        return real(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", spy)
    for subject in ("nobody", "ada@example.org"):
        with pytest.raises(SignInRefused):
            await identity.sign_in(subject=subject, password="not the password")
    parameters = {stored.rsplit("$", 2)[0] for stored in verified}
    assert len(verified) == 2
    assert len(parameters) == 1


async def test_a_password_typed_in_another_unicode_form_is_the_same(identity: Identity) -> None:
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    stored = await passwords.hash("caf\u00e9 \u212b ngstrom")
    assert await passwords.verify(stored, "cafe\u0301 A\u030a ngstrom")
    assert not await passwords.verify(stored, "cafe A ngstrom")
    assert not await passwords.verify(None, "cafe A ngstrom")
    assert not await passwords.verify("not a hash", "cafe A ngstrom")


async def test_hashing_beyond_its_queue_is_refused() -> None:
    entered, leave = threading.Event(), threading.Event()

    class Held(PasswordHasher):
        def verify(self, stored: str | bytes, password: str | bytes) -> bool:
            entered.set()
            leave.wait(10)
            return super().verify(stored, password)

    passwords = Passwords(Held(time_cost=1, memory_cost=8, parallelism=1), concurrency=1, waiting=1)
    stored = await passwords.hash("right")
    waiting = [asyncio.create_task(passwords.verify(stored, "right")) for _ in range(2)]
    await asyncio.to_thread(entered.wait, 10)
    with pytest.raises(ResourceExhausted):
        await passwords.verify(stored, "right")
    leave.set()
    assert await asyncio.gather(*waiting) == [True, True]


async def test_a_secret_moved_to_another_persons_row_does_not_open(identity: Identity) -> None:
    mine = await identity.enrolled("mallory")
    await identity.enrolled("ada@example.org")
    async with identity.records.write() as connection:
        query = select(credentials.c.totp_secret).where(credentials.c.subject == "mallory")
        secret = (await connection.execute(query)).scalar_one()
        moved = update(credentials).where(credentials.c.subject == "ada@example.org").values(totp_secret=secret)
        await connection.execute(moved)
    with pytest.raises(DataLoss):
        await identity.sign_in(mine.at(identity.clock()))

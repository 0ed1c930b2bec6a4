"""From a code to credentials: once, in time, by its owner, and all at once."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from services.policy_guard.enrolment import EnrolmentRefused
from services.policy_guard.sign_in import SignInRefused
from services.policy_guard.tables import credentials, enrolments
from tests.unit.policy_guard.identity.people import LAPTOP, PASSWORD, Identity, read_uri

ADA = "ada@example.org"


async def test_a_code_becomes_a_password_and_a_second_factor(identity: Identity) -> None:
    authenticator = await identity.enrolled()
    assert (await identity.users.get(ADA)).enrolled
    signed_in = await identity.sign_in(authenticator.at(identity.clock()))
    assert (signed_in.subject, signed_in.tenant, signed_in.roles) == (ADA, "acme", ("user",))


async def test_the_authenticator_uri_names_issuer_and_person(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    uri = await identity.enrolment.start(ADA, code.code, PASSWORD)
    assert uri.startswith("otpauth://totp/Bastide:ada%40example.org?")
    assert len(read_uri(uri).secret) == 32


async def test_a_code_works_once(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    authenticator = await identity.enrol(ADA, code.code)
    with pytest.raises(EnrolmentRefused):
        await identity.enrolment.start(ADA, code.code, "another password")
    with pytest.raises(EnrolmentRefused):
        await identity.confirm(ADA, code.code, authenticator.at(identity.clock()), spiffe_id=LAPTOP)


async def test_a_code_is_read_without_dashes_and_in_lower_case(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    await identity.enrol(ADA, code.code.replace("-", "").lower())
    assert (await identity.users.get(ADA)).enrolled


async def test_an_expired_code_is_refused_at_both_steps(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    uri = await identity.enrolment.start(ADA, code.code, PASSWORD)
    identity.clock.advance(hours=24)
    with pytest.raises(EnrolmentRefused):
        await identity.enrolment.start(ADA, code.code, PASSWORD)
    with pytest.raises(EnrolmentRefused):
        await identity.confirm(
            ADA, code.code, read_uri(uri).at(identity.clock()), spiffe_id=LAPTOP
        )  # fmt: skip
    assert not (await identity.users.get(ADA)).enrolled


async def test_another_persons_code_a_wrong_code_and_an_unknown_person_are_one_refusal(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    await identity.users.create("bob", tenant="acme", roles=[])
    attempts = [("bob", code.code), (ADA, "AAAA-BBBB"), ("nobody", code.code), ("no\x00body", code.code)]
    messages = set()
    for subject, text in attempts:
        with pytest.raises(EnrolmentRefused) as refusal:
            await identity.enrolment.start(subject, text, PASSWORD)
        messages.add((refusal.value.message, refusal.value.reason, str(refusal.value.metadata)))
    assert len(messages) == 1


async def test_guesses_of_strangers_keep_nobody_from_enrolling(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    for _ in range(50):
        with pytest.raises(EnrolmentRefused):
            await identity.enrolment.start(ADA, "AAAA-BBBB", PASSWORD)
    await identity.enrol(ADA, code.code)
    assert (await identity.users.get(ADA)).enrolled


async def test_a_disabled_person_cannot_enrol(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    await identity.users.update(ADA, tenant="acme", roles=[], disabled=True)
    with pytest.raises(EnrolmentRefused):
        await identity.enrolment.start(ADA, code.code, PASSWORD)


async def test_a_wrong_one_time_password_keeps_the_code_and_gives_nothing(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    uri = await identity.enrolment.start(ADA, code.code, PASSWORD)
    right = read_uri(uri).at(identity.clock())
    wrong = f"{(int(right) + 1) % 1_000_000:06}"
    with pytest.raises(EnrolmentRefused):
        await identity.confirm(ADA, code.code, wrong, spiffe_id=LAPTOP)
    with pytest.raises(SignInRefused):
        await identity.sign_in()
    await identity.confirm(ADA, code.code, right, spiffe_id=LAPTOP)
    assert (await identity.sign_in()).amr == ("pwd",)


async def test_confirming_before_starting_is_refused(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    with pytest.raises(EnrolmentRefused):
        await identity.confirm(ADA, code.code, "123456", spiffe_id=LAPTOP)


async def test_starting_again_replaces_password_and_secret(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    first = read_uri(await identity.enrolment.start(ADA, code.code, "the first password"))
    second = read_uri(await identity.enrolment.start(ADA, code.code, PASSWORD))
    with pytest.raises(EnrolmentRefused):
        await identity.confirm(ADA, code.code, first.at(identity.clock()), spiffe_id=LAPTOP)
    await identity.confirm(ADA, code.code, second.at(identity.clock()), spiffe_id=LAPTOP)
    with pytest.raises(SignInRefused):
        await identity.sign_in(password="the first password")
    assert await identity.sign_in()


async def test_an_enrolment_begun_anew_is_not_completed_by_the_proof_of_what_it_replaced(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    first = read_uri(await identity.enrolment.start(ADA, code.code, "the first password"))
    proven = await identity.enrolment.prove(ADA, code.code, first.at(identity.clock()))
    second = read_uri(await identity.enrolment.start(ADA, code.code, PASSWORD))
    with pytest.raises(EnrolmentRefused):
        await identity.enrolment.complete(proven, spiffe_id=LAPTOP)
    assert not (await identity.users.get(ADA)).enrolled
    await identity.confirm(ADA, code.code, second.at(identity.clock()), spiffe_id=LAPTOP)
    assert await identity.sign_in()


async def test_of_confirmations_at_once_one_uses_the_code(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    uri = await identity.enrolment.start(ADA, code.code, PASSWORD)
    totp = read_uri(uri).at(identity.clock())
    outcomes = await asyncio.gather(
        *(identity.confirm(ADA, code.code, totp, spiffe_id=LAPTOP) for _ in range(3)),
        return_exceptions=True,
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, EnrolmentRefused) for outcome in outcomes) == 2


async def test_the_code_that_ends_enrolment_does_not_sign_in(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    authenticator = read_uri(await identity.enrolment.start(ADA, code.code, PASSWORD))
    used = authenticator.at(identity.clock())
    await identity.confirm(ADA, code.code, used, spiffe_id=LAPTOP)
    with pytest.raises(SignInRefused):
        await identity.sign_in(used)


async def test_the_store_holds_neither_password_nor_secret(identity: Identity) -> None:
    _, code = await identity.users.create(ADA, tenant="acme", roles=[])
    authenticator = read_uri(await identity.enrolment.start(ADA, code.code, PASSWORD))
    async with identity.records.read() as connection:
        pending = (await connection.execute(select(enrolments))).one()
    await identity.confirm(
        ADA, code.code, authenticator.at(identity.clock()), spiffe_id=LAPTOP
    )  # fmt: skip
    async with identity.records.read() as connection:
        kept = (await connection.execute(select(credentials))).one()
    for row in (pending, kept):
        assert row.password_hash.startswith("$argon2id$")
        assert PASSWORD not in row.password_hash
        assert authenticator.secret.encode() not in row.totp_secret
        assert row.totp_secret.startswith(b"BASTIDE")

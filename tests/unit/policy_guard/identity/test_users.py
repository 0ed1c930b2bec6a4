"""The register of people, and how the first two get into it."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from sqlalchemy import select, text

from services.policy_guard.acknowledgements import Acknowledgements
from services.policy_guard.enrolment import EnrolmentRefused
from services.policy_guard.sign_in import SignInRefused
from services.policy_guard.tables import enrolments
from services.policy_guard.users import AlreadyBootstrapped, Users
from shared.errors import AlreadyExists, InvalidArgument, NotFound
from shared.records.store import Records
from tests.unit.policy_guard.clock import Clock
from tests.unit.policy_guard.identity.people import PASSWORD, Identity

ADMINS = ("ada@example.org", "bob@example.org")


async def test_a_person_reads_back_as_created_and_is_not_enrolled(records: Records, clock: Clock) -> None:
    users = Users(records, clock=clock)
    user, code = await users.create("ada@example.org", tenant="acme", roles=["user", "auditor"])
    assert user == await users.get("ada@example.org")
    assert (user.tenant, user.roles, user.disabled, user.enrolled) == ("acme", ("user", "auditor"), False, False)
    assert (user.acknowledged_use_policy, user.created_at) == ("", clock())
    assert code.expires_at == clock() + dt.timedelta(hours=24)
    assert code.code not in repr(code)


async def test_a_subject_is_registered_once(records: Records, clock: Clock) -> None:
    users = Users(records, clock=clock)
    await users.create("ada@example.org", tenant="acme", roles=[])
    with pytest.raises(AlreadyExists):
        await users.create("ada@example.org", tenant="other", roles=["administrator"])
    assert (await users.get("ada@example.org")).tenant == "acme"


@pytest.mark.parametrize("subject", ["", "a\x00b", "a b", "-a", "é", "a" * 256, "a\n", "spiffe://x/y"])
async def test_a_subject_outside_the_alphabet_is_refused_and_unknown(
    records: Records, clock: Clock, subject: str
) -> None:
    users = Users(records, clock=clock)
    with pytest.raises(InvalidArgument) as refusal:
        await users.create(subject, tenant="acme", roles=[])
    assert refusal.value.field == "user.subject"
    with pytest.raises(NotFound):
        await users.get(subject)


async def test_the_store_never_holds_an_enrolment_code(records: Records, clock: Clock) -> None:
    _, code = await Users(records, clock=clock).create("ada@example.org", tenant="acme", roles=[])
    async with records.read() as connection:
        row = (await connection.execute(select(enrolments))).one()
    raw = code.code.replace("-", "").encode()
    assert len(raw) == 32
    assert raw not in bytes(row.code_hash)


async def test_people_are_listed_by_subject_while_others_are_added(records: Records, clock: Clock) -> None:
    users = Users(records, clock=clock)
    for name in ("b", "d", "f"):
        await users.create(name, tenant="acme", roles=[])
    first = await users.list("acme", requested=2)
    assert [user.subject for user in first.users] == ["b", "d"]
    await users.create("a", tenant="acme", roles=[])
    await users.create("e", tenant="acme", roles=[])
    await users.create("c", tenant="other", roles=[])
    second = await users.list("acme", requested=2, page_token=first.next_page_token)
    assert [user.subject for user in second.users] == ["e", "f"]
    assert second.next_page_token == ""
    assert len((await users.list("acme")).users) == 5


async def test_update_replaces_roles_and_disables(identity: Identity) -> None:
    await identity.enrolled()
    await identity.sign_in()
    changed = await identity.users.update("ada@example.org", tenant="acme", roles=["auditor"], disabled=True)
    assert (changed.roles, changed.disabled, changed.enrolled) == (("auditor",), True, True)
    with pytest.raises(SignInRefused):
        await identity.sign_in()
    await identity.users.update("ada@example.org", tenant="acme", roles=["auditor"], disabled=False)
    assert (await identity.sign_in()).roles == ("auditor",)
    with pytest.raises(NotFound):
        await identity.users.update("nobody", tenant="acme", roles=[], disabled=False)


async def test_recovery_voids_password_and_second_factor_until_enrolled_anew(identity: Identity) -> None:
    before = await identity.enrolled()
    code = await identity.users.recover("ada@example.org")
    assert not (await identity.users.get("ada@example.org")).enrolled
    with pytest.raises(SignInRefused):
        await identity.sign_in()
    after = await identity.enrol("ada@example.org", code.code)
    assert before.secret != after.secret
    with pytest.raises(SignInRefused):
        await identity.sign_in(before.at(identity.clock()))
    assert (await identity.sign_in(after.at(identity.clock()))).amr == ("pwd", "otp", "mfa")
    with pytest.raises(NotFound):
        await identity.users.recover("nobody")


async def test_recovery_voids_a_code_that_was_issued_before(identity: Identity) -> None:
    _, first = await identity.users.create("ada@example.org", tenant="acme", roles=[])
    await identity.users.recover("ada@example.org")
    with pytest.raises(EnrolmentRefused):
        await identity.enrolment.start("ada@example.org", first.code, PASSWORD)


async def test_bootstrap_makes_two_administrators_once(identity: Identity) -> None:
    codes = await identity.users.bootstrap(ADMINS, tenant="acme", roles=["administrator"])
    assert tuple(code.subject for code in codes) == ADMINS
    with pytest.raises(AlreadyBootstrapped):
        await identity.users.bootstrap(("eve", "mallory"), tenant="acme", roles=["administrator"])
    await identity.enrol(ADMINS[0], codes[0].code)
    identity.clock.advance(days=30)
    with pytest.raises(AlreadyBootstrapped):
        await identity.users.bootstrap(("eve", "mallory"), tenant="acme", roles=["administrator"])
    assert (await identity.users.get(ADMINS[0])).roles == ("administrator",)
    with pytest.raises(NotFound):
        await identity.users.get("eve")


async def test_bootstrap_starts_afresh_after_both_codes_expired_unused(identity: Identity) -> None:
    old, _ = await identity.users.bootstrap(ADMINS, tenant="acme", roles=["administrator"])
    identity.clock.advance(hours=24)
    new, _ = await identity.users.bootstrap(ADMINS, tenant="acme", roles=["administrator"])
    with pytest.raises(EnrolmentRefused):
        await identity.enrol(ADMINS[0], old.code)
    await identity.enrol(ADMINS[0], new.code)


async def test_of_two_bootstraps_at_once_one_wins(records: Records, clock: Clock) -> None:
    users = Users(records, clock=clock)
    pairs = [("ada", "bob"), ("eve", "mallory")]
    outcomes = await asyncio.gather(
        *(users.bootstrap(pair, tenant="acme", roles=["administrator"]) for pair in pairs), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AlreadyBootstrapped", "tuple"]
    assert len((await users.list("acme")).users) == 2


async def test_bootstrap_needs_two_different_people(records: Records, clock: Clock) -> None:
    with pytest.raises(InvalidArgument):
        await Users(records, clock=clock).bootstrap(("ada", "ada"), tenant="acme", roles=["administrator"])


async def test_an_acknowledgement_shows_in_the_register_and_survives(identity: Identity) -> None:
    await identity.users.create("ada@example.org", tenant="acme", roles=[])
    kept = Acknowledgements(identity.records, clock=identity.clock)
    assert await kept.acknowledged("ada@example.org", in_force="2") is None
    await kept.acknowledge("ada@example.org", "1")
    await kept.acknowledge("ada@example.org", "2")
    await kept.acknowledge("someone-from-another-provider", "1")
    assert (await identity.users.get("ada@example.org")).acknowledged_use_policy == "2"
    again = Acknowledgements(identity.records, clock=identity.clock)
    assert await again.acknowledged("ada@example.org", in_force="3") == "2"
    assert await again.acknowledged("someone-from-another-provider", in_force="1") == "1"


async def test_only_an_acknowledgement_of_the_version_in_force_is_answered_from_memory(
    records: Records, clock: Clock
) -> None:
    here, there = (Acknowledgements(records, clock=clock) for _ in range(2))
    await here.acknowledge("ada", "1")
    await there.acknowledge("ada", "2")
    assert await here.acknowledged("ada", in_force="2") == "2"
    async with records.write() as connection:
        await connection.execute(text("DELETE FROM acknowledgements"))
    assert await here.acknowledged("ada", in_force="2") == "2"
    assert await here.acknowledged("ada", in_force="3") is None

"""People and their powers: who sees whom, what ends at once, and what no caller can do to the log."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
from services.audit.search import Filter
from services.policy_guard import administration
from services.policy_guard.server import now
from services.policy_guard.users import Users
from shared.records.store import Records
from tests.suite import PASSWORD, ROOT, Person, Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
SERVICE = "/bastide.policy_guard.v1.IdentityService"


class World:
    suite: Suite
    ada: Person
    bob: Person
    spy: Person


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Two tenants, two administrators of one and an administrator of the other."""
    folder, world = tmp_path_factory.mktemp("people"), World()
    policies = folder / "policies"
    shutil.copytree(ROOT / "services/policy_guard/policies", policies)
    tenants = policies / "bastide/tenants/data.yaml"
    tenants.write_text(tenants.read_text() + "acme:\n  active: true\n  purposes: [internal-assistant]\n")
    overrides = {"policy-guard": {"ENGINE": "embedded", "POLICIES": str(policies)}}
    world.suite = suite = Suite(folder / "home", overrides=overrides)
    try:
        await suite.start("audit", "policy-guard")
        world.ada, world.bob = await suite.bootstrap()
        async with Records(suite.settings("policy-guard").records) as records:
            _, code = await Users(records, clock=now).create("spy@acme.com", tenant="acme", roles=("administrator",))
        world.spy = await suite.enrol("spy@acme.com", code.code)
        yield world
    finally:
        await suite.close()


async def outcome(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def get(world: World, caller: Person, subject: str) -> Awaitable[Any]:
    request = identity_pb2.GetUserRequest(subject=subject)
    return world.suite.identity.GetUser(request, metadata=caller.metadata, timeout=10)


async def test_people_of_another_tenant_are_neither_shown_nor_listed(world: World) -> None:
    assert await outcome(get(world, world.ada, "bob@example.org")) is grpc.StatusCode.OK
    assert await outcome(get(world, world.spy, "bob@example.org")) is grpc.StatusCode.PERMISSION_DENIED
    for caller, tenant in ((world.ada, "default"), (world.spy, "acme")):
        listed = await world.suite.identity.ListUsers(
            identity_pb2.ListUsersRequest(), metadata=caller.metadata, timeout=10
        )
        assert {user.tenant for user in listed.users} == {tenant}


async def test_only_whom_policy_lets_look_learns_that_nobody_is_there(world: World) -> None:
    eve = await world.suite.person(world.ada, "eve@example.org", "user")
    assert await outcome(get(world, world.ada, "nobody@example.org")) is grpc.StatusCode.NOT_FOUND
    assert await outcome(get(world, eve, "nobody@example.org")) is grpc.StatusCode.PERMISSION_DENIED
    assert await outcome(get(world, eve, "ada@example.org")) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_person_does_not_move_to_another_tenant(world: World) -> None:
    await world.suite.person(world.ada, "tom@example.org", "user")
    moved = identity_pb2.User(subject="tom@example.org", tenant="acme", roles=["user"])
    request = identity_pb2.UpdateUserRequest(user=moved)
    call = world.suite.identity.UpdateUser(request, metadata=world.ada.metadata, timeout=10)
    assert await outcome(call) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("change", [{"roles": ["user"]}, {"roles": ["administrator"], "disabled": True}], ids=str)
async def test_a_token_gives_no_role_that_was_taken_away_since(world: World, change: dict[str, Any]) -> None:
    rogue = await world.suite.person(world.ada, f"rogue-{len(change)}@example.org", "administrator")
    assert await outcome(get(world, rogue, "ada@example.org")) is grpc.StatusCode.OK
    user = identity_pb2.User(subject=rogue.subject, tenant="default", **change)
    request = identity_pb2.UpdateUserRequest(user=user)
    await world.suite.identity.UpdateUser(request, metadata=world.ada.metadata, timeout=10)
    async with asyncio.timeout(10):
        while await outcome(get(world, rogue, "ada@example.org")) is not grpc.StatusCode.PERMISSION_DENIED:
            await asyncio.sleep(0.1)


async def test_two_authorization_headers_are_counted_and_fill_no_log(world: World) -> None:
    stub = identity_pb2_grpc.IdentityServiceStub(world.suite.channel("policy-guard", "stranger"))
    before = await world.suite.head()
    twice = (("authorization", "Bearer x"), ("authorization", "Bearer y"))
    for _ in range(5):
        call = stub.ListUsers(identity_pb2.ListUsersRequest(), metadata=twice, timeout=10)
        assert await outcome(call) is grpc.StatusCode.INVALID_ARGUMENT
    await world.suite.servers["policy-guard"]._refusals.flush()
    records = await world.suite.records_since(before, method=f"{SERVICE}/ListUsers")
    assert [json.loads(record.leaf)["record"]["data"]["count"] for record in records] == [5]


async def test_an_enrolment_that_cannot_be_recorded_does_not_happen(world: World) -> None:
    suite = world.suite
    user = identity_pb2.User(subject="late@example.org", tenant="default", roles=["auditor"])
    created = await suite.identity.CreateUser(
        identity_pb2.CreateUserRequest(user=user), metadata=world.ada.metadata, timeout=10
    )
    before = await suite.head()
    await suite.stop("audit")
    try:
        enrolling = suite.enrol("late@example.org", created.enrollment_code)
        assert await outcome(enrolling) is grpc.StatusCode.UNAVAILABLE
    finally:
        await suite.start("audit")
    signing_in = suite.identity.SignIn(
        identity_pb2.SignInRequest(subject="late@example.org", password=PASSWORD), timeout=10
    )
    assert await outcome(signing_in) is grpc.StatusCode.UNAUTHENTICATED
    suite._steps.pop("late@example.org")
    assert (await suite.enrol("late@example.org", created.enrollment_code)).token
    records = await suite.records_since(before, method=f"{SERVICE}/ConfirmEnrollment")
    assert [record.fields["kind"] for record in records] == ["change", "changed"]


@pytest.mark.parametrize("tenant", ["", "Acme", "acme"])
async def test_the_first_administrators_are_of_a_tenant_that_can_administer(
    world: World, tenant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = world.suite.settings("policy-guard")
    arguments = ["x@example.org", "y@example.org", "--tenant", tenant]
    assert await asyncio.to_thread(administration.bootstrap, settings, arguments) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reason"] == "INVALID_ARGUMENT"


async def test_the_last_administrator_is_made_anew_on_the_guards_host_and_the_log_tells_of_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, settings = world.suite, world.suite.settings("policy-guard")
    lost = await suite.person(world.ada, "lost@example.org", "user")
    arguments = [lost.subject, "--by", "the operator"]
    assert await asyncio.to_thread(administration.recover_administrator, settings, arguments) == 0
    (issued,) = json.loads(capsys.readouterr().out.splitlines()[-1])["administrators"]
    suite._steps.pop(lost.subject)
    again = await suite.enrol(lost.subject, issued["code"])
    assert await outcome(get(world, again, "ada@example.org")) is grpc.StatusCode.OK
    system = Filter(kinds=frozenset({"system"}))
    async with asyncio.timeout(30):
        while not (page := await suite._log.reader.search(system, page_size=50)).records:
            await asyncio.sleep(0.1)
    assert any(b"recover_administrator" in record.leaf and b"the operator" in record.leaf for record in page.records)
    assert await asyncio.to_thread(administration.recover_administrator, settings, ["nobody@x", "--by", "me"]) == 1

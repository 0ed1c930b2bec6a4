"""Every RPC of every service, called by every kind of caller: status, reason and audit record of each cell."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import yaml
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.audit.methods import ROWS as AUDIT
from services.audit.methods import SERVICES as AUDIT_SERVICES
from services.model_server.methods import ROWS as MODEL_SERVER
from services.model_server.methods import SERVICES as MODEL_SERVER_SERVICES
from services.policy_guard.methods import ROWS as POLICY_GUARD
from services.policy_guard.methods import SERVICES as POLICY_GUARD_SERVICES
from shared.rpc.methods import Auth, Method, MethodTable
from shared.rpc.server import _COMMON, HEALTH, REFLECTION
from tests.contract.callers import BAD_TOKENS, HANDSHAKE, Caller, expected, false_pki, forge
from tests.contract.requests import REQUESTS
from tests.fakes.tiny_model import build_tiny_model
from tests.suite import ROOT, Person, Suite

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("contract"), pytest.mark.timeout(300)]

ACTIONS = yaml.safe_load((ROOT / "services/policy_guard/policies/bastide/actions/data.yaml").read_text())
TABLES = {
    "audit": MethodTable({**AUDIT, **_COMMON}, [*AUDIT_SERVICES, HEALTH, REFLECTION]),
    "policy-guard": MethodTable({**POLICY_GUARD, **_COMMON}, [*POLICY_GUARD_SERVICES, HEALTH, REFLECTION]),
    "model-server": MethodTable({**MODEL_SERVER, **_COMMON}, [*MODEL_SERVER_SERVICES, HEALTH, REFLECTION]),
}
CELLS = [
    pytest.param(service, method, caller, id=f"{service}{method}-{caller.value}")
    for service, table in TABLES.items()
    for method in table
    for caller in Caller
    if expected(table[method], caller) is not None
]
# What the chain says to whom it does not let in, as opposed to what a method says about its arguments.
REFUSALS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "PEER_NOT_ALLOWED", "INTERNAL", ""}


@dataclasses.dataclass(kw_only=True)
class World:
    suite: Suite
    everyone: Person
    single_factor: Person
    nobody: Person
    folder: Path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One suite for all cells, with a released model and people of every and of no useful role."""
    folder = tmp_path_factory.mktemp("contract")
    build_tiny_model(folder / "models" / "tiny")
    suite = Suite(folder / "home", overrides={"model-server": {"IMPORT_ROOTS": f'["{folder / "models"}"]'}})
    try:
        await suite.start()
        ada, _ = await suite.bootstrap()
        roles = yaml.safe_load((ROOT / "services/policy_guard/policies/bastide/roles/data.yaml").read_text())
        everyone = await suite.person(ada, "eve@example.org", *roles)
        manager = await suite.person(ada, "mia@example.org", "model-manager")
        version = await suite.import_model(manager, "directory:tiny")
        await suite.release(everyone, version)
        nobody = await suite.person(ada, "tom@example.org", accept=False)
        false_pki(suite, folder)
        suite.sample_token = everyone.token
        yield World(
            suite=suite,
            everyone=everyone,
            single_factor=await suite.sign_in(everyone, mfa=False),
            nobody=nobody,
            folder=folder,
        )
    finally:
        await suite.close()


async def call(
    world: World, service: str, descriptor: MethodDescriptor, caller: Caller, row: Method
) -> grpc.aio.AioRpcError | None:
    """Call the method as `caller`; return its failure, None when it answered."""
    suite = world.suite
    client = {
        Caller.FALSE_SERVICE: "false-service",
        Caller.FOREIGN_CA: "model-server",
    }.get(caller, "cli")
    if row.auth is Auth.PEER and caller in (Caller.RIGHT, Caller.MALFORMED, Caller.TOO_LARGE):
        client = next(name for name in sorted(row.peers) if (suite.home / "pki" / f"{name}.pem").exists())
    person = {Caller.WITHOUT_MFA: world.single_factor, Caller.WRONG_ROLE: world.nobody}.get(caller, world.everyone)
    token = "" if caller in (Caller.NO_TOKEN, Caller.FALSE_SERVICE) else person.token
    if caller in BAD_TOKENS and token:
        token = forge(suite, caller, token, suite.home / "pki" / "clients" / "stranger.pem")
    if caller is Caller.NO_CERTIFICATE:
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{suite.grpc[service]}",
            grpc.ssl_channel_credentials((suite.home / "pki" / "ca.pem").read_bytes()),
            options=[("grpc.ssl_target_name_override", f"{service}.bastide.local")],
        )
    elif caller is Caller.FOREIGN_CA:
        channel = suite.channel(service, client, pki=world.folder / "foreign")
    else:
        channel = suite.channel(service, client)
    data = REQUESTS[descriptor.full_name](world.suite).SerializeToString()
    if caller is Caller.MALFORMED:
        data = b"\xff\xff\xff\xff"
    elif caller is Caller.TOO_LARGE:
        data = b"\x7a" + b"\xff\xff\xff\x02" + b"x" * (5 * 1024 * 1024)
    name = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    parse = message_factory.GetMessageClass(descriptor.output_type).FromString
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    if descriptor.client_streaming:
        stream = channel.stream_stream(name, request_serializer=bytes, response_deserializer=parse)(
            timeout=20, metadata=metadata
        )
    else:
        stream = channel.unary_stream(name, request_serializer=bytes, response_deserializer=parse)(
            data, timeout=20, metadata=metadata
        )
    try:
        heard = row.auth is Auth.PUBLIC or caller in (Caller.RIGHT, Caller.MALFORMED, Caller.TOO_LARGE)
        if descriptor.client_streaming and heard:
            # Others are refused before they have said anything; writing would race with that.
            await stream.write(data)
        answer = await stream.read()
        if isinstance(answer, Message):
            # Tails and watches go on for ever; an answer is read to its end, or its record would be another cell's.
            while row.auth is Auth.SESSION and isinstance(answer, Message):
                answer = await stream.read()
            stream.cancel()
            return None
        return None if await stream.code() is grpc.StatusCode.OK else await _failure(stream)
    except grpc.aio.AioRpcError as error:
        return error
    finally:
        if caller in HANDSHAKE:
            await channel.close()


async def _failure(stream: grpc.aio.Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await stream.code(), await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details()
    )


def reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return info.reason if status is not None and status.details and status.details[0].Unpack(info) else ""


@pytest.mark.parametrize(("service", "method", "caller"), CELLS)
async def test_cell(world: World, service: str, method: str, caller: Caller) -> None:
    table = TABLES[service]
    row, promise = table[method], expected(table[method], caller)
    assert promise is not None
    before = await world.suite.head()
    handled = world.suite.handled(method)
    error = await call(world, service, table.descriptors[method], caller, row)
    if promise.code is None:
        assert error is None or reason(error) not in REFUSALS, error.details()
    else:
        assert error is not None, "should have been refused"
        assert error.code() is promise.code, error.details()
        if promise.reasons:
            assert reason(error) in promise.reasons
        assert "Traceback" not in (error.details() or "")
        assert "Error parsing" not in (error.details() or "")
    if caller in HANDSHAKE and not method.startswith("/grpc.health."):  # the services ask each other for their health
        assert world.suite.handled(method) == handled, "a handler ran"
    kinds = await world.suite.kinds_since(before, method)
    if caller is Caller.RIGHT and row.auth is Auth.POLICY:
        assert kinds & {"access", "change"}
    elif caller is Caller.RIGHT and row.auth is Auth.SESSION:
        assert "authorised" in kinds
    else:
        assert kinds == promise.recorded


async def test_every_method_has_a_request_and_every_action_is_policy() -> None:
    methods = {table.descriptors[name].full_name for table in TABLES.values() for name in table}
    assert methods <= REQUESTS.keys()
    for table in TABLES.values():
        for name, row in table.items():
            if row.auth in (Auth.POLICY, Auth.SESSION):
                assert row.action in ACTIONS, name

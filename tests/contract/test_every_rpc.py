"""Every RPC of every service, called by every kind of caller: status, reason and audit records of each cell."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from shared.rpc.methods import Auth
from tests.contract.callers import (
    BAD_TOKENS,
    FALSE_SERVICES,
    HANDSHAKE,
    PEERS,
    Caller,
    Expected,
    certificate_of,
    expected,
    forge,
)
from tests.contract.promises import OK, PROMISES, Outcome, Promise
from tests.contract.requests import REQUESTS
from tests.contract.tables import TABLES
from tests.contract.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("contract"), pytest.mark.timeout(300)]

CELLS = [
    pytest.param(service, method, caller, id=f"{service}{method}-{caller.value}")
    for service, promises in PROMISES.items()
    for method, promise in promises.items()
    for caller in Caller
    if expected(promise, caller) is not None
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a caller was told; `details` is the status message."""

    outcome: Outcome
    details: str = ""
    call_id: str = ""


def token_of(world: World, promise: Promise, method: str, caller: Caller) -> str:
    """Return the bearer token of `caller`, empty for none."""
    folder = world.suite.home / "pki" / "clients"
    if caller is Caller.FALSE_SERVICE_NOBODY:
        certificate = folder / f"{certificate_of(promise, method, caller)}.pem"
        return forge(world.suite, caller, world.nobody.token, certificate)
    if caller in (Caller.NO_TOKEN, Caller.FALSE_SERVICE, Caller.OTHER_SERVICE):
        return ""
    if caller in BAD_TOKENS:
        return forge(world.suite, caller, world.everyone.token, folder / "stranger.pem")
    return {
        Caller.FALSE_SERVICE_BACKEND: world.backend_token,
        Caller.WITHOUT_MFA: world.single_factor.token,
        Caller.WRONG_ROLE: world.nobody.token,
    }.get(caller, world.everyone.token)


def channel_of(world: World, service: str, method: str, caller: Caller) -> grpc.aio.Channel:
    suite = world.suite
    if caller is Caller.NO_CERTIFICATE:
        return grpc.aio.secure_channel(
            f"127.0.0.1:{suite.grpc[service]}",
            grpc.ssl_channel_credentials((suite.home / "pki" / "ca.pem").read_bytes()),
            options=[("grpc.ssl_target_name_override", f"{service}.bastide.local")],
        )
    if caller is Caller.FOREIGN_CA:
        return suite.channel(service, "model-server", pki=world.folder / "foreign")
    return suite.channel(service, certificate_of(PROMISES[service][method], method, caller))


async def call(world: World, service: str, method: str, caller: Caller) -> Answer:
    """Call the method as `caller`; return the answer's status and reason."""
    promise, descriptor = PROMISES[service][method], TABLES[service].descriptors[method]
    token = token_of(world, promise, method, caller)
    data = REQUESTS[descriptor.full_name](world).SerializeToString()
    if caller is Caller.MALFORMED:
        data = b"\xff\xff\xff\xff"
    elif caller is Caller.TOO_LARGE:
        data = b"\x7a" + b"\xff\xff\xff\x02" + b"x" * (5 * 1024 * 1024)
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    channel = channel_of(world, service, method, caller)
    # Others are refused before they have said anything; writing would race with that.
    heard = promise.auth is Auth.PUBLIC or caller in PEERS
    # Tails and watches go on for ever; a session is read to its end, which leaves a record.
    endless = descriptor.server_streaming and promise.auth is not Auth.SESSION
    try:
        if descriptor.client_streaming:
            stream = _open(channel.stream_stream, descriptor, method)(timeout=20, metadata=metadata)
            if heard:
                await stream.write(data)
        else:
            stream = _open(channel.unary_stream, descriptor, method)(data, timeout=20, metadata=metadata)
        return await _answer(stream, endless=endless)
    except grpc.aio.AioRpcError as error:
        return _failure(error)
    finally:
        if caller in HANDSHAKE:
            await channel.close()


def _open(kind: Any, descriptor: MethodDescriptor, method: str) -> Any:
    parse = message_factory.GetMessageClass(descriptor.output_type).FromString
    return kind(method, request_serializer=bytes, response_deserializer=parse)


async def _answer(stream: Any, *, endless: bool) -> Answer:
    answered = False
    while isinstance(await stream.read(), Message):
        answered = True
        if endless:
            stream.cancel()
            return Answer(outcome=OK)
    if await stream.code() is grpc.StatusCode.OK:
        assert answered, "ended well without an answer"
        return Answer(outcome=OK)
    return _failure(
        grpc.aio.AioRpcError(
            await stream.code(),
            await stream.initial_metadata(),
            await stream.trailing_metadata(),
            await stream.details(),
        )
    )


def _failure(error: grpc.aio.AioRpcError) -> Answer:
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    if status is not None:
        assert status.details[0].Unpack(info)
    return Answer(
        outcome=Outcome(code=error.code(), reason=info.reason),
        details=error.details() or "",
        call_id=info.metadata["call_id"],
    )


async def attempt(world: World, service: str, method: str, caller: Caller) -> tuple[Expected, Answer]:
    """Call the method, and keep count of the refusals that the log must show in aggregate."""
    promised = expected(PROMISES[service][method], caller)
    assert promised is not None
    answer = await call(world, service, method, caller)
    if promised.counted:
        world.counted[service][method, promised.outcome.reason] += 1
    return promised, answer


@pytest.mark.parametrize(("service", "method", "caller"), CELLS)
async def test_cell(world: World, service: str, method: str, caller: Caller) -> None:
    before = await world.suite.head()
    handled = world.suite.handled(method)
    promised, answer = await attempt(world, service, method, caller)
    assert answer.outcome == promised.outcome, answer.details
    assert "Traceback" not in answer.details
    assert "Error parsing" not in answer.details
    if caller in HANDSHAKE and not method.startswith("/grpc.health."):  # the services ask each other for their health
        assert world.suite.handled(method) == handled, "a handler ran"
    records = await world.own_records(before, method)
    assert tuple(record.fields["kind"] for record in records) == promised.recorded
    assert {record.writer for record in records} <= {f"spiffe://bastide.local/{service}"}
    assert len({record.fields["call_id"] for record in records}) <= 1
    for record in records:
        # What was allowed before anything happened stands as such; every other record says how the call ended.
        last = record.fields["kind"] not in ("access", "change", "authorised")
        assert record.fields["outcome"] == (answer.outcome.reason if last else "") or "OK"
        assert answer.outcome == OK or answer.call_id == record.fields["call_id"]


@pytest.mark.parametrize("service", PROMISES)
async def test_refusals_before_authentication_stand_in_the_log_with_their_number(world: World, service: str) -> None:
    for caller in (Caller.NO_TOKEN, *FALSE_SERVICES[:2]):
        for method, promise in PROMISES[service].items():
            if (promised := expected(promise, caller)) is not None and promised.counted:
                _, answer = await attempt(world, service, method, caller)
                assert answer.outcome == promised.outcome
    wanted = world.counted[service]
    await world.suite.servers[service]._refusals.flush()
    async with asyncio.timeout(10):
        # The server's own flush, every few seconds, may be under way with a part of them.
        while (found := await world.aggregated(service)).total() < wanted.total():
            await asyncio.sleep(0.05)
    assert found == wanted

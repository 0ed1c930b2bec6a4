"""Nothing that a request can carry makes a service fail: every answer to an extreme value is one that it meant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import grpc
import limits
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from bastide.policy_guard.v1 import guard_pb2, policy_pb2
from bastide.types.v1 import content_pb2
from shared.rpc.methods import Auth
from tests.contract.callers import Caller, certificate_of
from tests.contract.extremes import Change, extremes
from tests.contract.promises import PROMISES
from tests.contract.requests import REQUESTS
from tests.contract.tables import TABLES
from tests.contract.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("contract"), pytest.mark.timeout(120)]

AT_ONCE = 32
ENDLESS_SECONDS = 1.0
_PROPOSE = "bastide.policy_guard.v1.PolicyService.ProposePolicy"
# A sound bundle takes seconds to judge; a false one is read as far as anything else in the request.
_BASE = {**REQUESTS, _PROPOSE: lambda _world: policy_pb2.ProposePolicyRequest(bundle=b"not a bundle")}
METHODS = [
    pytest.param(service, method, id=f"{service}{method}")
    for service, promises in PROMISES.items()
    for method in promises
]


@pytest.fixture(autouse=True)
def _unthrottled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one certificate call public methods as often as this test does."""
    for server in world.suite.servers.values():
        monkeypatch.setattr(server._authenticate, "_public_limit", limits.RateLimitItemPerSecond(100_000))


@pytest.mark.parametrize(("service", "method"), METHODS)
async def test_no_extreme_value_of_any_field_is_an_internal_error(world: World, service: str, method: str) -> None:
    descriptor = TABLES[service].descriptors[method]
    places = asyncio.Semaphore(AT_ONCE)

    async def outcome(change: Change) -> grpc.StatusCode:
        async with places:
            return await _call(world, service, descriptor, _messages(world, descriptor, change))

    cells = dict(extremes(descriptor.input_type))
    answers = dict(zip(cells, await asyncio.gather(*map(outcome, cells.values())), strict=True))
    failed = {
        name: code for name, code in answers.items() if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    }
    assert not failed


def _messages(world: World, descriptor: MethodDescriptor, change: Change) -> Sequence[Message]:
    """Return what is sent: the changed request, after those that a session needs before it."""
    request = _BASE[descriptor.full_name](world)
    if not isinstance(request, guard_pb2.GuardInferenceRequest):
        changed = message_factory.GetMessageClass(descriptor.input_type)()
        changed.CopyFrom(request)
        change(changed)
        return [changed]
    order = [request, *_session_steps()]
    probe = guard_pb2.GuardInferenceRequest()
    change(probe)
    step = probe.WhichOneof("step")
    at = next(number for number, item in enumerate(order) if item.WhichOneof("step") == step)
    change(order[at])
    return order


def _session_steps() -> Iterator[guard_pb2.GuardInferenceRequest]:
    reserve = guard_pb2.Reserve(prompt_tokens=8, max_new_tokens=4)
    reserve.lease.FromSeconds(10)
    yield guard_pb2.GuardInferenceRequest(reserve=reserve)
    yield guard_pb2.GuardInferenceRequest(output=guard_pb2.Output(text="hello"))
    yield guard_pb2.GuardInferenceRequest(finish=guard_pb2.Finish(usage=content_pb2.Usage(prompt_tokens=8)))


async def _call(
    world: World, service: str, descriptor: MethodDescriptor, messages: Sequence[Message]
) -> grpc.StatusCode:
    method = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    promise = PROMISES[service][method]
    channel = world.suite.channel(service, certificate_of(promise, method, Caller.RIGHT))
    metadata = world.everyone.metadata if promise.auth in (Auth.POLICY, Auth.SESSION) else ()
    # Tails and watches go on for ever; a session is read to its end.
    endless = descriptor.server_streaming and not descriptor.client_streaming and promise.auth is not Auth.SESSION
    stream = channel.stream_stream(method, request_serializer=None, response_deserializer=None)(
        timeout=ENDLESS_SECONDS if endless else 20, metadata=metadata
    )
    try:
        # In step, as a session's client: what is written after the server ended the call, before this client heard of
        # it, is answered by the client's own library with INTERNAL.
        last = len(messages) - 1
        for number, message in enumerate(messages):
            await stream.write(message.SerializeToString())
            if number == last:
                await stream.done_writing()
            elif _is_last(await stream.read()):
                break
        while await stream.read() is not grpc.aio.EOF:
            if endless:
                stream.cancel()
                return grpc.StatusCode.OK
        return await stream.code()
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.InvalidStateError:  # written after the server ended the call
        return await stream.code()


def _is_last(response: object) -> bool:
    """Tell whether a session goes no further: it has ended, or is a denial or a cut."""
    if not isinstance(response, bytes):
        return True
    answer = guard_pb2.GuardInferenceResponse.FromString(response)
    return answer.HasField("cut") or (answer.HasField("decided") and not answer.decided.messages)

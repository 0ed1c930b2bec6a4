"""What bounds every call of every service, tried on one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc
from shared.identity.tokens import TokenVerifier
from shared.rpc import layers
from shared.rpc.admission import PUBLIC_CALLS, PUBLIC_STREAMS_OF_ONE
from tests.suite import Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_SECONDS = 1.5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """The audit service alone, with small limits."""
    home: Path = tmp_path_factory.mktemp("limits") / "home"
    limits = {"SERVER__MAX_CALL_SECONDS": str(MAX_SECONDS), "SERVER__MAX_CONCURRENT_CALLS": "2"}
    suite = Suite(home, overrides={"audit": limits})
    try:
        await suite.start("audit")
        yield suite
    finally:
        await suite.close()


def health(suite: Suite) -> health_pb2_grpc.HealthAsyncStub:
    return health_pb2_grpc.HealthStub(suite.channel("audit"))


def records(suite: Suite) -> audit_pb2_grpc.AuditServiceAsyncStub:
    return audit_pb2_grpc.AuditServiceStub(suite.channel("audit"))


async def check(suite: Suite, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    try:
        await health(suite).Check(health_pb2.HealthCheckRequest(), timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_stream_ends_after_its_longest_time_whatever_deadline_the_caller_set(suite: Suite) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in health(suite).Watch(health_pb2.HealthCheckRequest(), timeout=60):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert asyncio.get_running_loop().time() - started >= MAX_SECONDS


def refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether the call was refused for want of a place, and told when to come back."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and any(
        detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details
    )


async def test_streams_without_a_token_take_only_their_callers_few_places(suite: Suite) -> None:
    streams = [health(suite).Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(PUBLIC_STREAMS_OF_ONE)]
    for stream in streams:
        await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(suite).Watch(health_pb2.HealthCheckRequest(), timeout=5).read()
    assert refused(caught.value)
    # Neither another certificate nor a method of another kind is touched.
    other = health_pb2_grpc.HealthStub(suite.channel("audit", "stranger"))
    theirs = other.Watch(health_pb2.HealthCheckRequest(), timeout=5)
    assert await theirs.read()
    streams.append(theirs)
    assert await check(suite) is grpc.StatusCode.OK
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await records(suite).ListRecords(audit_pb2.ListRecordsRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    for stream in streams:
        stream.cancel()


async def test_no_client_can_make_a_service_seem_away_to_the_others(suite: Suite) -> None:
    places = suite.servers["audit"]._authenticate._public
    with contextlib.ExitStack() as stack:
        for _ in range(PUBLIC_CALLS):
            stack.enter_context(places.place())
        assert await check(suite) is grpc.StatusCode.RESOURCE_EXHAUSTED
        guard = health_pb2_grpc.HealthStub(suite.channel("audit", "policy-guard"))
        assert await guard.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_guarded_calls_beyond_the_limit_are_told_when_to_come_back_and_none_is_queued(suite: Suite) -> None:
    admitted = asyncio.Event()

    async def slow(*_: object) -> None:
        admitted.set()
        await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenVerifier, "verify", slow)
        bearer = (("authorization", "Bearer x"),)
        calls = [records(suite).ListRecords(audit_pb2.ListRecordsRequest(), metadata=bearer) for _ in range(2)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await admitted.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await records(suite).ListRecords(audit_pb2.ListRecordsRequest(), metadata=bearer, timeout=5)
        assert refused(caught.value)
        assert await check(suite) is grpc.StatusCode.OK
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_call_that_says_nothing_is_ended(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FIRST_MESSAGE_SECONDS", 0.2)
    silent = suite.channel("audit").stream_stream("/grpc.health.v1.Health/Check")(timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await silent.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "first request message" in (caught.value.details() or "")


@pytest.mark.parametrize("size", [17 * 1024, 200 * 1024])
async def test_metadata_over_the_limit_is_refused_and_the_service_lives_on(suite: Suite, size: int) -> None:
    assert await check(suite, (("x-large", "a" * size),)) is not grpc.StatusCode.OK
    assert await check(suite, (("x-small", "a" * 1024),)) is grpc.StatusCode.OK

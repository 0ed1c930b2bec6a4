"""What bounds every call of every service, tried on one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

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


async def test_calls_beyond_the_limit_are_told_when_to_come_back_and_none_is_queued(suite: Suite) -> None:
    streams = [health(suite).Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(2)]
    for stream in streams:
        await stream.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(suite).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    for stream in streams:
        stream.cancel()
    async with asyncio.timeout(10):
        while await check(suite) is not grpc.StatusCode.OK:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("size", [17 * 1024, 200 * 1024])
async def test_metadata_over_the_limit_is_refused_and_the_service_lives_on(suite: Suite, size: int) -> None:
    assert await check(suite, (("x-large", "a" * size),)) is not grpc.StatusCode.OK
    assert await check(suite, (("x-small", "a" * 1024),)) is grpc.StatusCode.OK

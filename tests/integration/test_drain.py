"""A service's process that gets SIGTERM: what it still does, what it no longer takes, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.suite import ProcessSuite, Suite

pytestmark = pytest.mark.xdist_group("server")
LIST_RECORDS = "/bastide.audit.v1.AuditService/ListRecords"
PATIENCE_SECONDS = 20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@asynccontextmanager
async def running(home: Path, *, drain_seconds: int) -> AsyncIterator[tuple[ProcessSuite, subprocess.Popen[bytes]]]:
    """Yield the audit service in a process of its own."""
    suite = ProcessSuite(home, overrides={"audit": {"SERVER__DRAIN_SECONDS": str(drain_seconds)}})
    try:
        await suite.start("audit")
        yield suite, suite.processes["audit"]
    finally:
        await suite.close()


async def refused_thrice(suite: Suite) -> None:
    """Have three calls refused that are counted, and recorded together later."""
    for _ in range(3):
        stub = audit_pb2_grpc.AuditServiceStub(suite.channel("audit"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListRecords(audit_pb2.ListRecordsRequest(), timeout=PATIENCE_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def counted(suite: Suite) -> int:
    """Return how many refusals of those calls the log that the process left holds."""
    await Suite.start(suite, "audit")
    try:
        records = await suite.records_since(0, method=LIST_RECORDS)
    finally:
        await Suite.stop(suite, "audit")
    assert {(record.fields["kind"], record.fields["outcome"]) for record in records} <= {("refused", "UNAUTHENTICATED")}
    return sum(json.loads(record.leaf)["record"]["data"]["count"] for record in records)


async def drains(suite: ProcessSuite) -> None:
    """Wait until the service says that it is stopping."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while "the service is stopping" not in await asyncio.to_thread(suite.problems, "audit"):
            await asyncio.sleep(0.02)


async def read_to_the_end(stream: grpc.aio.UnaryStreamCall) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_at_sigterm_a_running_call_goes_on_to_its_end_and_no_new_one_is_taken(home: Path) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with running(home, drain_seconds=60) as (suite, process):
        call = reflection_pb2_grpc.ServerReflectionStub(suite.channel("audit")).ServerReflectionInfo(timeout=60)
        await call.write(asked)
        first = await call.read()
        await refused_thrice(suite)
        process.send_signal(signal.SIGTERM)
        await drains(suite)
        stranger = health_pb2_grpc.HealthStub(suite.channel("audit", "stranger"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stranger.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await call.write(asked)
        assert await call.read() == first
        assert process.poll() is None
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        # Long before the deadline: nothing is left to wait for.
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0
        assert await counted(suite) == 3


async def test_at_sigterm_a_call_that_does_not_end_is_cut_at_the_deadline(home: Path) -> None:
    async with running(home, drain_seconds=1) as (suite, process):
        endless = health_pb2_grpc.HealthStub(suite.channel("audit")).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert await endless.read()
        await refused_thrice(suite)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await read_to_the_end(endless)
        assert cut.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == 0
        assert await counted(suite) == 3

"""What the guard and the log cost by themselves."""

from __future__ import annotations

import datetime as dt
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.policy_guard.v1 import guard_pb2, guard_pb2_grpc
from bastide.types.v1 import content_pb2, principal_pb2
from tests.bench.measure import Series, at_least, at_most, compare, latencies, show
from tests.bench.scanning import PROSE
from tests.bench.stage import Stage


async def decisions(stage: Stage, runs: int, *, engine: str) -> None:
    """A guard session from open to decided with a 2 KB prompt, and CheckAccess, as the model server asks."""
    stub = guard_pb2_grpc.GuardServiceStub(stage.suite.channel("policy-guard", "model-server"))
    workload = stage.suite.workload("cli")
    opening = guard_pb2.OpenSession(
        token=stage.user.token, workload=workload, method="/bastide.model_server.v1.InferenceService/Generate",
        call_id="bench", purpose="internal-assistant",
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content=(PROSE * 20)[:2048])],
        model=guard_pb2.ModelFacts(
            name="canned", version="models/canned/versions/1", loaded=True,
            classification=principal_pb2.CLASSIFICATION_PUBLIC, control_tokens_safe=True,
        ),
    )  # fmt: skip

    async def open_session() -> None:
        stream = stub.GuardInference(timeout=10)
        await stream.write(guard_pb2.GuardInferenceRequest(open=opening))
        answer = await stream.read()
        assert answer.decided.messages, "the bench's call should be allowed"
        stream.cancel()

    def check() -> Awaitable[object]:
        return stub.CheckAccess(
            guard_pb2.CheckAccessRequest(
                token=stage.user.token, workload=workload, method="/x/y", action="model_server.model.list",
                resource=guard_pb2.Resource(type="model"),
            ),
            timeout=10,
        )  # fmt: skip

    p50, p99 = Series("session open → decided, p50", "ms"), Series("  p99", "ms")
    rate, access = Series("  decisions at 8 callers", "/s"), Series("CheckAccess p50", "ms")
    for _ in range(runs):
        taken, _ = await latencies(open_session, calls=100, callers=1)
        p50.values.append(statistics.median(taken) * 1000)
        p99.values.append(sorted(taken)[98] * 1000)
        rate.values.append((await latencies(open_session, calls=200, callers=8))[1])
        taken, _ = await latencies(check, calls=100, callers=1)
        access.values.append(statistics.median(taken) * 1000)
    show(f"Guard decisions, 2 KB prompt ({engine})", [p50, p99, rate, access], [at_most(p50, 3)])


async def appends(stage: Stage, runs: int) -> None:
    """Durable appends over gRPC, single and batched, against grouped fdatasync of as many bytes."""
    stub = audit_pb2_grpc.AuditServiceStub(stage.suite.channel("audit", "model-server"))

    def request(count: int) -> audit_pb2.AppendRecordsRequest:
        records = []
        for _ in range(count):
            record = record_pb2.Record(
                record_id=os.urandom(12).hex(), kind=record_pb2.RECORD_KIND_SYSTEM, call_id="bench", method="-"
            )
            record.occurred_at.FromDatetime(dt.datetime.now(dt.UTC))
            records.append(record)
        return audit_pb2.AppendRecordsRequest(records=records)

    single = Series("append, one at a time", "ms")
    batched = Series("appends, 64 a request, 16 requests in flight", "records/s")
    synced = Series("peer: fdatasync of 64 KiB at a time", "KiB/s")
    for _ in range(runs):
        taken, _ = await latencies(lambda: stub.AppendRecords(request(1), timeout=10), calls=30, callers=1)
        single.values.append(statistics.median(taken) * 1000)
        _, rate = await latencies(lambda: stub.AppendRecords(request(64), timeout=30), calls=48, callers=16)
        batched.values.append(rate * 64)
        with tempfile.NamedTemporaryFile(dir=stage.suite.home) as file:
            started = time.perf_counter()
            for _ in range(32):
                file.write(os.urandom(64 * 1024))
                file.flush()
                os.fdatasync(file.fileno())
            synced.values.append(32 * 64 / (time.perf_counter() - started))
    show(
        "Durable appends (acknowledged = on disk, in the tree, signed)",
        [single, batched, synced, compare("records/s / KiB/s of the peer", batched, synced)],
        [at_least(batched, 2000)],
    )

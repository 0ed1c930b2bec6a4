"""`make bench`: see README.md of the services for what the figures mean. Nothing is asserted; everything ends by itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import openai

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc, inference_pb2, inference_pb2_grpc
from bastide.policy_guard.v1 import guard_pb2, guard_pb2_grpc
from bastide.types.v1 import content_pb2, principal_pb2
from shared.inspection.scanner import Scanner
from tests.bench.measure import OUT, Series, latencies, show
from tests.fakes.remote_model import MODEL
from tests.suite import ROOT, Person, ProcessSuite

PROSE = (
    "The committee reviewed the annual budget in detail, and nobody complained about the travel costs of the "
    "department, which had been reduced by a third since the spring. "
)
LITELLM = "the LiteLLM proxy's venv is not here (LITELLM_VENV); measured earlier: +18 ms unary, +49 ms streamed, 70 calls/s and 17 streams/s at 8 callers"


def scanning(runs: int) -> None:
    """Scan speed; its peer, pattern-only Presidio, when it is installed."""
    scanner = Scanner()
    series = []
    for size in (500, 2048):
        text = (PROSE * 20)[:size]
        item = Series(f"scan of {size} characters", "µs")
        for _ in range(runs):
            started = time.perf_counter()
            for _ in range(200):
                scanner.scan(text)
            item.values.append((time.perf_counter() - started) / 200 * 1e6)
        series.append(item)
    missing = importlib.util.find_spec("presidio_analyzer") is None
    show("Scanning", series, ["peer: presidio-analyzer is not installed: no ratio"] if missing else [])


async def appends(suite: ProcessSuite, runs: int) -> None:
    """Durable appends over gRPC, single and batched, against grouped fdatasync of as many bytes."""
    stub = audit_pb2_grpc.AuditServiceStub(suite.channel("audit", "model-server"))

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
    synced = Series("peer: fdatasync of 64 KiB at a time", "KiB records/s")
    for _ in range(runs):
        taken, _ = await latencies(lambda: stub.AppendRecords(request(1), timeout=10), calls=30, callers=1)
        single.values.append(statistics.median(taken) * 1000)
        _, rate = await latencies(lambda: stub.AppendRecords(request(64), timeout=30), calls=48, callers=16)
        batched.values.append(rate * 64)
        with tempfile.NamedTemporaryFile(dir=suite.home) as file:
            started = time.perf_counter()
            for _ in range(32):
                file.write(os.urandom(64 * 1024))
                file.flush()
                os.fdatasync(file.fileno())
            synced.values.append(32 * 64 / (time.perf_counter() - started))
    ratio = batched.median / synced.median
    show("Durable appends (acknowledged = on disk, in the tree, signed)", [single, batched, synced],
         [f"aim >= 2,000 records/s: {batched.median:,.0f}", f"ratio to plain fdatasync of as many KiB: {ratio:.3f}"])  # fmt: skip


async def decisions(suite: ProcessSuite, user: Person, runs: int, engine: str) -> None:
    """A guard session from open to decided with a 2 KB prompt, and CheckAccess, as the model server asks."""
    stub = guard_pb2_grpc.GuardServiceStub(suite.channel("policy-guard", "model-server"))
    workload = suite.workload("cli")
    opening = guard_pb2.OpenSession(
        token=user.token, workload=workload, method="/bastide.model_server.v1.InferenceService/Generate",
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
                token=user.token, workload=workload, method="/x/y", action="model_server.model.list",
                resource=guard_pb2.Resource(type="model"),
            ),
            timeout=10,
        )  # fmt: skip

    p50, p99 = Series(f"session open → decided, {engine}: p50", "ms"), Series("  p99", "ms")
    rate, access = Series("  decisions at 8 callers", "/s"), Series("CheckAccess p50", "ms")
    for _ in range(runs):
        taken, _ = await latencies(open_session, calls=100, callers=1)
        p50.values.append(statistics.median(taken) * 1000)
        p99.values.append(sorted(taken)[98] * 1000)
        rate.values.append((await latencies(open_session, calls=200, callers=8))[1])
        taken, _ = await latencies(check, calls=100, callers=1)
        access.values.append(statistics.median(taken) * 1000)
    show(
        f"Guard decisions, 2 KB prompt ({engine})", [p50, p99, rate, access], [f"aim p50 <= 3 ms: {p50.median:.2f} ms"]
    )


async def guarded(suite: ProcessSuite, user: Person, url: str, runs: int) -> None:
    """The whole guarded, recorded call over the canned backend, against calling that backend directly."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    stub = inference_pb2_grpc.InferenceServiceStub(suite.channel("model-server"))
    call = inference_pb2.InferenceCall(
        model="canned", purpose="internal-assistant",
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content="Say forty words.")],
        parameters=content_pb2.SamplingParameters(max_new_tokens=64),
    )  # fmt: skip

    async def direct() -> None:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True, timeout=30
        )
        async for _ in answer:
            pass

    def unary() -> Awaitable[object]:
        return stub.Generate(inference_pb2.GenerateRequest(call=call), metadata=user.metadata, timeout=30)

    async def streamed() -> None:
        async for _ in stub.GenerateStream(
            inference_pb2.GenerateStreamRequest(call=call), metadata=user.metadata, timeout=30
        ):
            pass

    kinds: dict[str, Callable[[], Awaitable[object]]] = {"direct": direct, "unary": unary, "streamed": streamed}
    milliseconds = {name: Series(f"{name}: one call", "ms") for name in kinds}
    rates = {name: Series(f"{name}: 8 callers", "calls/s") for name in kinds}
    for work in kinds.values():
        await latencies(work, calls=8, callers=4)
    for _ in range(runs):
        for name, work in kinds.items():
            taken, _ = await latencies(work, calls=20, callers=1)
            milliseconds[name].values.append(statistics.median(taken) * 1000)
            rates[name].values.append((await latencies(work, calls=64, callers=8))[1])
    added = {name: milliseconds[name].median - milliseconds["direct"].median for name in ("unary", "streamed")}
    show(
        "The guarded, recorded call over a canned backend (40 chunks)",
        [*milliseconds.values(), *rates.values()],
        [f"added: {added['unary']:.1f} ms unary, {added['streamed']:.1f} ms streamed", LITELLM],
    )


@contextlib.asynccontextmanager
async def stage(home: Path, engine: str) -> AsyncIterator[tuple[ProcessSuite, Person, str]]:
    """Yield the running suite with a released canned model and a person who may use it."""
    canned = subprocess.Popen([sys.executable, "-m", "tests.bench.canned"], stdout=subprocess.PIPE, text=True)
    assert canned.stdout is not None
    url = canned.stdout.readline().strip()
    policies = home.parent / "policies"
    shutil.copytree(ROOT / "services/policy_guard/policies", policies)
    # The default bundle allows a person 120 calls a minute, which is what would be measured.
    limits = policies / "bastide/limits/data.yaml"
    limits.write_text(re.sub(r"limit: (\d+)", r"limit: \g<1>000", limits.read_text()))
    remotes = json.dumps({"canned": {"kind": "openai", "url": f"{url}/v1"}})
    suite = ProcessSuite(
        home,
        overrides={"model-server": {"REMOTES": remotes}, "policy-guard": {"ENGINE": engine, "POLICIES": str(policies)}},
    )
    try:
        await suite.start()
        ada, _ = await suite.bootstrap()
        manager = await suite.person(ada, "mia@example.org", "model-manager")
        approver = await suite.person(ada, "raj@example.org", "release-approver")
        user = await suite.person(ada, "uma@example.org", "user")
        catalog = catalog_pb2_grpc.CatalogServiceStub(suite.channel("model-server"))
        declared = catalog_pb2.Declared(backend="canned", remote_model=MODEL, revision="1", license="Apache-2.0")
        answer = await catalog.DeclareModel(
            catalog_pb2.DeclareModelRequest(model_id="canned", declared=declared, context_length=4096),
            metadata=manager.metadata, timeout=10,
        )  # fmt: skip
        await suite.release(approver, answer.version.name)
        yield suite, user, url
    finally:
        await suite.close()
        canned.terminate()
        canned.wait(10)


async def run(runs: int) -> None:
    scanning(runs)
    engines = ["embedded", *(["opa"] if os.environ.get("OPA_BIN") else [])]
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder:
            async with stage(Path(folder) / "home", engine) as (suite, user, url):
                await decisions(suite, user, runs, engine)
                if engine == "embedded":
                    await guarded(suite, user, url, runs)
                    await appends(suite, runs)
    if "opa" not in engines:
        OUT.print("opa is not installed: decisions were measured on the embedded engine only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    asyncio.run(run(parser.parse_args().runs))


if __name__ == "__main__":
    main()

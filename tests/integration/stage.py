"""The stage of the failure tests: real services, with a fake in the place of whatever is to fail.

caller -> model server -> [interposer] guard -> [interpreter or opa with a fault before it]
                       -> [interposer] audit
                       -> scripted backend, or OpenAI backend -> [remote model double]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc, inference_pb2, inference_pb2_grpc
from bastide.types.v1 import content_pb2, evidence_pb2
from services.model_server import server as model_server
from services.model_server.backends import Backend
from services.policy_guard import embedded
from shared import observability
from tests import tools
from tests.fakes.interposer import Interposer, audit_step, guard_step
from tests.fakes.policy_engines import Engines, Mode
from tests.fakes.remote_model import GOOD as REMOTE_GOOD
from tests.fakes.remote_model import MODEL as REMOTE_MODEL
from tests.fakes.remote_model import RemoteModel
from tests.fakes.scripted_backend import GOOD, ScriptedBackend
from tests.fakes.tiny_model import build_tiny_model
from tests.suite import ROOT, Person, Suite, free_ports

DISCLOSURE = "This answer was written by a machine. Check it before you rely on it.\n\n"
PATIENCE_SECONDS = 30.0
# Deadlines of the model server and the guard; the fakes are late by more. None is shorter than a machine that runs
# other things too may stand still.
PEER_SECONDS = 2.0
DECISION_SECONDS = 1.0
GENERATION_SECONDS = 4.0
BUDGETED = "bud@example.org"


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What the caller saw."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    reason: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    retry: float | None = None
    call_id: str = ""
    text: str = ""
    end: inference_pb2.GenerationEnd | None = None

    @property
    def receipt(self) -> evidence_pb2.Receipt:
        assert self.end is not None, (self.code, self.reason)
        return self.end.receipt


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for `condition`, a deadline long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        await asyncio.sleep(0.01)


def question(
    text: str = "hello there", *, model: str = "tiny", purpose: str = "internal-assistant", request_id: str = ""
) -> inference_pb2.InferenceCall:
    return inference_pb2.InferenceCall(
        model=model,
        purpose=purpose,
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content=text)],
        parameters=content_pb2.SamplingParameters(max_new_tokens=2000),
        request_id=request_id,
    )


class Stage:
    """Everything a test needs to have one part fail and to see what follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real_opa = tools.find("opa")
        self.engines = Engines(folder / "engines", self.real_opa)
        self.backend = ScriptedBackend()
        self.remote = RemoteModel()
        self.spans = InMemorySpanExporter()
        self.log = folder / "log"
        self.administrator: Person
        self.user: Person
        self.manager: Person
        self.approver: Person
        self.auditor: Person
        self.budgeted: Person

    @property
    def home(self) -> Path:
        return self.suite.home

    @property
    def outbox(self) -> list[Path]:
        """Records that wait for the audit log."""
        return sorted((self.home / "model-server" / "outbox").glob("*.sealed"))

    @contextlib.asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
        self._observe(monkeypatch)
        (self.folder / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(self.folder / "tmp"))
        guard_port, audit_port = free_ports(2)
        build_tiny_model(self.folder / "models" / "tiny")
        async with self.remote.running():
            overrides = self.overrides()
            overrides["model-server"] |= {
                "GUARD__ADDRESS": f"127.0.0.1:{guard_port}",
                "AUDIT__ADDRESS": f"127.0.0.1:{audit_port}",
            }
            self.suite = Suite(self.folder / "home", overrides=overrides)
            ports = self.suite.grpc
            self.guard = Interposer(
                self.home,
                "policy-guard",
                method="GuardInference",
                port=guard_port,
                target=ports["policy-guard"],
                step=guard_step,
            )
            self.audit = Interposer(
                self.home, "audit", method="AppendRecords", port=audit_port, target=ports["audit"], step=audit_step
            )
            real_backend = model_server._backend

            def backend(version: Any, **rest: Any) -> Backend:
                return self.backend if version.manifest.loaded else real_backend(version, **rest)

            monkeypatch.setattr(model_server, "_backend", backend)
            monkeypatch.syspath_prepend(self.engines.folder)
            monkeypatch.setattr(embedded, "_TARGET", f"{self.engines.module}:evaluator")
            try:
                await self.suite.start("audit")
                await self.suite.start("policy-guard")
                await self.guard.start()
                await self.audit.start()
                await self.suite.start("model-server")
                await self.cast()
                yield self
            finally:
                await self.suite.close()
                await self.guard.close()
                await self.audit.close()
                structlog.reset_defaults()

    def overrides(self) -> dict[str, dict[str, str]]:
        """Return settings by service: short deadlines, the fakes, budgets for many calls."""
        return {
            "audit": {"LEASE_CHECK_SECONDS": "1"},
            "policy-guard": {
                "POLICIES": str(self._policies()),
                "ENGINE": "embedded",
                "DECISION_SECONDS": str(DECISION_SECONDS),
                "TOKEN_SECONDS": "3600",
            },
            "model-server": {
                "IMPORT_ROOTS": f'["{self.folder / "models"}"]',
                "REMOTES": f'{{"fake": {{"kind": "openai", "url": "{self.remote.url}/v1"}}}}',
                "GUARD__TIMEOUT_SECONDS": str(PEER_SECONDS),
                "AUDIT__TIMEOUT_SECONDS": str(PEER_SECONDS),
                "MAX_GENERATION_SECONDS": str(GENERATION_SECONDS),
            },
        }

    async def use(self, engine: str) -> None:
        """Have the guard run on `engine`."""
        self.suite._overrides["policy-guard"] |= {"ENGINE": engine, "OPA_BINARY": str(self.engines.opa)}
        await self.suite.stop("policy-guard")
        await self.suite.start("policy-guard")
        await self.well()

    async def reset(self) -> None:
        """Take all faults back, and wait until calls are answered again."""
        await self.guard.revive()
        await self.audit.revive()
        self.engines.set(Mode.WELL)
        self.backend.says(*GOOD)
        self.backend.up = True
        self.remote.events = REMOTE_GOOD
        self.remote.status = 200
        await self.well()

    async def well(self, call: inference_pb2.InferenceCall | None = None) -> Outcome:
        """Wait until `call` is answered whole, with a receipt, and no record waits."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (outcome := await self.ask(call=call)).code is not grpc.StatusCode.OK:
            assert time.monotonic() < deadline, (outcome.code, outcome.reason, outcome.details)
            await asyncio.sleep(0.05)
        assert outcome.receipt.proof
        await until(lambda: not self.outbox, "the outbox is delivered")
        return outcome

    async def ask(
        self,
        how: str = "unary",
        call: inference_pb2.InferenceCall | None = None,
        *,
        person: Person | None = None,
        on_text: Callable[[str], None] = lambda _: None,
        timeout: float = PATIENCE_SECONDS,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> Outcome:
        """Call `Generate` or `GenerateStream` and return what came of it."""
        stub = inference_pb2_grpc.InferenceServiceStub(self.suite.channel("model-server"))
        call = call or question()
        metadata = ((person or self.user).metadata) + metadata
        outcome = Outcome()
        try:
            if how == "unary":
                answer = await stub.Generate(
                    inference_pb2.GenerateRequest(call=call), metadata=metadata, timeout=timeout
                )
                outcome.text, outcome.end = answer.text, answer.end
            else:
                async for event in stub.GenerateStream(
                    inference_pb2.GenerateStreamRequest(call=call), metadata=metadata, timeout=timeout
                ):
                    if event.HasField("start"):
                        outcome.call_id = event.start.call_id
                    elif event.HasField("chunk"):
                        outcome.text += event.chunk.text
                        on_text(outcome.text)
                    else:
                        outcome.end = event.end
        except grpc.aio.AioRpcError as error:
            explain(error, outcome)
        if outcome.end is not None:
            outcome.call_id = outcome.end.receipt.call_id
        return outcome

    async def kinds(self, call_id: str) -> list[str]:
        """Return the kinds of the call's records, oldest first."""
        stub = audit_pb2_grpc.AuditServiceStub(self.suite.channel("audit"))
        answer = await stub.ListRecords(
            audit_pb2.ListRecordsRequest(filter=audit_pb2.RecordFilter(call_id=call_id)),
            metadata=self.auditor.metadata,
            timeout=PATIENCE_SECONDS,
        )
        kinds = [record_pb2.RecordKind.Name(item.kind) for item in reversed(answer.entries)]
        return [kind.removeprefix("RECORD_KIND_") for kind in kinds]

    async def recorded(self, call_id: str, *expected: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the log holds exactly these kinds of the call."""
        deadline = time.monotonic() + seconds
        while (found := await self.kinds(call_id)) != list(expected):
            assert time.monotonic() < deadline, f"recorded {found}, not {list(expected)}"
            await asyncio.sleep(0.05)

    def _observe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Log and trace as a service does, to where a test can read it."""
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", self.log.open("a", buffering=1))
            observability.configure(observability.ObservabilitySettings(), service="stage")
        structlog.configure(cache_logger_on_first_use=False)
        provider: Any = trace.get_tracer_provider()
        provider.sampler = ALWAYS_ON  # as where there is an endpoint
        provider.add_span_processor(SimpleSpanProcessor(self.spans))

    def _policies(self) -> Path:
        """The default policies with budgets that tests cannot exhaust, and one person's that a single call does."""
        copy = self.folder / "policies"
        shutil.copytree(ROOT / "services/policy_guard/policies", copy)
        limits = copy / "bastide/limits/data.yaml"
        text = limits.read_text().replace("limit: 120,", "limit: 1000000,").replace("limit: 3000,", "limit: 1000000,")
        text = text.replace("limit: 500000,", "limit: 500000000,").replace("limit: 1000000, w", "limit: 500000000, w")
        head, _, tail = text.rpartition("    named: {}\n  MODEL:")
        assert head
        named = f"    named:\n      {BUDGETED}:\n        - {{unit: REQUESTS, limit: 1, window_seconds: 3600}}\n  MODEL:"
        limits.write_text(head + named + tail)
        return copy

    async def cast(self) -> None:
        """Enrol everybody and release both models."""
        self.administrator, _ = await self.suite.bootstrap()
        ada = self.administrator
        self.manager = manager = await self.suite.person(ada, "mia@example.org", "model-manager")
        self.approver = approver = await self.suite.person(ada, "raj@example.org", "release-approver")
        self.user = await self.suite.person(ada, "uma@example.org", "user")
        self.auditor = await self.suite.person(ada, "kim@example.org", "auditor")
        self.budgeted = await self.suite.person(ada, BUDGETED, "user")
        await self.suite.release(approver, await self.suite.import_model(manager, "directory:tiny"))
        catalog = catalog_pb2_grpc.CatalogServiceStub(self.suite.channel("model-server"))
        declared = catalog_pb2.Declared(backend="fake", remote_model=REMOTE_MODEL, revision="1", license="Apache-2.0")
        answer = await catalog.DeclareModel(
            catalog_pb2.DeclareModelRequest(model_id="remote", declared=declared, context_length=4096),
            metadata=manager.metadata,
            timeout=PATIENCE_SECONDS,
        )
        await self.suite.release(approver, answer.version.name)


def explain(error: grpc.aio.AioRpcError, outcome: Outcome) -> None:
    """Write into `outcome` what the failed call says."""
    outcome.code, outcome.details = error.code(), error.details() or ""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            outcome.reason, outcome.metadata = info.reason, dict(info.metadata)
            outcome.call_id = info.metadata["call_id"]
        elif detail.Unpack(retry):
            outcome.retry = retry.retry_delay.ToTimedelta().total_seconds()

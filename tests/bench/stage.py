"""The running suite that is measured, and who calls it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc, inference_pb2, inference_pb2_grpc
from bastide.types.v1 import content_pb2
from tests.fakes.remote_model import MODEL
from tests.suite import ROOT, Person, ProcessSuite

BACKEND = "example-backend"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The suite, each service a process of its own, and the people in it."""

    suite: ProcessSuite
    manager: Person
    approver: Person
    user: Person

    def inference(self, client: str = "cli") -> inference_pb2_grpc.InferenceServiceAsyncStub:
        return inference_pb2_grpc.InferenceServiceStub(self.suite.channel("model-server", client))

    async def declare(self, backend: str) -> None:
        """Release what the remote server `backend` serves, under that name."""
        catalog = catalog_pb2_grpc.CatalogServiceStub(self.suite.channel("model-server"))
        declared = catalog_pb2.Declared(backend=backend, remote_model=MODEL, revision="1", license="Apache-2.0")
        answer = await catalog.DeclareModel(
            catalog_pb2.DeclareModelRequest(model_id=backend, declared=declared, context_length=4096),
            metadata=self.manager.metadata, timeout=10,
        )  # fmt: skip
        await self.suite.release(self.approver, answer.version.name)

    async def load(self, source: str, *, model: str) -> None:
        """Import and release a model for the embedded backend."""
        await self.suite.release(self.approver, await self.suite.import_model(self.manager, source, model=model))


def call(model: str, prompt: str, tokens: int) -> inference_pb2.InferenceCall:
    """Return a greedy call."""
    return inference_pb2.InferenceCall(
        model=model,
        purpose="internal-assistant",
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content=prompt)],
        parameters=content_pb2.SamplingParameters(max_new_tokens=tokens, temperature=0),
    )


@contextlib.asynccontextmanager
async def stage(folder: Path, *, engine: str = "embedded", remotes: Mapping[str, str]) -> AsyncIterator[Stage]:
    """Yield the running suite; `remotes` are API roots by the name of the backend."""
    policies = folder / "policies"
    shutil.copytree(ROOT / "services/policy_guard/policies", policies)
    # The default bundle allows a person 120 calls a minute, which is what would be measured.
    limits = policies / "bastide/limits/data.yaml"
    limits.write_text(re.sub(r"limit: (\d+)", r"limit: \g<1>000", limits.read_text()))
    servers = json.dumps({name: {"kind": "openai", "url": url} for name, url in remotes.items()})
    suite = ProcessSuite(
        folder / "home",
        overrides={
            "model-server": {"REMOTES": servers},
            "policy-guard": {"ENGINE": engine, "POLICIES": str(policies), "TOKEN_SECONDS": "3600"},
        },
    )
    try:
        await suite.start()
        ada, _ = await suite.bootstrap()
        yield Stage(
            suite=suite,
            manager=await suite.person(ada, "mia@example.org", "model-manager"),
            approver=await suite.person(ada, "raj@example.org", "release-approver"),
            user=await suite.person(ada, "uma@example.org", "user"),
        )
    finally:
        await suite.close()

"""The suite that all cells share, and what their requests name in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2
from services.audit.entry import Record
from services.policy_guard.bundle import read_directory
from tests.contract.callers import false_pki
from tests.fakes.tiny_model import build_tiny_model
from tests.suite import ROOT, Person, Suite

POLICIES = ROOT / "services/policy_guard/policies"


@dataclasses.dataclass(kw_only=True)
class World:
    """`everyone` has every role and both factors; `nobody` a role that policy does not know."""

    suite: Suite
    folder: Path
    everyone: Person
    single_factor: Person
    nobody: Person
    backend_token: str
    newcomer: str
    enrollment_code: str
    import_job: str
    recorded_call: str
    bundle: bytes
    started_at: int
    """Size of the log when the first cell began."""
    counted: dict[str, Counter[tuple[str, str]]] = dataclasses.field(default_factory=lambda: defaultdict(Counter))
    """Service -> (method, reason) -> how many refusals were made that the log must show in aggregate."""

    async def aggregated(self, service: str) -> Counter[tuple[str, str]]:
        """Return what the log shows: (method, reason) -> the sum of the counts of its aggregated refusals."""
        found: Counter[tuple[str, str]] = Counter()
        for record in await self.suite.records_since(self.started_at, writer=f"spiffe://bastide.local/{service}"):
            if count := count_of(record):
                assert record.fields["kind"] == "refused"
                assert "principal" not in record.fields
                found[record.fields["method"], record.fields["outcome"]] += count
        return found

    async def own_records(self, index: int, method: str) -> list[Record]:
        """Return the records about single calls of `method` from `index` on, oldest first."""
        return [item for item in await self.suite.records_since(index, method=method) if not count_of(item)]


def count_of(record: Record) -> int:
    """Return how many calls an aggregated record stands for, 0 for one about a single call."""
    return int(json.loads(record.leaf)["record"]["data"].get("count", 0))


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[World]:
    """Start a suite with a model released twice, a finished import, and people of every and of no useful role."""
    build_tiny_model(folder / "models" / "tiny")
    suite = Suite(folder / "home", overrides={"model-server": {"IMPORT_ROOTS": f'["{folder / "models"}"]'}})
    try:
        await suite.start()
        ada, _ = await suite.bootstrap()
        roles = yaml.safe_load((POLICIES / "bastide/roles/data.yaml").read_text())
        everyone = await suite.person(ada, "eve@example.org", *roles)
        manager = await suite.person(ada, "mia@example.org", "model-manager")
        version = await suite.import_model(manager, "directory:tiny")
        for _ in range(2):
            await suite.release(everyone, version)
        jobs = await catalog_pb2_grpc.CatalogServiceStub(suite.channel("model-server")).ListImportJobs(
            catalog_pb2.ListImportJobsRequest(), metadata=manager.metadata, timeout=10
        )
        newcomer = await suite.identity.CreateUser(
            identity_pb2.CreateUserRequest(user=identity_pb2.User(subject="new@example.org", tenant="default")),
            metadata=ada.metadata,
            timeout=10,
        )
        nobody = await suite.person(ada, "tom@example.org", accept=False)
        false_pki(suite, folder)
        records = await suite.records_since(0)
        yield World(
            suite=suite,
            folder=folder,
            everyone=everyone,
            single_factor=await suite.sign_in(everyone, mfa=False),
            nobody=nobody,
            backend_token=dict(await suite.backend_token())["authorization"].removeprefix("Bearer "),
            newcomer=newcomer.user.subject,
            enrollment_code=newcomer.enrollment_code,
            import_job=jobs.jobs[0].name,
            recorded_call=records[-1].fields["call_id"],
            bundle=read_directory(POLICIES).archive(),
            started_at=await suite.head(),
        )
    finally:
        await suite.close()

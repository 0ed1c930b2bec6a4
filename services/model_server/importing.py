"""The work of one import job: read the source, encrypt its parts, sign, enter in the log, publish."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from bastide.audit.v1 import record_pb2
from services.model_server.catalog import Catalog, DeclaredModel, Evidence, Manifest, Version
from services.model_server.importer import ImportedModel, import_model
from services.model_server.imports import ImportJob, succeed
from services.model_server.provenance import FACT, Provenance, statement_digest
from services.model_server.sources import packaged_model
from shared.audit import AuditLog, record_of
from shared.errors import FailedPrecondition, InvalidArgument
from shared.objects import ArtifactRef, ObjectStore

Report = Callable[[str, int, int, str], Awaitable[None]]


class SourceNotAllowed(FailedPrecondition):
    """The configuration names no such source."""

    reason = "SOURCE_NOT_ALLOWED"


class Importing:
    """Performs import jobs."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: ObjectStore,
        provenance: Provenance,
        audit: AuditLog,
        roots: Sequence[Path],
        packages: Sequence[str],
        remotes: frozenset[str],
        max_bytes: int,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """Import from `packages` and from folders under `roots` only; declare models of `remotes` only.

        An import holds a model's files in memory: `max_bytes` at most.
        """
        self._catalog = catalog
        self._store = store
        self._provenance = provenance
        self._audit = audit
        self._roots = roots
        self._packages = packages
        self._remotes = remotes
        self._max_bytes = max_bytes
        self._clock = clock

    async def perform(self, job: ImportJob, report: Report) -> None:
        """Import what `job` names and publish it as a version. Raises `Error`."""
        path, name, version = await asyncio.to_thread(self._resolve, job.source)
        number = await self._catalog.next_number(job.model)
        writer = _ReportingWriter(self._store, report, asyncio.get_running_loop())
        await report("convert", 0, 0, "bytes")
        imported: ImportedModel = await asyncio.to_thread(
            import_model,
            path,
            writer=writer,
            # Objects of a failed attempt are never named again, so a retry cannot meet them.
            prefix=f"models/{job.model}/{number}-{uuid.uuid4()}",
            name=name,
            version=version,
            declared_license=job.license,
            max_bytes=self._max_bytes,
        )
        manifest = Manifest(
            model=job.model,
            number=number,
            classification="PUBLIC",
            permitted_purposes=(),
            imported=imported,
            declared=None,
        )
        await report("publish", 0, 1, "versions")
        evidence = await self._enter(manifest, submitter=job.submitter, cause=job.id)
        await self._catalog.publish(
            manifest,
            evidence,
            submitter=job.submitter,
            description=job.description,
            together_with=functools.partial(succeed, job=job, version=number, now=self._clock()),
        )

    async def declare(
        self, model: str, declared: DeclaredModel, *, submitter: str, description: str, cause: str
    ) -> Version:
        """Publish a version that a remote server only declares. Raises SourceNotAllowed or Aborted."""
        if declared.backend not in self._remotes:
            raise SourceNotAllowed("this server is not configured with such a backend")
        manifest = Manifest(
            model=model,
            number=await self._catalog.next_number(model),
            classification="PUBLIC",
            permitted_purposes=(),
            imported=None,
            declared=declared,
        )
        evidence = await self._enter(manifest, submitter=submitter, cause=cause)
        return await self._catalog.publish(manifest, evidence, submitter=submitter, description=description)

    async def _enter(self, manifest: Manifest, *, submitter: str, cause: str) -> Evidence:
        statement = self._provenance.import_statement(manifest, submitter=submitter)
        record = record_of(
            record_pb2.RECORD_KIND_SYSTEM,
            call_id=cause,
            method="-",
            action="model_server.model.import",
            resource=manifest.name,
        )
        record.facts.update({FACT: statement_digest(statement), "manifest": manifest.digest, "cause": cause})
        (appended,) = await self._audit.append([record])
        return Evidence(statement=statement, log_leaf=appended.leaf, log_proof=appended.proof)

    def _resolve(self, source: str) -> tuple[Path, str, str]:
        kind, _, name = source.partition(":")
        if kind == "package" and name in self._packages:
            packaged = packaged_model(name)
            return packaged.path, packaged.name, packaged.version
        if kind == "directory" and name and "/" not in name and name not in (".", ".."):
            for root in self._roots:
                if (root / name).is_dir() and not (root / name).is_symlink():
                    return root / name, f"directory:{name}", ""
        if kind not in ("package", "directory"):
            raise InvalidArgument("a source is package:<name> or directory:<name>", field="source")
        raise SourceNotAllowed("this server is not configured to import from there")


class _ReportingWriter:
    """Writes through to the store and reports bytes from the importing thread."""

    def __init__(self, store: ObjectStore, report: Report, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._report = report
        self._loop = loop
        self._bytes = 0

    def write(self, name: str, data: Iterable[bytes], *, purpose: str) -> ArtifactRef:
        ref = self._store.write(name, data, purpose=purpose)
        self._bytes += ref.size
        reported = asyncio.run_coroutine_threadsafe(_told(self._report, self._bytes), self._loop)
        reported.result(timeout=10)
        return ref


async def _told(report: Report, done: int) -> None:
    await report("encrypt", done, 0, "bytes")

"""bastide.model_server.v1.CatalogService: parse, ask the catalogue, render."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable
from typing import Any

from bastide.model_server.v1 import catalog_pb2
from bastide.types.v1 import evidence_pb2, job_pb2, principal_pb2
from services.model_server import catalog as domain
from services.model_server.catalog import Arm, Catalog, parse_model_name
from services.model_server.importing import Importing
from services.model_server.imports import RUNNING, Event, ImportJob, ImportJobs
from services.model_server.releasing import Releasing
from shared.errors import InvalidArgument, NotFound
from shared.rpc.call import Call

DEFAULT_PAGE = 50
_CLASSES = ("PUBLIC", "INTERNAL", "CONFIDENTIAL", "PERSONAL", "RESTRICTED")
_END = 2**62


class CatalogService:
    """Models, versions, releases and imports."""

    def __init__(
        self,
        catalog: Catalog,
        imports: ImportJobs,
        releasing: Releasing,
        importing: Importing,
    ) -> None:
        """Serve the catalogue."""
        self._catalog = catalog
        self._imports = imports
        self._releasing = releasing
        self._importing = importing

    async def CreateImportJob(
        self, request: catalog_pb2.CreateImportJobRequest, call: Call
    ) -> catalog_pb2.CreateImportJobResponse:
        """See the contract."""
        job = await self._imports.create(
            model=request.model_id,
            source=request.source,
            license_id=request.license,
            description=request.description,
            submitter=call.person.subject,
            request_id=request.request_id,
        )
        return catalog_pb2.CreateImportJobResponse(job=_job(job))

    async def GetImportJob(
        self, request: catalog_pb2.GetImportJobRequest, _call: Call
    ) -> catalog_pb2.GetImportJobResponse:
        """See the contract."""
        return catalog_pb2.GetImportJobResponse(job=_job(await self._imports.get(_job_id(request.name))))

    async def ListImportJobs(
        self, request: catalog_pb2.ListImportJobsRequest, _call: Call
    ) -> catalog_pb2.ListImportJobsResponse:
        """See the contract."""
        size = request.page_size or DEFAULT_PAGE
        jobs = await self._imports.list(before=_number_token(request.page_token), limit=size + 1)
        return catalog_pb2.ListImportJobsResponse(
            jobs=[_job(job) for job in jobs[:size]],
            next_page_token=str(jobs[size - 1].position) if len(jobs) > size else "",
        )

    async def CancelImportJob(
        self, request: catalog_pb2.CancelImportJobRequest, _call: Call
    ) -> catalog_pb2.CancelImportJobResponse:
        """See the contract."""
        return catalog_pb2.CancelImportJobResponse(job=_job(await self._imports.cancel(_job_id(request.name))))

    async def WatchImportJob(
        self, request: catalog_pb2.WatchImportJobRequest, _call: Call
    ) -> AsyncIterator[catalog_pb2.WatchImportJobResponse]:
        """See the contract."""
        async for event in self._imports.watch(_job_id(request.name), from_event=request.from_event):
            yield catalog_pb2.WatchImportJobResponse(event=_event(event))

    async def DeclareModel(
        self, request: catalog_pb2.DeclareModelRequest, call: Call
    ) -> catalog_pb2.DeclareModelResponse:
        """See the contract."""
        version = await self._importing.declare(
            request.model_id,
            domain.DeclaredModel(
                backend=request.declared.backend,
                remote_model=request.declared.remote_model,
                revision=request.declared.revision,
                license=request.declared.license,
                max_context=request.context_length,
            ),
            submitter=call.person.subject,
            description=request.description,
            cause=call.call_id,
        )
        return catalog_pb2.DeclareModelResponse(version=_version(version))

    async def GetModel(self, request: catalog_pb2.GetModelRequest, _call: Call) -> catalog_pb2.GetModelResponse:
        """See the contract."""
        return catalog_pb2.GetModelResponse(model=_model(await self._catalog.model(parse_model_name(request.name))))

    async def ListModels(self, request: catalog_pb2.ListModelsRequest, _call: Call) -> catalog_pb2.ListModelsResponse:
        """See the contract."""
        size = request.page_size or DEFAULT_PAGE
        found = await self._catalog.models(after=_name_token(request.page_token), limit=size + 1)
        token = base64.urlsafe_b64encode(found[size - 1].name.encode()).decode() if len(found) > size else ""
        return catalog_pb2.ListModelsResponse(models=[_model(item) for item in found[:size]], next_page_token=token)

    async def GetModelVersion(
        self, request: catalog_pb2.GetModelVersionRequest, _call: Call
    ) -> catalog_pb2.GetModelVersionResponse:
        """See the contract."""
        return catalog_pb2.GetModelVersionResponse(version=_version(await self._catalog.version(request.name)))

    async def ListModelVersions(
        self, request: catalog_pb2.ListModelVersionsRequest, _call: Call
    ) -> catalog_pb2.ListModelVersionsResponse:
        """See the contract."""
        size = request.page_size or DEFAULT_PAGE
        found = await self._catalog.versions(
            parse_model_name(request.parent), before=_number_token(request.page_token), limit=size + 1
        )
        return catalog_pb2.ListModelVersionsResponse(
            versions=[_version(item) for item in found[:size]],
            next_page_token=str(found[size - 1].manifest.number) if len(found) > size else "",
        )

    async def version_facts(self, request: catalog_pb2.ApproveModelVersionRequest, _call: Call) -> dict[str, Any]:
        """Facts for policy: who brought the version in."""
        version = await self._releasing.version(request.name)
        return {"submitters": [version.submitter], "classification": version.manifest.classification}

    async def release_facts(self, request: catalog_pb2.CreateReleaseRequest, _call: Call) -> dict[str, Any]:
        """Facts for policy: who brought the versions in, and the highest of their classifications."""
        return await self._arms_facts(arm.version for arm in request.arms)

    async def CreateRelease(
        self, request: catalog_pb2.CreateReleaseRequest, call: Call
    ) -> catalog_pb2.CreateReleaseResponse:
        """See the contract."""
        model = parse_model_name(request.parent)
        arms = tuple(Arm(version=arm.version, weight=arm.weight) for arm in request.arms)
        release = await self._releasing.release(
            model, arms, releaser=call.person.subject, request_id=request.request_id, cause=call.call_id
        )
        # A repeated request tells of the first release, which another may have followed.
        in_force = (await self._catalog.model(model)).generation
        active = release.generation == in_force
        return catalog_pb2.CreateReleaseResponse(release=_release(release, active=active))

    async def GetRelease(self, request: catalog_pb2.GetReleaseRequest, _call: Call) -> catalog_pb2.GetReleaseResponse:
        """See the contract."""
        release = await self._catalog.release(parse_model_name(request.parent))
        return catalog_pb2.GetReleaseResponse(release=_release(release, active=True))

    async def ListReleases(
        self, request: catalog_pb2.ListReleasesRequest, _call: Call
    ) -> catalog_pb2.ListReleasesResponse:
        """See the contract."""
        model = await self._catalog.model(parse_model_name(request.parent))
        size = request.page_size or DEFAULT_PAGE
        found = await self._catalog.releases(model.name, before=_number_token(request.page_token), limit=size + 1)
        return catalog_pb2.ListReleasesResponse(
            releases=[_release(item, active=item.generation == model.generation) for item in found[:size]],
            next_page_token=str(found[size - 1].generation) if len(found) > size else "",
        )

    async def rollback_facts(self, request: catalog_pb2.RollbackReleaseRequest, call: Call) -> dict[str, Any]:
        """Facts for policy, as of a release, about what was in force before; and the step back that is judged."""
        call.judged = current, target = await self._releasing.before(parse_model_name(request.parent))
        return await self._arms_facts(arm.version for arm in (target or current).arms)

    async def RollbackRelease(
        self, _request: catalog_pb2.RollbackReleaseRequest, call: Call
    ) -> catalog_pb2.RollbackReleaseResponse:
        """See the contract."""
        current, target = call.judged
        release = await self._releasing.roll_back(current, target, releaser=call.person.subject, cause=call.call_id)
        return catalog_pb2.RollbackReleaseResponse(release=_release(release, active=True))

    async def _arms_facts(self, names: Iterable[str]) -> dict[str, Any]:
        versions = [await self._releasing.version(name) for name in names]
        highest = max((version.manifest.classification for version in versions), key=_CLASSES.index)
        return {"submitters": sorted({version.submitter for version in versions}), "classification": highest}


def _job_id(name: str) -> str:
    prefix, _, job_id = name.partition("/")
    if prefix != "importJobs" or not job_id:
        raise InvalidArgument("an import job is importJobs/<id>", field="name")
    return job_id


def _number_token(token: str) -> int:
    if not token:
        return _END
    if not token.isdecimal() or len(token) > 18:
        raise InvalidArgument("not a page token of this method", field="page_token")
    return int(token)


def _name_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        raise InvalidArgument("not a page token of this method", field="page_token") from None


def _digest(text: str) -> evidence_pb2.Digest:
    algorithm, _, value = text.partition(":")
    return evidence_pb2.Digest(algorithm=algorithm, value=bytes.fromhex(value))


def _model(model: domain.Model) -> catalog_pb2.Model:
    message = catalog_pb2.Model(name=f"models/{model.name}", description=model.description, generation=model.generation)
    message.created_at.FromDatetime(model.created_at)
    return message


def _version(version: domain.Version) -> catalog_pb2.ModelVersion:
    manifest = version.manifest
    message = catalog_pb2.ModelVersion(
        name=manifest.name,
        state=catalog_pb2.MODEL_VERSION_STATE_READY,
        provenance=_provenance(version),
        digest=_digest(manifest.digest),
        submitter=version.submitter,
        classification=principal_pb2.Classification.Value(f"CLASSIFICATION_{manifest.classification}"),
        permitted_purposes=manifest.permitted_purposes,
        loaded=manifest.loaded,
    )
    message.created_at.FromDatetime(version.created_at)
    if (imported := manifest.imported) is not None:
        message.description.CopyFrom(
            catalog_pb2.ModelDescription(
                architecture=imported.architecture,
                parameters=imported.parameters,
                context_length=imported.max_context,
                template_digest=_digest(imported.template.digest),
                tokenizer_digest=_digest(imported.tokenizer.digest),
                size_bytes=imported.weight_bytes,
            )
        )
    return message


def _provenance(version: domain.Version) -> catalog_pb2.Provenance:
    manifest = version.manifest
    statement = evidence_pb2.SignedStatement(envelope=version.evidence.statement, log_proof=version.evidence.log_proof)
    if (imported := manifest.imported) is not None:
        return catalog_pb2.Provenance(
            imported=catalog_pb2.Imported(
                source=f"{imported.source.name}@{imported.source.version}",
                source_digest=_digest(imported.source.digest),
                license=imported.license,
            ),
            statements=[statement],
        )
    if (declared := manifest.declared) is not None:
        return catalog_pb2.Provenance(
            declared=catalog_pb2.Declared(
                backend=declared.backend,
                remote_model=declared.remote_model,
                revision=declared.revision,
                license=declared.license,
            ),
            statements=[statement],
        )
    raise NotFound("the version has no origin")


def _release(release: domain.Release, *, active: bool) -> catalog_pb2.Release:
    message = catalog_pb2.Release(
        name=f"models/{release.model}/releases/{release.generation}",
        generation=release.generation,
        arms=[catalog_pb2.ReleaseArm(version=arm.version, weight=arm.weight) for arm in release.arms],
        releaser=release.releaser,
        active=active,
        statement=evidence_pb2.SignedStatement(
            envelope=release.evidence.statement, log_proof=release.evidence.log_proof
        ),
    )
    message.created_at.FromDatetime(release.created_at)
    return message


def _event(event: Event) -> job_pb2.JobEvent:
    message = job_pb2.JobEvent(
        number=event.number,
        state=job_pb2.JobState.Value(f"JOB_STATE_{event.state}"),
        progress=job_pb2.Progress(stage=event.stage, done=event.done, total=event.total, unit=event.unit),
    )
    message.at.FromDatetime(event.at)
    return message


def _job(job: ImportJob) -> catalog_pb2.ImportJob:
    state = "CANCELLING" if job.cancelling and job.state == RUNNING else job.state
    status = job_pb2.JobStatus(
        state=job_pb2.JobState.Value(f"JOB_STATE_{state}"),
        submitter=job.submitter,
        failure_reason=job.failure_reason,
        failure_message=job.failure_message,
    )
    if job.event is not None:
        status.progress.CopyFrom(_event(job.event).progress)
        status.last_event = job.event.number
    status.created_at.FromDatetime(job.created_at)
    status.updated_at.FromDatetime(job.updated_at)
    return catalog_pb2.ImportJob(
        name=f"importJobs/{job.id}",
        model=f"models/{job.model}",
        source=job.source,
        status=status,
        version="" if job.version is None else f"models/{job.model}/versions/{job.version}",
    )

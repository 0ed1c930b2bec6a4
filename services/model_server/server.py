"""Composition root of the model server: the only module that knows every part."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
from collections.abc import AsyncIterator, Mapping

from services.model_server import methods
from services.model_server.backends import Backend
from services.model_server.backends.engine import TorchSettings, has_bfloat16
from services.model_server.backends.openai import OpenAIBackend
from services.model_server.backends.remote import RemoteSettings
from services.model_server.backends.tgi import TgiBackend
from services.model_server.backends.torch import TorchBackend
from services.model_server.catalog import BrokenChain, Catalog, Version
from services.model_server.catalog_service import CatalogService
from services.model_server.config import ModelServerSettings
from services.model_server.importer import load_model
from services.model_server.importing import Importing
from services.model_server.imports import ImportJobs
from services.model_server.inference import Inference, InferenceLimits
from services.model_server.inference_service import InferenceService
from services.model_server.migrations import SCRIPTS
from services.model_server.provenance import Provenance
from services.model_server.releasing import Releasing
from services.model_server.serving import Serving
from shared.audit import AuditClient
from shared.guard import DecisionVerifier, GuardClient
from shared.identity.tokens import TokenVerifier
from shared.keys import FileKeyProvider, SigningKey
from shared.objects import ObjectStore
from shared.outbox import Outbox
from shared.periodic import repeating
from shared.records.migrations import check_schema
from shared.records.store import Records
from shared.rpc.call import Owned
from shared.rpc.channel import Channel
from shared.rpc.health import serving_problem
from shared.rpc.server import Server
from shared.statements import TrustRoot
from shared.transparency.note import Verifier

LEFTOVER_AGE = dt.timedelta(hours=1)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@contextlib.asynccontextmanager
async def compose(settings: ModelServerSettings) -> AsyncIterator[Server]:
    """Yield the server, not yet started; its parts end with the context."""
    tls = settings.server.tls
    spiffe_id = f"spiffe://{tls.trust_domain}/model-server"
    async with contextlib.AsyncExitStack() as stack:
        records = await stack.enter_async_context(Records(settings.records, exclusive=True))
        await check_schema(records, SCRIPTS, "model_server")
        keys = FileKeyProvider(settings.keys)
        store = ObjectStore(settings.objects, keys)
        await asyncio.to_thread(store.sweep, before=_now() - LEFTOVER_AGE)
        trust = TrustRoot.load(settings.trust)
        audit_channel = Channel(settings.audit, tls, service="audit")
        guard_channel = Channel(settings.guard, tls, service="policy-guard")
        stack.push_async_callback(audit_channel.close)
        stack.push_async_callback(guard_channel.close)
        log_key = Verifier.parse((await asyncio.to_thread(settings.log_public_key.read_text)).strip())
        audit = AuditClient(
            audit_channel,
            Outbox(settings.outbox, keys),
            timeout=settings.audit.timeout_seconds,
            log_key=log_key,
        )
        decisions = DecisionVerifier(trust, audience=spiffe_id)
        signing = SigningKey.load(settings.statement_key, name="model-server/statement")
        provenance = Provenance(signing, trust, log_key, clock=_now)
        catalog = Catalog(records)
        serving = Serving(catalog, provenance, backend_for=functools.partial(_backend, settings=settings, store=store))
        stack.push_async_callback(serving.close)
        owned = Owned()
        importing = Importing(
            catalog=catalog,
            store=store,
            provenance=provenance,
            audit=audit,
            roots=settings.import_roots,
            packages=settings.import_packages,
            remotes=frozenset(settings.remotes),
            max_bytes=settings.torch.memory_bytes,
            clock=_now,
        )
        releasing = Releasing(catalog=catalog, provenance=provenance, serving=serving, audit=audit, clock=_now)
        jobs = ImportJobs(records, importing.perform, clock=_now)
        inference = Inference(
            serving=serving,
            guard=guard_channel,
            verifier=decisions,
            audit=audit,
            owned=owned,
            limits=InferenceLimits(
                default_max_new_tokens=settings.default_max_new_tokens,
                max_seconds=settings.max_generation_seconds,
                guard_seconds=settings.guard.timeout_seconds,
            ),
        )

        async def problems() -> Mapping[str, str]:
            await records.check()
            found = dict.fromkeys(serving.unhealthy(), "the version cannot serve") | serving.failing
            for name, channel in (("audit", audit_channel), ("policy-guard", guard_channel)):
                if problem := await serving_problem(channel):
                    found[name] = problem
            return found

        inference_service, catalog_service = methods.SERVICES
        server = Server(
            settings.server,
            services={
                inference_service: InferenceService(inference),
                catalog_service: CatalogService(catalog, jobs, releasing, importing),
            },
            rows=methods.ROWS,
            guard=GuardClient(guard_channel, decisions, timeout=settings.guard.timeout_seconds),
            audit=audit,
            verifier=TokenVerifier(settings.server.issuers),
            problems=problems,
            owned=owned,
        )
        await stack.enter_async_context(repeating(audit.deliver, seconds=1.0, name="outbox"))
        await stack.enter_async_context(repeating(serving.warm, seconds=2.0, name="warm"))
        await stack.enter_async_context(repeating(jobs.run, seconds=1.0, name="imports"))
        yield server


def _backend(version: Version, *, settings: ModelServerSettings, store: ObjectStore) -> Backend:
    imported = version.manifest.imported
    if imported is None:
        return _remote(version, settings)
    return TorchBackend(
        load=functools.partial(load_model, imported, store),
        weight_bytes=imported.weight_bytes,
        settings=TorchSettings(
            memory_bytes=settings.torch.memory_bytes,
            threads=settings.torch.threads,
            max_running=settings.torch.max_streams,
            max_waiting=settings.torch.max_waiting,
            widen=settings.torch.precision == "auto" and not has_bfloat16(),
        ),
    )


def _remote(version: Version, settings: ModelServerSettings) -> Backend:
    declared = version.manifest.declared
    remote = settings.remotes.get(declared.backend) if declared is not None else None
    if declared is None or remote is None:
        raise BrokenChain(f"{version.manifest.name}: its backend is not configured here")
    key = remote.api_key_file.read_text().strip() if remote.api_key_file is not None else None
    kind = OpenAIBackend if remote.kind == "openai" else TgiBackend
    return kind(
        RemoteSettings(
            url=remote.url,
            model=declared.remote_model,
            max_context=declared.max_context,
            api_key=key,
            ca_file=remote.ca_file,
            seed=remote.seed,
            penalties=remote.penalties,
        )
    )


async def serve(settings: ModelServerSettings) -> None:
    """Run until a signal, then drain."""
    async with compose(settings) as server:
        await server.run()

"""Composition root of the audit service: the only module that knows every part."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bastide.audit.v1 import audit_pb2
from services.audit import methods
from services.audit.config import AuditSettings
from services.audit.housekeeping import WRONG, Housekeeping
from services.audit.leases import Leases
from services.audit.log import Log
from services.audit.people import People
from services.audit.publisher import Publisher
from services.audit.sealing import PersonCipher, ProviderWrap
from services.audit.service import AuditService, LocalAudit, LogService, Recorder
from shared.guard import DecisionVerifier, GuardClient
from shared.identity.tokens import TokenVerifier
from shared.keys import FileKeyProvider, files
from shared.records.migrations import check_schema
from shared.records.store import Records
from shared.rpc.call import Owned
from shared.rpc.channel import Channel
from shared.rpc.server import Server
from shared.statements import TrustRoot
from shared.transparency.note import Signer

MIGRATIONS = Path(__file__).parent / "migrations"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@contextlib.asynccontextmanager
async def compose(settings: AuditSettings) -> AsyncIterator[Server]:
    """Yield the server, not yet started; its parts end with the context."""
    tls = settings.server.tls
    spiffe_id = f"spiffe://{tls.trust_domain}/audit"
    signer = Signer.parse(files.read(settings.log_key, forbidden_mode=files.PRIVATE).decode().strip())
    services = audit_pb2.DESCRIPTOR.services_by_name
    async with contextlib.AsyncExitStack() as stack:
        records = await stack.enter_async_context(Records(settings.records, exclusive=True))
        await check_schema(records, MIGRATIONS, "audit")
        audit_log = await stack.enter_async_context(Log(records, signer, clock=_now))
        people = People(
            records,
            ProviderWrap(FileKeyProvider(settings.keys)),
            PersonCipher(),
            files.read(settings.lookup_key, forbidden_mode=files.PRIVATE),
        )
        recorder = Recorder(audit_log, people)
        guard_channel = Channel(settings.guard, tls, service="policy-guard")
        stack.push_async_callback(guard_channel.close)
        verifier = DecisionVerifier(TrustRoot.load(settings.trust), audience=spiffe_id)

        # Before anything is served: a store that was rolled back behind what is published must not start.
        housekeeping = await stack.enter_async_context(
            Housekeeping(
                audit_log,
                Publisher(records, audit_log.reader, signer.verifier, settings.tiles),
                Leases(records, audit_log, writer=spiffe_id),
                publish_seconds=settings.publish_seconds,
                lease_seconds=settings.lease_check_seconds,
            )
        )

        async def problems() -> Mapping[str, str]:
            await audit_log.reader.head()
            found = {"append": audit_log.fault} if audit_log.fault else {}
            return found | {task: reason for task, reason in housekeeping.faults.items() if reason in WRONG}

        server = Server(
            settings.server,
            services={
                services["AuditService"]: AuditService(audit_log, recorder, people),
                services["LogService"]: LogService(audit_log),
                services["PrivacyService"]: object(),
                services["ReportService"]: object(),
            },
            rows=methods.ROWS,
            guard=GuardClient(guard_channel, verifier, timeout=settings.guard.timeout_seconds),
            audit=LocalAudit(recorder, writer=spiffe_id),
            verifier=TokenVerifier(settings.server.issuers),
            problems=problems,
            owned=Owned(),
        )
        yield server


async def serve(settings: AuditSettings) -> None:
    """Run until a signal, then drain."""
    async with compose(settings) as server:
        await server.run()

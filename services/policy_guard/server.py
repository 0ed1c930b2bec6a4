"""Composition root of the policy guard: the only module that knows every part."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import time
from collections.abc import AsyncIterator, Mapping

from bastide.audit.v1 import record_pb2
from services.policy_guard import methods
from services.policy_guard.acknowledgements import Acknowledgements
from services.policy_guard.budgets import open_budgets
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.engines import choose_engine
from services.policy_guard.enrolment import Enrolment
from services.policy_guard.guard_service import GuardService, LocalGuard
from services.policy_guard.identity_service import IdentityService
from services.policy_guard.judge import Judge
from services.policy_guard.lifecycle import Lifecycle
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.passwords import Passwords
from services.policy_guard.policy_service import PolicyService
from services.policy_guard.revisions import Revisions
from services.policy_guard.scans import Scans
from services.policy_guard.sign_in import SignIn
from services.policy_guard.standing import Standing
from services.policy_guard.throttle import Throttle
from services.policy_guard.token_issuer import TokenIssuer
from services.policy_guard.totp import SecondFactors
from services.policy_guard.users import Users
from shared.audit import AuditClient, AuditLog, record_of
from shared.identity.tokens import TokenVerifier
from shared.keys import FileKeyProvider, SigningKey
from shared.outbox import Outbox
from shared.periodic import repeating
from shared.records.migrations import check_schema
from shared.records.store import Records
from shared.rpc.call import Owned
from shared.rpc.channel import Channel
from shared.rpc.health import serving_problem
from shared.rpc.server import Server


def now() -> dt.datetime:
    """Return the time that decisions, tokens and budgets go by."""
    return dt.datetime.now(dt.UTC)


@contextlib.asynccontextmanager
async def compose(settings: PolicyGuardSettings) -> AsyncIterator[Server]:
    """Yield the server, not yet started; its parts end with the context."""
    tls = settings.server.tls
    spiffe_id = f"spiffe://{tls.trust_domain}/policy-guard"
    async with contextlib.AsyncExitStack() as stack:
        records = await stack.enter_async_context(Records(settings.records, exclusive=True))
        await check_schema(records, SCRIPTS, "policy_guard")
        keys = FileKeyProvider(settings.keys)
        audit_channel = Channel(settings.audit, tls, service="audit")
        stack.push_async_callback(audit_channel.close)
        audit = AuditClient(audit_channel, Outbox(settings.outbox, keys), timeout=settings.audit.timeout_seconds)
        engine = choose_engine(engine=settings.engine, opa_binary=settings.opa_binary)
        stack.push_async_callback(engine.close)
        signer = DecisionSigner(SigningKey.load(settings.decision_key, name="policy-guard/decision"), clock=now)
        acknowledgements = Acknowledgements(records, clock=now)
        standing = Standing(records, clock=time.monotonic)
        judge = Judge(engine, signer, acknowledgements, standing, seconds=settings.decision_seconds, clock=now)
        scans = Scans()
        stack.callback(scans.close)

        revisions = Revisions(records, clock=now)
        lifecycle = Lifecycle(
            engine, revisions, loaded=judge.follow, administrator_tenants=frozenset(settings.administrator_tenants)
        )
        await lifecycle.start(settings.policies)
        budgets = await stack.enter_async_context(open_budgets(records, clock=now))
        passwords = Passwords()
        factors = SecondFactors(keys, issuer="Bastide")
        throttle = Throttle(records, clock=now)
        verifier = TokenVerifier(settings.server.issuers)

        async def problems() -> Mapping[str, str]:
            await records.check()
            problem = await serving_problem(audit_channel)
            return {"audit": problem} if problem else {}

        guard_service, policy_service, identity_service = methods.SERVICES
        server = Server(
            settings.server,
            services={
                guard_service: GuardService(
                    judge, signer, verifier, budgets, scans=scans, max_held=settings.max_held_characters
                ),
                policy_service: PolicyService(lifecycle, revisions, engine),
                identity_service: IdentityService(
                    users=Users(records, clock=now),
                    enrolment=Enrolment(records, passwords, factors, clock=now),
                    sign_in=SignIn(records, passwords, factors, throttle, clock=now),
                    issuer=TokenIssuer(
                        SigningKey.load(settings.identity_key, name="policy-guard/identity"),
                        issuer=settings.issuer,
                        audience=settings.audience,
                        lifetime=dt.timedelta(seconds=settings.token_seconds),
                        clock=now,
                    ),
                    acknowledgements=acknowledgements,
                    standing=standing,
                    judge=judge,
                    audit=audit,
                ),
            },
            rows=methods.ROWS,
            guard=LocalGuard(judge, audience=spiffe_id),
            audit=audit,
            verifier=verifier,
            problems=problems,
            owned=Owned(),
        )
        await stack.enter_async_context(
            repeating(functools.partial(_record_recoveries, revisions, audit), seconds=60.0, name="record-recoveries")
        )
        await stack.enter_async_context(repeating(audit.deliver, seconds=1.0, name="outbox"))
        # Another replica, or an offline recovery, may change what is in force.
        await stack.enter_async_context(repeating(lifecycle.follow, seconds=2.0, name="follow-policy"))
        yield server


async def _record_recoveries(revisions: Revisions, audit: AuditLog) -> None:
    """Enter offline recoveries in the log; the record's id is the activation's, so that repeating changes nothing."""
    for recovery in await revisions.recoveries():
        record = record_of(
            record_pb2.RECORD_KIND_SYSTEM,
            call_id=f"recovery-{recovery.number}",
            method="-",
            action="policy_guard.policy.recover",
            resource=f"revisions/{recovery.digest}",
        )
        record.record_id = f"policy-recovery-{recovery.number}"
        record.occurred_at.FromDatetime(recovery.activated_at)
        await audit.append([record])


async def serve(settings: PolicyGuardSettings) -> None:
    """Run until a signal, then drain."""
    async with compose(settings) as server:
        await server.run()

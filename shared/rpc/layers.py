"""The chain that every RPC of every service passes: context -> errors -> audit -> authenticate -> authorise.

Requests are parsed inside it, after authentication. Each layer is a function of the call and of what comes next;
`shared.rpc.server` composes them in exactly this order.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import limits
import structlog
from google.protobuf.message import Message
from opentelemetry import propagate, trace

from bastide.audit.v1 import record_pb2
from bastide.policy_guard.v1 import guard_pb2
from shared import errors, observability
from shared.audit import AuditLog, record_of
from shared.identity.principal import Principal, Workload, workload_from_certificate
from shared.identity.tokens import TokenVerifier
from shared.rpc import status
from shared.rpc.admission import (
    PUBLIC_CALLS,
    PUBLIC_CALLS_OF_ONE,
    PUBLIC_STREAMS,
    PUBLIC_STREAMS_OF_ONE,
    Busy,
    Places,
)
from shared.rpc.call import Call, Denied, Judgement, Next, Owned, current
from shared.rpc.methods import Auth, Recording

log = structlog.get_logger()
tracer = trace.get_tracer("bastide.rpc")

PUBLIC_CALLS_PER_SECOND = 50
# Whoever opens a call has something to say: the first message follows the headers.
FIRST_MESSAGE_SECONDS = 5.0
# Refusals that anyone can cause at any rate: counted, and recorded together.
_COUNTED = (errors.Unauthenticated, errors.PeerNotAllowed, Busy)


class AccessGuard(Protocol):
    """Asks for the decision on one call: over the network, or in process within the guard itself."""

    async def check(self, call: Call, resource: guard_pb2.Resource) -> Judgement:
        """Return the verified decision. Raises GuardUnavailable for anything else; callers MUST then refuse."""
        ...


class ContextLayer:
    """Binds the call's context for logs and traces, and measures."""

    def __init__(self, *, max_seconds: float) -> None:
        """End calls after `max_seconds`."""
        self._max_seconds = max_seconds

    async def __call__(self, call: Call, following: Next) -> None:
        """Run the call within its context."""
        _, service, method = call.method.split("/")
        carrier = {key: str(value) for key, value in call.context.invocation_metadata() or () if key == "traceparent"}
        parent = propagate.extract(carrier)
        code = "OK"
        current.set(call)
        call.max_seconds = self._max_seconds
        observability.RPC_IN_FLIGHT.labels(service).inc()
        try:
            with (
                tracer.start_as_current_span(
                    f"{service}/{method}",
                    context=parent,
                    kind=trace.SpanKind.SERVER,
                    record_exception=False,
                    set_status_on_exception=False,
                    attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
                ) as span,
                structlog.contextvars.bound_contextvars(
                    call_id=call.call_id, method=call.method, trace_id=f"{span.get_span_context().trace_id:032x}"
                ),
            ):
                try:
                    await following(call)
                finally:
                    code = grpc.StatusCode.CANCELLED.name
                    if call.outcome is not None:
                        code = call.outcome.code.name
                    elif call.finished:
                        code = "OK"
                    span.set_attribute("rpc.grpc.status_code", code)
                    elapsed = asyncio.get_running_loop().time() - call.started
                    log.info(
                        "rpc", code=code, reason=call.outcome.reason if call.outcome else "", seconds=round(elapsed, 6)
                    )
                    observability.RPC_SECONDS.labels(service, method).observe(elapsed)
        finally:
            observability.RPC_IN_FLIGHT.labels(service).dec()
            reason = call.outcome.reason if call.outcome else ""
            observability.RPC_HANDLED.labels(service, method, code, reason).inc()


async def errors_layer(call: Call, following: Next) -> None:
    """Turn every failure into a status that says what it may and nothing more."""
    try:
        left = call.remaining()
        limit = call.max_seconds if left is None else min(left, call.max_seconds)
        try:
            async with asyncio.timeout(limit):
                await following(call)
        except TimeoutError:
            raise errors.DeadlineExceeded("the call did not end within its deadline") from None
        call.finished = True
    except errors.Error as error:
        call.outcome = error
        await _abort(call, error)
    except asyncio.CancelledError:
        call.outcome = errors.Cancelled("the caller went away")
        raise
    except Exception as error:  # noqa: BLE001  (the boundary: whatever is unforeseen must not reach the caller)
        error_id = str(uuid.uuid4())
        log.error("rpc_failed", error_id=error_id, error=error)
        call.outcome = errors.Error("internal error", error_id=error_id)
        await _abort(call, call.outcome)


async def _abort(call: Call, error: errors.Error) -> None:
    metadata = {"call_id": call.call_id}
    if call.judgement is not None:
        metadata["decision_id"] = call.judgement.decision.decision_id
    details = status.render(error, **metadata)
    code = next(code for code in grpc.StatusCode if code.value[0] == int(error.code))
    await call.context.abort(
        code, error.message, trailing_metadata=((status.DETAILS_KEY, details.SerializeToString()),)
    )


class Refusals:
    """Counts refusals that are not recorded one by one and writes them as one record an interval."""

    def __init__(self, audit: AuditLog) -> None:
        """Append to `audit`; the server flushes at intervals."""
        self._audit = audit
        self._counts: Counter[tuple[str, str]] = Counter()
        # Sent, and perhaps in the log: they go again as they are, or they would stand there twice.
        self._unacknowledged: list[record_pb2.Record] = []

    def add(self, method: str, reason: str) -> None:
        """Count one refusal. The number of keys is bounded by the table's methods times our reasons."""
        observability.REFUSALS_AGGREGATED.labels(reason).inc()
        self._counts[method, reason] += 1

    async def flush(self) -> None:
        """Append what was counted. Raises what `AuditLog.append` raises, and keeps what was not acknowledged."""
        await self._send()
        counts, self._counts = self._counts, Counter()
        self._unacknowledged = [
            record_of(
                record_pb2.RECORD_KIND_REFUSED, call_id=str(uuid.uuid4()), method=method, reason=reason, count=count
            )
            for (method, reason), count in counts.items()
        ]
        await self._send()

    async def _send(self) -> None:
        if self._unacknowledged:
            await self._audit.append(self._unacknowledged)
        self._unacknowledged = []


class AuditLayer:
    """Leaves a record of every guarded call, before its effect, and of every refusal, before its answer."""

    def __init__(self, audit: AuditLog, refusals: Refusals, owned: Owned) -> None:
        """Write to `audit`; run changes as tasks of `owned`, so that a caller's cancel cannot lose their end."""
        self._audit = audit
        self._refusals = refusals
        self._owned = owned

    async def __call__(self, call: Call, following: Next) -> None:
        """Record around the rest of the chain."""
        if call.row.recording is Recording.CHANGE:
            await asyncio.shield(self._owned.start(self._recorded(call, following)))
        else:
            await self._recorded(call, following)

    async def _recorded(self, call: Call, following: Next) -> None:
        call.allowed = functools.partial(self._allowed, call)
        try:
            await following(call)
        except _COUNTED as error:
            self._refusals.add(call.method, error.reason)
            raise
        except asyncio.CancelledError:
            if call.row.recording is Recording.CHANGE and call.recorded:
                # Only a server that ends cancels a change, and it waits for this one's end to be told.
                await self._gone(call)
            elif call.principal is not None and not call.recording:
                self._owned.start(self._gone(call))
            raise
        except errors.Error as error:
            # A task of our own, as everywhere here: a caller who goes away now does not take the record along.
            await asyncio.shield(self._owned.start(self._ended(call, error)))
            raise
        except Exception:
            await asyncio.shield(self._owned.start(self._ended(call, errors.Error("internal error"))))
            raise
        if call.row.recording is Recording.CHANGE:
            await self._audit.conclude(_record(call, record_pb2.RECORD_KIND_CHANGED))

    async def _allowed(self, call: Call) -> None:
        if call.row.recording is Recording.NONE:
            return
        kind = (
            record_pb2.RECORD_KIND_CHANGE if call.row.recording is Recording.CHANGE else record_pb2.RECORD_KIND_ACCESS
        )
        call.recording = True
        await asyncio.shield(self._owned.start(self._append(call, _record(call, kind))))

    async def _append(self, call: Call, record: record_pb2.Record) -> None:
        await self._audit.append([record])
        call.recorded = True

    async def _gone(self, call: Call) -> None:
        try:
            await self._ended(call, errors.Cancelled("the caller went away"))
        except errors.Unavailable as error:
            # Nobody is there to be told; the end of what had begun waits in the outbox.
            log.warning("cancelled_call_not_recorded", reason=error.reason)

    async def _ended(self, call: Call, error: errors.Error) -> None:
        if call.recorded:
            if call.row.recording is Recording.CHANGE:
                await self._audit.conclude(_record(call, record_pb2.RECORD_KIND_CHANGED, error))
        elif call.row.auth in (Auth.PUBLIC, Auth.PEER):
            if call.row.auth is Auth.PUBLIC and isinstance(error, errors.PermissionDenied | errors.ResourceExhausted):
                self._refusals.add(call.method, error.reason)
        elif call.principal is None:
            # Nobody is known yet, so that anybody could fill the log.
            self._refusals.add(call.method, error.reason)
        else:
            kind = record_pb2.RECORD_KIND_REFUSED
            if isinstance(error, Denied):
                kind = record_pb2.RECORD_KIND_DENIED
            elif isinstance(error, errors.Cancelled):
                kind = record_pb2.RECORD_KIND_CANCELLED
            await self._audit.append([_record(call, kind, error)])


def _record(call: Call, kind: record_pb2.RecordKind.ValueType, error: errors.Error | None = None) -> record_pb2.Record:
    return record_of(
        kind,
        call_id=call.call_id,
        method=call.method,
        action=call.row.action,
        resource=call.resource_name,
        principal=call.principal,
        judgement=call.judgement,
        inference=call.inference,
        status_code=0 if error is None else int(error.code),
        reason="" if error is None else error.reason,
    )


class AuthenticateLayer:
    """Establishes workload and, where the method needs one, principal; gives the call its place; parses its start."""

    def __init__(
        self, verifier: TokenVerifier, *, trust_domain: str, max_concurrent: int, max_of_one_caller: int
    ) -> None:
        """Accept certificates of `trust_domain` and tokens that `verifier` accepts.

        Refuse calls beyond `max_concurrent` in flight, of guarded methods and of peers each, and guarded ones beyond
        `max_of_one_caller` of the same principal.
        """
        self._verifier = verifier
        self._trust_domain = trust_domain
        self._workload = functools.lru_cache(maxsize=1024)(
            functools.partial(workload_from_certificate, trust_domain=trust_domain)
        )
        self._throttle = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())
        self._public_limit = limits.RateLimitItemPerSecond(PUBLIC_CALLS_PER_SECOND)
        self._public = Places(PUBLIC_CALLS, of_one=PUBLIC_CALLS_OF_ONE)
        self._streams = Places(PUBLIC_STREAMS, of_one=PUBLIC_STREAMS_OF_ONE)
        self._peers = Places(max_concurrent, of_one=max_concurrent)
        self._guarded = Places(max_concurrent, of_one=max_of_one_caller)

    async def __call__(self, call: Call, following: Next) -> None:
        """Authenticate, find a place, parse, go on."""
        call.workload = workload = self._peer(call)
        if call.row.auth is Auth.PEER:
            self._admit_peer(call, workload)
            with self._peers.place():
                await self._begun(call, following)
        elif call.row.auth is Auth.PUBLIC:
            if not self._throttle.hit(self._public_limit, workload.spiffe_id):
                raise Busy("too many calls", retry_after=1.0)
            # The services ask each other for their health: clients must not be able to make them seem away.
            places = self._peers if not workload.is_client else self._public
            if workload.is_client and call.descriptor.server_streaming:
                places = self._streams
            with places.place(), places.share(workload.spiffe_id):
                await self._begun(call, following)
        else:
            with self._guarded.place():
                call.token, call.principal = await self._bearer(call, workload)
                with self._guarded.share(f"{workload.spiffe_id} {call.principal.subject}"):
                    await self._begun(call, following)

    @staticmethod
    async def _begun(call: Call, following: Next) -> None:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                call.first = await call.read()
        except TimeoutError:
            raise errors.DeadlineExceeded("the first request message did not come in time") from None
        if call.first is None and not call.descriptor.client_streaming:
            raise errors.MalformedRequest("the call has no request message")
        await following(call)

    def _peer(self, call: Call) -> Workload:
        tls = call.context.auth_context()
        certificates = list(tls.get("x509_pem_cert", ()))
        if len(certificates) != 1 or list(tls.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
            raise errors.Unauthenticated("mutual TLS 1.3 is needed")
        return self._workload(certificates[0])

    def _admit_peer(self, call: Call, workload: Workload) -> None:
        allowed = {f"spiffe://{self._trust_domain}/{name}" for name in call.row.peers}
        if workload.spiffe_id not in allowed:
            raise errors.PeerNotAllowed("this certificate may not call this method")

    async def _bearer(self, call: Call, workload: Workload) -> tuple[str, Principal]:
        header = call.metadata("authorization") or ""
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.Unauthenticated("a bearer token is needed")
        return token, await self._verifier.verify(token, workload)


class AuthoriseLayer:
    """Asks the guard about calls under policy; session calls are judged by their handler's guard session."""

    def __init__(self, guard: AccessGuard, servicers: dict[str, Any]) -> None:
        """Ask `guard`; gather facts about resources from the servicers, by service full name."""
        self._guard = guard
        self._servicers = servicers

    async def __call__(self, call: Call, following: Next) -> None:
        """Go on only when the decision is an allow and stands in the log."""
        if call.row.auth is Auth.POLICY:
            resource = self._resource(call)
            if getattr(call.first, "subject", None) is None:
                # A person's name is a fact for policy, which is sealed; it must not stand in the log.
                call.resource_name = resource.name
            absent = None
            try:
                resource.attributes.update(await self._facts(call))
            except errors.NotFound as error:
                # Only whom policy would let see it may learn that it is not there.
                absent = error
            judgement = await self._guard.check(call, resource)
            call.judgement = judgement
            if not judgement.allowed:
                raise Denied(judgement)
            if absent is not None:
                raise absent
            await call.allowed()
        await following(call)

    @staticmethod
    def _resource(call: Call) -> guard_pb2.Resource:
        resource = guard_pb2.Resource(type=call.row.resource)
        for field in ("name", "parent", "subject"):
            if isinstance(name := getattr(call.first, field, None), str):
                resource.name = name
                break
        return resource

    async def _facts(self, call: Call) -> dict[str, Any]:
        if not call.row.facts:
            return {}
        servicer = self._servicers[call.descriptor.containing_service.full_name]
        gather: Callable[[Message | None, Call], Awaitable[dict[str, Any]]] = getattr(servicer, call.row.facts)
        return await gather(call.first, call)

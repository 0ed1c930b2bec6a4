"""The writers' side of the audit log: building records, and appending them to the audit service or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import grpc
import stamina
import structlog

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.types.v1 import principal_pb2
from shared.errors import AuditUnavailable, DataLoss
from shared.identity.principal import Kind, Principal
from shared.outbox import Outbox
from shared.rpc.channel import Channel, outgoing
from shared.transparency.note import Verifier
from shared.transparency.proof import TlogProof

if TYPE_CHECKING:
    from shared.rpc.call import Judgement

log = structlog.get_logger()

_RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS)
_DELIVERED_AT_ONCE = 16


class AuditRefused(AuditUnavailable):
    """The audit log will not take this record, however often it is asked."""


class AuditLog(Protocol):
    """Where records go: over the network, or in process within the audit service itself."""

    async def append(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """Return once every record is durable. Raises AuditUnavailable otherwise; callers MUST then refuse."""
        ...

    async def conclude(self, record: record_pb2.Record) -> audit_pb2.Appended:
        """Append the record of what has already happened.

        Raises AuditUnavailable when the log did not acknowledge it: then it is kept, durably, and delivered later.
        Callers MUST NOT report success. MUST run in a task that the caller's cancel does not reach.
        """
        ...


class AuditClient:
    """Appends over mutual TLS. Appending is idempotent by record id, so it is retried within one deadline."""

    def __init__(self, channel: Channel, outbox: Outbox, *, timeout: float, log_key: Verifier | None = None) -> None:
        """Give each append `timeout` seconds in all; keep in `outbox` what must not be lost.

        With `log_key` nothing is an acknowledgement that this key did not sign for.
        """
        self._channel = channel
        self._outbox = outbox
        self._timeout = timeout
        self._log_key = log_key

    async def append(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """See AuditLog. Raises OutboxFull too: what is begun now could not be told at its end."""
        self._outbox.check()
        return await self._acknowledged(records)

    async def conclude(self, record: record_pb2.Record) -> audit_pb2.Appended:
        """See AuditLog."""
        try:
            (appended,) = await self._acknowledged([record])
        except (AuditUnavailable, asyncio.CancelledError):  # cancelled by a server that ends and waits no longer
            await self._outbox.put(record)
            log.warning("record_waits_in_outbox", record_id=record.record_id)
            raise
        return appended

    async def deliver(self) -> None:
        """Deliver what waits in the outbox; MUST be called at intervals. Raises AuditUnavailable; the rest waits.

        What cannot be read, or what the log refuses for good, is set aside for a person, and blocks nothing.
        """
        while names := await self._outbox.waiting(_DELIVERED_AT_ONCE):
            outcomes = await asyncio.gather(*map(self._deliver, names), return_exceptions=True)
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome

    async def _deliver(self, name: str) -> None:
        try:
            await self._acknowledged([await self._outbox.read(name)])
        except (AuditRefused, DataLoss) as error:
            log.error("record_set_aside", name=name, reason=error.reason)
            await self._outbox.set_aside(name)
        else:
            await self._outbox.delete(name)

    async def _acknowledged(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        request = audit_pb2.AppendRecordsRequest(records=records)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._append(request)
        except grpc.aio.AioRpcError as error:
            if error.code() in _FINAL:
                raise AuditRefused("the audit log refuses the record") from None
            raise AuditUnavailable("the audit log did not acknowledge the record") from None
        except TimeoutError:
            raise AuditUnavailable("the audit log did not acknowledge the record") from None
        # What cannot be parsed arrives as None.
        whole = isinstance(response, audit_pb2.AppendRecordsResponse) and len(response.appended) == len(records)
        if not whole or not all(map(self._acknowledges, response.appended, records)):
            raise AuditUnavailable("the audit log acknowledged something else")
        return response.appended

    def _acknowledges(self, item: audit_pb2.Appended, record: record_pb2.Record) -> bool:
        """Whether `item` shows `record` in the log: its own leaf, and a proof of that leaf."""
        try:
            proof = TlogProof.parse(item.proof)
            if self._log_key is None:
                proof.check(item.leaf)
            else:
                proof.verify(item.leaf, self._log_key)
            leaf = json.loads(item.leaf)
        except (DataLoss, ValueError, RecursionError):
            return False
        return proof.index == item.index and isinstance(leaf, dict) and leaf.get("record_id") == record.record_id

    async def _append(self, request: audit_pb2.AppendRecordsRequest) -> audit_pb2.AppendRecordsResponse:
        def transient(error: Exception) -> bool:
            return isinstance(error, grpc.aio.AioRpcError) and error.code() in _RETRYABLE

        async for attempt in stamina.retry_context(
            on=transient, attempts=3, timeout=self._timeout, wait_initial=0.05, wait_max=0.5, wait_jitter=0.1
        ):
            with attempt:
                stub: audit_pb2_grpc.AuditServiceAsyncStub = audit_pb2_grpc.AuditServiceStub(self._channel.get())
                return await stub.AppendRecords(request, timeout=self._timeout, metadata=outgoing())
        raise AssertionError("unreachable: the last attempt raises")


def record_of(
    kind: record_pb2.RecordKind.ValueType,
    *,
    call_id: str,
    method: str,
    action: str = "",
    resource: str = "",
    principal: Principal | None = None,
    judgement: Judgement | None = None,
    inference: record_pb2.InferenceFacts | None = None,
    status_code: int = 0,
    reason: str = "",
    count: int = 0,
) -> record_pb2.Record:
    """Return a record with a fresh id and the current time; keep it for retries, never build it twice."""
    record = record_pb2.Record(
        record_id=str(uuid.uuid4()),
        kind=kind,
        call_id=call_id,
        method=method,
        action=action,
        resource=resource,
        status_code=status_code,
        reason=reason,
        count=count,
    )
    record.occurred_at.FromDatetime(dt.datetime.now(dt.UTC))
    if principal is not None:
        record.principal.CopyFrom(principal_message(principal))
    if judgement is not None:
        record.decision.CopyFrom(judgement.signed)
        record.opening.CopyFrom(judgement.opening)
    if inference is not None:
        record.inference.CopyFrom(inference)
    return record


def principal_message(principal: Principal) -> principal_pb2.Principal:
    """Return `principal` as the contracts spell it."""
    message = principal_pb2.Principal(
        subject=principal.subject,
        kind=(
            principal_pb2.PRINCIPAL_KIND_PERSON
            if principal.kind is Kind.PERSON
            else principal_pb2.PRINCIPAL_KIND_WORKLOAD
        ),
        tenant=principal.tenant,
        roles=principal.roles,
        amr=principal.amr,
        workload=principal_pb2.Workload(
            spiffe_id=principal.workload.spiffe_id, certificate_sha256=principal.workload.certificate_sha256
        ),
    )
    if principal.authenticated_at is not None:
        message.authenticated_at.FromDatetime(principal.authenticated_at)
    return message

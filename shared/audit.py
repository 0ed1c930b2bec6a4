"""The writers' side of the audit log: building records, and appending them to the audit service or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import grpc
import stamina

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.types.v1 import principal_pb2
from shared.errors import AuditUnavailable
from shared.identity.principal import Kind, Principal
from shared.rpc.channel import Channel, outgoing

if TYPE_CHECKING:
    from shared.rpc.call import Judgement

_RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class AuditLog(Protocol):
    """Where records go: over the network, or in process within the audit service itself."""

    async def append(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """Return once every record is durable. Raises AuditUnavailable otherwise; callers MUST then refuse."""
        ...


class AuditClient:
    """Appends over mutual TLS. Appending is idempotent by record id, so it is retried within one deadline."""

    def __init__(self, channel: Channel, *, timeout: float) -> None:
        """Give each append `timeout` seconds in all."""
        self._channel = channel
        self._timeout = timeout

    async def append(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """See AuditLog."""
        request = audit_pb2.AppendRecordsRequest(records=records)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._append(request)
        except (grpc.aio.AioRpcError, TimeoutError):
            raise AuditUnavailable("the audit log did not acknowledge the record") from None
        # What cannot be parsed arrives as None.
        whole = isinstance(response, audit_pb2.AppendRecordsResponse) and len(response.appended) == len(records)
        if not whole or not all(item.proof and item.leaf for item in response.appended):
            raise AuditUnavailable("the audit log acknowledged something else")
        return response.appended

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

"""Errors as google.rpc.Status: the one place where an exception becomes bytes that a caller sees."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shared.errors import Error
from shared.rpc.call import Denied

DOMAIN = "bastide"
DETAILS_KEY = "grpc-status-details-bin"


def render(error: Error, **metadata: str) -> status_pb2.Status:
    """Return `error` as a Status with ErrorInfo, RetryInfo where waiting helps, and a deny's public reasons."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={**metadata, **error.metadata})
    details = [_pack(info)]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, Denied) and error.public_reasons:
        violations = [
            error_details_pb2.PreconditionFailure.Violation(type=item.code, description=item.message)
            for item in error.public_reasons
        ]
        details.append(_pack(error_details_pb2.PreconditionFailure(violations=violations)))
    return status_pb2.Status(code=int(error.code), message=error.message, details=details)


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.PreconditionFailure,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def peer_failure(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """Return the ErrorInfo reason (empty if there is none of ours) and RetryInfo delay of a failed call to a peer."""
    status = rpc_status.from_call(error) if error.trailing_metadata() is not None else None  # type: ignore[arg-type]
    reason, delay = "", None
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, delay

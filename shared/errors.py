"""Every error a caller can see, one class per reason.

A subclass fixes the gRPC code and an UPPER_SNAKE `reason`; the message and the metadata reach the caller, so
neither may ever hold a prompt, a completion, a token, a key or another exception's text. Whatever is not an
`Error` is rendered as `INTERNAL` with an id and nothing else (`shared.rpc.errors`).

Codes are the canonical ones of google.rpc.Code; this module imports no gRPC so that domain code can raise.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Code(enum.IntEnum):
    """google.rpc.Code, the values that Bastide answers with."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Error(Exception):
    """Root of everything a caller may be told. `metadata` values MUST be safe to show to that caller."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        """Build an error; `retry_after` is the number of seconds after which a retry may succeed."""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.metadata = metadata


class InvalidArgument(Error):
    """The request breaks a limit or rule of the contract; metadata `field` names where."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str, **metadata: str) -> None:
        """Name the offending `field` by its path in the request, as the contract spells it."""
        super().__init__(message, retry_after=None, field=field, **metadata)
        self.field = field


class MalformedRequest(Error):
    """The bytes are not a message of the request's type."""

    code = Code.INVALID_ARGUMENT
    reason = "MALFORMED_REQUEST"


class MessageTooLarge(Error):
    """The request is larger than this server accepts."""

    code = Code.INVALID_ARGUMENT
    reason = "MESSAGE_TOO_LARGE"


class Unauthenticated(Error):
    """No valid token where one is needed. The message never says which check failed beyond its class."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(Error):
    """Policy, or the method table for peer methods, refuses this caller."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class PeerNotAllowed(PermissionDenied):
    """The client certificate is not one of the peers that the method table names."""

    reason = "PEER_NOT_ALLOWED"


class NotFound(Error):
    """The named resource does not exist, or this caller may not know that it does."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(Error):
    """A resource of that name or a call with that request_id exists."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(Error):
    """The system is not in the state that this call needs; a retry alone will not help."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Aborted(Error):
    """A concurrent change won; read again, then retry."""

    code = Code.ABORTED
    reason = "CONFLICT"


class ResourceExhausted(Error):
    """A budget, quota or concurrency limit is used up."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Unimplemented(Error):
    """The contract has this method, this build does not yet."""

    code = Code.UNIMPLEMENTED
    reason = "NOT_BUILT_YET"


class Unavailable(Error):
    """A part this call needs did not answer in time or not well; nothing was released."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"


class GuardUnavailable(Unavailable):
    """The policy guard gave no single well-formed decision in time; callers MUST refuse."""

    reason = "GUARD_UNAVAILABLE"


class AuditUnavailable(Unavailable):
    """The audit log did not acknowledge a record in time; callers MUST refuse."""

    reason = "AUDIT_UNAVAILABLE"


class BackendUnavailable(Unavailable):
    """The model backend is dead, hung or answers nonsense."""

    reason = "BACKEND_UNAVAILABLE"


class DeadlineExceeded(Error):
    """The work did not end within its deadline."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(Error):
    """The caller went away."""

    code = Code.CANCELLED
    reason = "CANCELLED"


class DataLoss(Error):
    """Stored bytes do not authenticate: truncated, reordered, swapped or altered."""

    code = Code.DATA_LOSS
    reason = "INTEGRITY"

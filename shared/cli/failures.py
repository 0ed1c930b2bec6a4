"""How a command fails: what was refused, why, and what to do next; never a traceback."""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from shared.cli.render import Output
from shared.errors import Error
from shared.rpc.status import DOMAIN

# Exit codes of `bastide`; 2 is what the argument parser answers for wrong usage.
REFUSED = 1
USAGE = 2
UNAVAILABLE = 3
INTERNAL = 70  # EX_SOFTWARE of sysexits.h

_UNAVAILABLE_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# By ErrorInfo reason, and by the codes of the default policy's public reasons.
_ADVICE = {
    "USE_POLICY_NOT_ACKNOWLEDGED": "read and accept it: bastide use-policy accept",
    "MFA_REQUIRED": "sign in again with the second factor: bastide login SUBJECT",
    "SECOND_PERSON_REQUIRED": "another person has to do this",
    "UNAUTHENTICATED": "sign in: bastide login SUBJECT",
    "GUARD_UNAVAILABLE": "see which part is missing: bastide status",
    "AUDIT_UNAVAILABLE": "see which part is missing: bastide status",
}


class Failure(Exception):
    """Ends a command with one message and an exit code. The message MUST be safe to show."""

    def __init__(self, message: str, *, title: str = "not done", exit_code: int = REFUSED) -> None:
        """Say what is wrong and, where there is something, what to do."""
        super().__init__(message)
        self.message = message
        self.title = title
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """A failure as it is shown: a title, lines for people, the same for programs, and the exit code."""

    title: str
    lines: tuple[str, ...]
    document: dict[str, Any]
    exit_code: int


class CallFailed(Exception):
    """A call to a service ended with an error status."""

    def __init__(self, method: str, service: str, address: str, error: grpc.aio.AioRpcError) -> None:
        """Keep what is needed to explain it."""
        super().__init__(method)
        self.method = method
        self.service = service
        self.address = address
        self.error = error


def report(output: Output, error: Exception) -> int | None:
    """Show `error` and return its exit code; None, and nothing is shown, for what nobody foresaw."""
    explanation = explain(error)
    if explanation is None:
        return None
    output.failure(explanation.title, explanation.lines, explanation.document)
    return explanation.exit_code


def explain(error: Exception) -> Explanation | None:
    """Return what to show for `error`, None for what nobody foresaw."""
    match error:
        case CallFailed():
            return _call(error)
        case Failure():
            document = {"reason": "CLIENT", "message": error.message}
            return Explanation(title=error.title, lines=(error.message,), document=document, exit_code=error.exit_code)
        case Error():
            document = {"reason": error.reason, "message": error.message}
            return Explanation(title=error.reason, lines=(error.message,), document=document, exit_code=REFUSED)
        case TimeoutError():
            document = {"reason": "DEADLINE_EXCEEDED", "message": "no answer in time"}
            return Explanation(
                title="no answer in time", lines=("no answer in time",), document=document, exit_code=UNAVAILABLE
            )
        case OSError():
            sentence = f"{error.filename or 'system'}: {error.strerror or error}"
            document = {"reason": "SYSTEM", "message": sentence}
            return Explanation(title="not done", lines=(sentence,), document=document, exit_code=REFUSED)
        case _:
            return None


def _call(failed: CallFailed) -> Explanation:
    error = failed.error
    info, reasons, retry = _details(error)
    exit_code = UNAVAILABLE if error.code() in _UNAVAILABLE_CODES else REFUSED
    if info is None:
        reason, metadata = error.code().name, dict[str, str]()
        message = f"{failed.service} does not answer at {failed.address}"
        if error.code() not in _UNAVAILABLE_CODES:
            message = f"{failed.service} at {failed.address} answered {error.code().name}"
        advice = "see what runs: bastide status; start it: bastide up"
    else:
        reason, metadata = info.reason, dict(info.metadata)
        message = error.details() or reason
        advice = _ADVICE.get(reason, "")
    lines = [f"{text} ({code})" for code, text in reasons] or [message]
    lines += [f"{key}: {value}" for key, value in sorted(metadata.items()) if key != "decision_id"]
    if retry is not None:
        lines.append(f"a retry may succeed after {retry:g} s")
    if decision := metadata.get("decision_id"):
        lines += [f"decision: {decision}", f"evidence: bastide audit receipt get --decision {decision}"]
    advice = next((_ADVICE[code] for code, _ in reasons if code in _ADVICE), advice)
    if advice:
        lines.append(advice)
    document = {
        "method": failed.method,
        "service": failed.service,
        "code": error.code().name,
        "reason": reason,
        "message": message,
        "public_reasons": [{"code": code, "message": text} for code, text in reasons],
        "metadata": metadata,
        "retry_after_seconds": retry,
    }
    verb = "unavailable" if exit_code == UNAVAILABLE else "refused"
    return Explanation(
        title=f"{failed.method} {verb}: {reason}", lines=tuple(lines), document=document, exit_code=exit_code
    )


def _details(
    error: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, list[tuple[str, str]], float | None]:
    info, reasons, retry = None, [], None
    try:
        status = rpc_status.from_call(error) if error.trailing_metadata() is not None else None  # type: ignore[arg-type]
    except ValueError:
        # The details contradict the status line: whatever stands there does not come from the suite.
        status = None
    for detail in status.details if status is not None else ():
        found = error_details_pb2.ErrorInfo()
        delay = error_details_pb2.RetryInfo()
        denied = error_details_pb2.PreconditionFailure()
        if detail.Unpack(found) and found.domain == DOMAIN:
            info = found
        elif detail.Unpack(delay):
            retry = delay.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(denied):
            reasons = [(item.type, item.description) for item in denied.violations]
    return info, reasons, retry

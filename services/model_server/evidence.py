"""What an inference call leaves behind: its course, the records of its beginning and end, and the receipt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import rfc8785

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.model_server.v1 import inference_pb2
from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2, decision_pb2, evidence_pb2
from services.model_server.rendering import ROLES
from shared import errors
from shared.audit import record_of
from shared.rpc.call import Call, Judgement
from shared.transparency.commitment import commit, new_salt

# With the rest of its record it fits into one sealed value of the outbox.
MAX_KEPT_BYTES = 896 * 1024


class StreamCut(errors.PermissionDenied):
    """The guard ended the stream because of its content."""

    reason = "CONTENT_BLOCKED"


class TooLongToKeep(errors.ResourceExhausted):
    """Policy wants the text of this call kept, and there is more of it than a record holds."""

    reason = "TEXT_TOO_LONG"


@dataclass(kw_only=True)
class Course:
    """What has happened in a call so far; what the end record tells."""

    wanted: inference_pb2.InferenceCall
    prompt_findings: list[content_pb2.Finding]
    kept: record_pb2.KeptText | None = None
    released: list[str] = field(default_factory=list)
    findings: list[content_pb2.Finding] = field(default_factory=list)
    usage: content_pb2.Usage = field(default_factory=content_pb2.Usage)
    finish: content_pb2.FinishReason.ValueType = content_pb2.FINISH_REASON_UNSPECIFIED
    prompt: evidence_pb2.Commitment = field(default_factory=evidence_pb2.Commitment)
    completion: evidence_pb2.Commitment = field(default_factory=evidence_pb2.Commitment)
    verdict: decision_pb2.SignedDecision | None = None
    _kept_bytes: int = 0

    def begin(self, *, keep: bool) -> None:
        """Commit to the prompt, and count it where text is kept. Raises TooLongToKeep."""
        # What the commitment covers: the messages as the caller sent them, canonical JSON (RFC 8785).
        messages = [{"role": ROLES[item.role], "content": item.content} for item in self.wanted.messages]
        self.prompt = _commitment("prompt", rfc8785.dumps(messages))
        if keep:
            self.kept = record_pb2.KeptText(messages=self.wanted.messages)
            self._keep(self.kept.ByteSize())

    def release(self, released: guard_pb2.Released) -> inference_pb2.GenerationChunk | None:
        """Take note of what is about to go out and return it, if it is anything. Raises TooLongToKeep."""
        self._keep(len(released.text.encode()))
        self.findings.extend(released.findings)
        if released.text:
            self.released.append(released.text)
        if not released.text and not released.findings:
            return None
        return inference_pb2.GenerationChunk(text=released.text, findings=released.findings)

    def _keep(self, size: int) -> None:
        self._kept_bytes += size
        if self.kept is not None and self._kept_bytes > MAX_KEPT_BYTES:
            raise TooLongToKeep(f"under this purpose a conversation has at most {MAX_KEPT_BYTES} bytes")


def beginning(call: Call, course: Course) -> record_pb2.Record:
    """Return the AUTHORISED record; its lease is the caller's to set."""
    record = _record(call, record_pb2.RECORD_KIND_AUTHORISED)
    record.commitments.append(_public(course.prompt))
    return record


def ending(call: Call, course: Course, authorised: record_pb2.Record, error: errors.Error | None) -> record_pb2.Record:
    """Return the record of the end, and commit to what was released."""
    assert call.inference is not None
    call.inference.usage.CopyFrom(course.usage)
    call.inference.finish_reason = course.finish
    call.inference.findings.extend(counts(course.findings, output=True))
    if course.verdict is not None:
        call.inference.verdict.CopyFrom(course.verdict)
    record = _record(call, _end_kind(error), error)
    record.authorised_record_id = authorised.record_id
    completion = "".join(course.released)
    course.completion = _commitment("completion", completion.encode())
    record.commitments.extend((_public(course.prompt), _public(course.completion)))
    if course.kept is not None:
        course.kept.completion = completion
        record.sealed_text = course.kept.SerializeToString()
    return record


def receipt(call: Call, judgement: Judgement, course: Course, appended: audit_pb2.Appended) -> evidence_pb2.Receipt:
    """Return the receipt for a call whose end stands in the log as `appended`."""
    return evidence_pb2.Receipt(
        leaf=appended.leaf,
        proof=appended.proof,
        commitments=[course.prompt, course.completion],
        decision_id=judgement.decision.decision_id,
        call_id=call.call_id,
    )


def counts(findings: Iterable[content_pb2.Finding], *, output: bool) -> list[record_pb2.FindingCount]:
    """Return how many findings of each kind met which action."""
    found: dict[tuple[str, content_pb2.ContentAction.ValueType], int] = {}
    for item in findings:
        key = (item.kind, item.action)
        found[key] = found.get(key, 0) + 1
    return [
        record_pb2.FindingCount(kind=kind, action=action, output=output, count=count)
        for (kind, action), count in found.items()
    ]


def _record(call: Call, kind: record_pb2.RecordKind.ValueType, error: errors.Error | None = None) -> record_pb2.Record:
    return record_of(
        kind,
        call_id=call.call_id,
        method=call.method,
        action=call.row.action,
        resource=call.inference.model_version if call.inference else "",
        principal=call.principal,
        judgement=call.judgement,
        inference=call.inference,
        status_code=0 if error is None else int(error.code),
        reason="" if error is None else error.reason,
    )


def _end_kind(error: errors.Error | None) -> record_pb2.RecordKind.ValueType:
    match error:
        case None:
            return record_pb2.RECORD_KIND_COMPLETED
        case StreamCut() | errors.GuardUnavailable():
            return record_pb2.RECORD_KIND_CUT
        case errors.Cancelled():
            return record_pb2.RECORD_KIND_CANCELLED
        case _:
            return record_pb2.RECORD_KIND_FAILED


def _commitment(name: str, value: bytes) -> evidence_pb2.Commitment:
    salt = new_salt()
    return evidence_pb2.Commitment(name=name, salt=salt, digest=commit(value, salt))


def _public(commitment: evidence_pb2.Commitment) -> evidence_pb2.Commitment:
    return evidence_pb2.Commitment(name=commitment.name, digest=commitment.digest)

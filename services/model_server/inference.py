"""The life of an inference call: guard session, authorised record, generation under inspection, completed record.

    open session -> decision -> count -> reserve -> record AUTHORISED -> generate | inspect | release -> record the end

Nothing is released before AUTHORISED is durable, and nothing that the guard did not release. The end is recorded by a
task of the server's own, which the caller's cancel does not reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field

import rfc8785
import structlog

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.model_server.v1 import inference_pb2
from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2, decision_pb2, evidence_pb2, principal_pb2
from services.model_server.backends import Backend, Finish, GenerationRequest, Piece, check_request
from services.model_server.backends.deadline import expiring
from services.model_server.guard_session import GuardSession
from services.model_server.outbox import Outbox
from services.model_server.serving import Served, Serving
from services.model_server.template import Message
from shared import errors
from shared.audit import AuditLog, record_of
from shared.guard import DecisionVerifier, commit
from shared.rpc.call import Call, Denied, Judgement, Owned
from shared.rpc.channel import Channel

log = structlog.get_logger()

# Lapsed leases are closed INTERRUPTED; a call that ends on time must never look like one.
LEASE_MARGIN_SECONDS = 30.0
MAX_COALESCED = 32 * 1024
# A character takes at most 4 bytes, and the contract bounds one inspection at 64 KiB.
MAX_INSPECTED = 16 * 1024
_ROLES = {content_pb2.ROLE_SYSTEM: "system", content_pb2.ROLE_USER: "user", content_pb2.ROLE_ASSISTANT: "assistant"}
_FINISH = {Finish.STOP: content_pb2.FINISH_REASON_STOP, Finish.LENGTH: content_pb2.FINISH_REASON_LENGTH}

Event = inference_pb2.GenerationStart | inference_pb2.GenerationChunk | inference_pb2.GenerationEnd


class StreamCut(errors.PermissionDenied):
    """The guard ended the stream because of its content."""

    reason = "CONTENT_BLOCKED"


@dataclass(frozen=True, kw_only=True)
class InferenceLimits:
    """Defaults and bounds of calls."""

    default_max_new_tokens: int
    max_seconds: float
    guard_seconds: float


@dataclass(kw_only=True)
class _Progress:
    """What has happened so far; what the end record tells."""

    released: list[str] = field(default_factory=list)
    findings: list[content_pb2.Finding] = field(default_factory=list)
    prompt_findings: list[content_pb2.Finding] = field(default_factory=list)
    usage: content_pb2.Usage = field(default_factory=content_pb2.Usage)
    finish: content_pb2.FinishReason.ValueType = content_pb2.FINISH_REASON_UNSPECIFIED
    prompt: evidence_pb2.Commitment = field(default_factory=evidence_pb2.Commitment)
    completion: evidence_pb2.Commitment = field(default_factory=evidence_pb2.Commitment)
    verdict: decision_pb2.SignedDecision | None = None


class Inference:
    """Runs inference calls."""

    def __init__(
        self,
        *,
        serving: Serving,
        guard: Channel,
        verifier: DecisionVerifier,
        audit: AuditLog,
        outbox: Outbox,
        owned: Owned,
        limits: InferenceLimits,
    ) -> None:
        """Join the parts; each is the caller's to close."""
        self._serving = serving
        self._guard = guard
        self._verifier = verifier
        self._audit = audit
        self._outbox = outbox
        self._owned = owned
        self._limits = limits

    async def run(
        self, call: Call, wanted: inference_pb2.InferenceCall, *, stream: bool
    ) -> AsyncGenerator[Event, None]:
        """Yield a start, chunks and one end. Callers MUST close the iterator; any failure raises an `Error`."""
        await self._outbox.check()
        async with self._serving.lease(wanted.model, call.person.subject) as served:
            call.inference = record_pb2.InferenceFacts(
                model=wanted.model,
                model_version=served.version.manifest.name,
                model_digest=served.version.manifest.digest,
                binding=(
                    record_pb2.MODEL_BINDING_LOADED
                    if served.version.manifest.loaded
                    else record_pb2.MODEL_BINDING_DECLARED
                ),
                generation=served.generation,
                purpose=wanted.purpose,
                request_id=wanted.request_id,
            )
            seconds = self._limits.max_seconds
            remaining = call.remaining()
            seconds = seconds if remaining is None else min(seconds, remaining)
            # Longer than the generation, so that a call which takes too long ends for that and not for its guard.
            session = GuardSession(
                self._guard, timeout=self._limits.guard_seconds, lifetime=seconds + self._limits.guard_seconds
            )
            try:
                async with contextlib.aclosing(
                    self._guarded(call, wanted, served, session, stream=stream, seconds=seconds)
                ) as events:
                    async for event in events:
                        yield event
            finally:
                session.close()

    async def _guarded(
        self,
        call: Call,
        wanted: inference_pb2.InferenceCall,
        served: Served,
        session: GuardSession,
        *,
        stream: bool,
        seconds: float,
    ) -> AsyncGenerator[Event, None]:
        deadline = asyncio.get_running_loop().time() + seconds
        request = _request(wanted, served.backend, seconds, self._limits.default_max_new_tokens)
        decided = await session.open(_opening(call, wanted, served, stream=stream))
        judgement = self._verifier.verify(
            decided.decision, decided.opening, method=call.method, action=call.row.action, subject=call.person.subject
        )
        call.judgement = judgement
        progress = _Progress(prompt_findings=list(decided.findings))
        assert call.inference is not None
        call.inference.findings.extend(_counts(decided.findings, output=False))
        if not judgement.allowed:
            raise Denied(judgement)
        messages = tuple(Message(role=_ROLES[item.role], content=item.content) for item in decided.messages)
        duties = judgement.decision.obligations
        async with expiring(deadline):
            progress.usage.prompt_tokens = await served.backend.count_tokens(messages)
        room = served.backend.abilities.max_context - progress.usage.prompt_tokens
        if room < 1:
            raise errors.InvalidArgument("the prompt does not fit the model's context", field="call.messages")
        cap = min(request.max_new_tokens, room, duties.max_new_tokens or room)
        cap = await session.reserve(
            prompt_tokens=progress.usage.prompt_tokens, max_new_tokens=cap, lease=max(1.0, seconds)
        )
        progress.prompt = _commitment("prompt", _prompt_bytes(wanted))
        final = GenerationRequest(
            messages=messages,
            max_new_tokens=cap,
            timeout=request.timeout,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            stop=request.stop,
        )
        authorised = self._owned.start(self._authorise(call, progress, seconds))
        try:
            await asyncio.shield(authorised)
            yield inference_pb2.GenerationStart(
                call_id=call.call_id,
                decision_id=judgement.decision.decision_id,
                model_version=served.version.manifest.name,
                prompt_findings=decided.findings,
            )
            if duties.disclosure:
                line = duties.disclosure + "\n\n"
                progress.released.append(line)
                yield inference_pb2.GenerationChunk(text=line)
            generated = _coalesced(served.backend.generate(final), deadline)
            async with contextlib.aclosing(self._released(call, generated, session, progress)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            # The caller went away: generation has stopped, and what was released is told by a task of our own.
            gone = errors.Cancelled("the caller went away")
            self._owned.start(self._end(call, wanted, progress, authorised, gone))
            raise
        except errors.Error as error:
            await asyncio.shield(self._owned.start(self._end(call, wanted, progress, authorised, error)))
            raise
        except Exception:
            unforeseen = errors.Error("internal error")
            await asyncio.shield(self._owned.start(self._end(call, wanted, progress, authorised, unforeseen)))
            raise
        appended = await asyncio.shield(self._owned.start(self._end(call, wanted, progress, authorised, None)))
        yield inference_pb2.GenerationEnd(
            finish_reason=progress.finish,
            usage=progress.usage,
            receipt=_receipt(call, judgement, progress, appended),
            model_version=served.version.manifest.name,
            prompt_findings=progress.prompt_findings,
            findings=progress.findings,
            decision=judgement.signed,
        )

    async def _released(
        self, call: Call, generated: AsyncGenerator[Piece, None], session: GuardSession, progress: _Progress
    ) -> AsyncGenerator[inference_pb2.GenerationChunk, None]:
        """Yield what the guard releases of what the backend generates, then settle."""
        async with contextlib.aclosing(generated) as pieces:
            async for piece in pieces:
                progress.usage.completion_tokens += piece.tokens
                if piece.finish is not None:
                    progress.finish = _FINISH[piece.finish]
                for start in range(0, len(piece.text), MAX_INSPECTED):
                    answer = await session.inspect(piece.text[start : start + MAX_INSPECTED])
                    if isinstance(answer, guard_pb2.Cut):
                        progress.finish = content_pb2.FINISH_REASON_CONTENT
                        await session.finish(progress.usage, progress.finish)
                        raise _cut(answer)
                    if (chunk := _chunk(answer, progress)) is not None:
                        yield chunk
        if progress.finish == content_pb2.FINISH_REASON_UNSPECIFIED:
            raise errors.BackendUnavailable("the backend ended without saying why")
        closed = await session.finish(progress.usage, progress.finish)
        if isinstance(closed, guard_pb2.Cut):
            progress.finish = content_pb2.FINISH_REASON_CONTENT
            raise _cut(closed)
        progress.verdict = self._verified(call, closed.verdict)
        if (chunk := _chunk(closed.released, progress)) is not None:
            yield chunk

    def _verified(self, call: Call, verdict: decision_pb2.SignedDecision) -> decision_pb2.SignedDecision:
        """Return the guard's final verdict. Raises GuardUnavailable unless it allows the answer to this very call."""
        assert call.judgement is not None
        final = self._verifier.verify(
            verdict,
            call.judgement.opening,
            method=call.method,
            action=call.row.action,
            subject=call.person.subject,
        )
        if not final.allowed or final.decision.decision_id != call.judgement.decision.decision_id:
            raise errors.GuardUnavailable("the guard's verdict is not about this answer")
        return verdict

    async def _authorise(self, call: Call, progress: _Progress, seconds: float) -> record_pb2.Record:
        record = self._record(call, record_pb2.RECORD_KIND_AUTHORISED)
        record.lease.FromTimedelta(dt.timedelta(seconds=seconds + LEASE_MARGIN_SECONDS))
        record.commitments.append(_public(progress.prompt))
        await self._audit.append([record])
        call.recorded = True
        return record

    async def _end(
        self,
        call: Call,
        wanted: inference_pb2.InferenceCall,
        progress: _Progress,
        authorised: asyncio.Task[record_pb2.Record],
        error: errors.Error | None,
    ) -> audit_pb2.Appended:
        """Record the end of an authorised call; what the log cannot take now waits in the outbox.

        Raises AuditUnavailable where it waits, so that a call without its record never ends well, and where the call
        was never authorised.
        """
        opened = await authorised
        assert call.inference is not None
        call.inference.usage.CopyFrom(progress.usage)
        call.inference.finish_reason = progress.finish
        call.inference.findings.extend(_counts(progress.findings, output=True))
        if progress.verdict is not None:
            call.inference.verdict.CopyFrom(progress.verdict)
        record = self._record(call, _end_kind(error), error)
        record.authorised_record_id = opened.record_id
        progress.completion = _commitment("completion", "".join(progress.released).encode())
        record.commitments.extend((_public(progress.prompt), _public(progress.completion)))
        if call.judgement is not None and call.judgement.decision.obligations.retain_text:
            record.sealed_text = _kept(wanted, progress)
        try:
            (appended,) = await self._audit.append([record])
        except errors.AuditUnavailable:
            await self._outbox.put(record)
            log.warning("completion_waits_in_outbox")
            raise
        return appended

    @staticmethod
    def _record(
        call: Call,
        kind: record_pb2.RecordKind.ValueType,
        error: errors.Error | None = None,
    ) -> record_pb2.Record:
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


async def _coalesced(pieces: AsyncGenerator[Piece, None], deadline: float) -> AsyncGenerator[Piece, None]:
    """Join what was generated while the consumer was busy, so that a slow hop never slows generation.

    Raises DeadlineExceeded when nothing came by `deadline`, whatever the backend makes of its own.
    """
    waiting: list[Piece] = []
    arrived = asyncio.Event()
    room = asyncio.Event()
    room.set()

    async def pump() -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await room.wait()
                waiting.append(piece)
                if sum(len(item.text) for item in waiting) > MAX_COALESCED:
                    room.clear()
                arrived.set()

    task = asyncio.create_task(pump(), name="generation")
    task.add_done_callback(lambda _: arrived.set())
    try:
        while True:
            async with expiring(deadline):
                await arrived.wait()
            arrived.clear()
            if waiting:
                taken, waiting[:] = list(waiting), []
                room.set()
                yield Piece(
                    text="".join(item.text for item in taken),
                    tokens=sum(item.tokens for item in taken),
                    finish=taken[-1].finish,
                )
            if task.done() and not waiting:
                await task
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _request(
    wanted: inference_pb2.InferenceCall, backend: Backend, seconds: float, default_tokens: int
) -> GenerationRequest:
    """Return the request with the caller's parameters, checked; messages come later. Raises InvalidArgument."""
    given = wanted.parameters
    most = backend.abilities.max_context
    request = GenerationRequest(
        messages=(),
        max_new_tokens=min(given.max_new_tokens or default_tokens, most),
        timeout=seconds,
        temperature=given.temperature if given.HasField("temperature") else 0.0,
        top_p=given.top_p if given.HasField("top_p") else 1.0,
        top_k=given.top_k if given.HasField("top_k") else 0,
        seed=given.seed if given.HasField("seed") else None,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        stop=tuple(given.stop),
    )
    try:
        check_request(request, backend.abilities)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(error.message, field=f"call.parameters.{error.field}") from None
    return request


def _opening(call: Call, wanted: inference_pb2.InferenceCall, served: Served, *, stream: bool) -> guard_pb2.OpenSession:
    manifest = served.version.manifest
    return guard_pb2.OpenSession(
        token=call.token or "",
        workload=principal_pb2.Workload(
            spiffe_id=call.caller.spiffe_id, certificate_sha256=call.caller.certificate_sha256
        ),
        method=call.method,
        call_id=call.call_id,
        model=guard_pb2.ModelFacts(
            name=wanted.model,
            version=manifest.name,
            loaded=manifest.loaded,
            classification=principal_pb2.Classification.Value(f"CLASSIFICATION_{manifest.classification}"),
            permitted_purposes=manifest.permitted_purposes,
            control_tokens_safe=manifest.loaded,
        ),
        purpose=wanted.purpose,
        messages=wanted.messages,
        parameters=wanted.parameters,
        stream=stream,
        request_id=wanted.request_id,
    )


def _chunk(released: guard_pb2.Released, progress: _Progress) -> inference_pb2.GenerationChunk | None:
    progress.findings.extend(released.findings)
    if released.text:
        progress.released.append(released.text)
    if not released.text and not released.findings:
        return None
    return inference_pb2.GenerationChunk(text=released.text, findings=released.findings)


def _cut(cut: guard_pb2.Cut) -> StreamCut:
    public = "; ".join(item.message for item in cut.reasons if item.public)
    return StreamCut(public or "the answer was cut by policy", kind=cut.finding.kind)


def _end_kind(error: errors.Error | None) -> record_pb2.RecordKind.ValueType:
    match error:
        case None:
            return record_pb2.RECORD_KIND_COMPLETED
        case StreamCut():
            return record_pb2.RECORD_KIND_CUT
        case errors.GuardUnavailable():
            return record_pb2.RECORD_KIND_CUT
        case errors.Cancelled():
            return record_pb2.RECORD_KIND_CANCELLED
        case _:
            return record_pb2.RECORD_KIND_FAILED


def _counts(findings: Iterable[content_pb2.Finding], *, output: bool) -> list[record_pb2.FindingCount]:
    counts: dict[tuple[str, content_pb2.ContentAction.ValueType], int] = {}
    for item in findings:
        key = (item.kind, item.action)
        counts[key] = counts.get(key, 0) + 1
    return [
        record_pb2.FindingCount(kind=kind, action=action, output=output, count=count)
        for (kind, action), count in counts.items()
    ]


def _prompt_bytes(wanted: inference_pb2.InferenceCall) -> bytes:
    """Return what the prompt's commitment covers: the messages as the caller sent them, canonical JSON."""
    return rfc8785.dumps([{"role": _ROLES[item.role], "content": item.content} for item in wanted.messages])


def _commitment(name: str, value: bytes) -> evidence_pb2.Commitment:
    salt = os.urandom(32)
    return evidence_pb2.Commitment(name=name, salt=salt, digest=commit(salt, value))


def _public(commitment: evidence_pb2.Commitment) -> evidence_pb2.Commitment:
    return evidence_pb2.Commitment(name=commitment.name, digest=commitment.digest)


def _kept(wanted: inference_pb2.InferenceCall, progress: _Progress) -> bytes:
    prompt = json.loads(_prompt_bytes(wanted))
    return json.dumps({"messages": prompt, "completion": "".join(progress.released)}).encode()


def _receipt(
    call: Call, judgement: Judgement, progress: _Progress, appended: audit_pb2.Appended
) -> evidence_pb2.Receipt:
    return evidence_pb2.Receipt(
        leaf=appended.leaf,
        proof=appended.proof,
        commitments=[progress.prompt, progress.completion],
        decision_id=judgement.decision.decision_id,
        call_id=call.call_id,
    )

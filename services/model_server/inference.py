"""The life of an inference call: guard session, authorised record, generation under inspection, completed record.

    open session -> decision -> count -> reserve -> record AUTHORISED -> generate | inspect | release -> record the end

Nothing is released before AUTHORISED is durable, and nothing that the guard did not release. The end is recorded by a
task of the server's own, which the caller's cancel does not reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.model_server.v1 import inference_pb2
from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2, decision_pb2
from services.model_server import evidence, rendering
from services.model_server.backends import Piece
from services.model_server.backends.deadline import expiring
from services.model_server.coalescing import coalesced
from services.model_server.evidence import Course, StreamCut
from services.model_server.guard_session import GuardSession
from services.model_server.serving import Served, Serving
from services.model_server.telemetry import GenerationTelemetry
from services.model_server.template import Message
from shared import errors
from shared.audit import AuditLog
from shared.guard import DecisionVerifier, check_prompt
from shared.rpc.call import Call, Denied, Judgement, Owned
from shared.rpc.channel import Channel

# Lapsed leases are closed INTERRUPTED; a call that ends on time must never look like one.
LEASE_MARGIN_SECONDS = 30.0
# The contract bounds one inspection at 64 KiB; so much of any script takes the guard a tenth of a second, well within
# the deadline of its answer on a busy machine too.
MAX_INSPECTED = 4 * 1024
# How often output is inspected, in seconds: a reader sees no difference, and a unary caller sees nothing before the
# end, so that only a cut is later, which ends generation.
STREAMED_INTERVAL = 0.02
UNARY_INTERVAL = 0.25

Event = inference_pb2.GenerationStart | inference_pb2.GenerationChunk | inference_pb2.GenerationEnd


@dataclass(frozen=True, kw_only=True)
class InferenceLimits:
    """Defaults and bounds of calls."""

    default_max_new_tokens: int
    max_seconds: float
    guard_seconds: float


class Inference:
    """Runs inference calls."""

    def __init__(
        self,
        *,
        serving: Serving,
        guard: Channel,
        verifier: DecisionVerifier,
        audit: AuditLog,
        owned: Owned,
        limits: InferenceLimits,
    ) -> None:
        """Join the parts; each is the caller's to close."""
        self._serving = serving
        self._guard = guard
        self._verifier = verifier
        self._audit = audit
        self._owned = owned
        self._limits = limits

    async def run(
        self, call: Call, wanted: inference_pb2.InferenceCall, *, stream: bool
    ) -> AsyncGenerator[Event, None]:
        """Yield a start, chunks and one end. Callers MUST close the iterator; any failure raises an `Error`."""
        check_prompt(wanted.messages, field="call.messages")
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
                if not call.recording:
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
        request = rendering.generation_request(
            wanted, served.backend, seconds, self._limits.default_max_new_tokens, stream=stream
        )
        decided = await session.open(rendering.opening(call, wanted, served, stream=stream))
        judgement = self._judged(call, decided)
        course = Course(wanted=wanted, prompt_findings=list(decided.findings))
        messages = tuple(Message(role=rendering.ROLES[item.role], content=item.content) for item in decided.messages)
        duties = judgement.decision.obligations
        async with expiring(deadline):
            course.usage.prompt_tokens = await served.backend.count_tokens(messages)
        room = served.backend.abilities.max_context - course.usage.prompt_tokens
        if room < 1:
            raise errors.InvalidArgument("the prompt does not fit the model's context", field="call.messages")
        cap = min(request.max_new_tokens, room, duties.max_new_tokens or room)
        cap = await session.reserve(
            prompt_tokens=course.usage.prompt_tokens, max_new_tokens=cap, lease=max(1.0, seconds)
        )
        course.begin(keep=duties.retain_text)
        telemetry = GenerationTelemetry(call, wanted, version=served.version.manifest.name, max_tokens=cap)
        final = dataclasses.replace(request, messages=messages, max_new_tokens=cap)
        call.recording = True
        authorised = self._owned.start(self._authorise(call, course, seconds))
        try:
            await asyncio.shield(authorised)
            yield inference_pb2.GenerationStart(
                call_id=call.call_id,
                decision_id=judgement.decision.decision_id,
                model_version=served.version.manifest.name,
                prompt_findings=decided.findings,
            )
            if duties.disclosure:
                line = course.release(guard_pb2.Released(text=duties.disclosure + "\n\n"))
                if line is not None:
                    yield line
            generated = coalesced(
                served.backend.generate(final),
                deadline,
                interval=STREAMED_INTERVAL if stream else UNARY_INTERVAL,
                at_once=stream,
            )
            try:
                async with contextlib.aclosing(self._released(call, generated, session, course, telemetry)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                telemetry.end(course.usage, course.finish)
        except (asyncio.CancelledError, GeneratorExit):
            # The caller went away: generation has stopped, and what was released is told by a task of our own.
            gone = errors.Cancelled("the caller went away")
            self._owned.start(self._end(call, course, session, authorised, gone))
            raise
        except errors.Error as error:
            if isinstance(error, errors.GuardUnavailable) and asyncio.get_running_loop().time() > deadline:
                # The session outlives the generation, not a caller who does not read.
                error = errors.DeadlineExceeded("the answer was not taken in time")
            await asyncio.shield(self._owned.start(self._end(call, course, session, authorised, error)))
            raise error from None
        except Exception:
            unforeseen = errors.Error("internal error")
            await asyncio.shield(self._owned.start(self._end(call, course, session, authorised, unforeseen)))
            raise
        appended = await asyncio.shield(self._owned.start(self._end(call, course, session, authorised, None)))
        yield inference_pb2.GenerationEnd(
            finish_reason=course.finish,
            usage=course.usage,
            receipt=evidence.receipt(call, judgement, course, appended),
            model_version=served.version.manifest.name,
            prompt_findings=course.prompt_findings,
            findings=course.findings,
            decision=judgement.signed,
        )

    def _judged(self, call: Call, decided: guard_pb2.Decided) -> Judgement:
        """Return the guard's verified allow, and note it for the record. Raises Denied or GuardUnavailable."""
        call.judgement = self._verifier.verify(
            decided.decision, decided.opening, method=call.method, action=call.row.action, subject=call.person.subject
        )
        assert call.inference is not None
        call.inference.findings.extend(evidence.counts(decided.findings, output=False))
        if not call.judgement.allowed:
            raise Denied(call.judgement)
        return call.judgement

    async def _released(
        self,
        call: Call,
        generated: AsyncGenerator[Piece, None],
        session: GuardSession,
        course: Course,
        telemetry: GenerationTelemetry,
    ) -> AsyncGenerator[inference_pb2.GenerationChunk, None]:
        """Yield what the guard releases of what the backend generates, then settle."""
        rest = ""
        async with contextlib.aclosing(generated) as pieces:
            async for piece in pieces:
                course.usage.completion_tokens += piece.tokens
                if piece.prompt_tokens is not None:
                    course.usage.prompt_tokens = piece.prompt_tokens
                if piece.finish is not None:
                    course.finish = rendering.FINISH[piece.finish]
                if rest := piece.text:
                    telemetry.text()
                # The last of the output is inspected with the end of the session.
                while len(rest) > MAX_INSPECTED or (rest and piece.finish is None):
                    part, rest = rest[:MAX_INSPECTED], rest[MAX_INSPECTED:]
                    answer = await session.inspect(part)
                    if isinstance(answer, guard_pb2.Cut):
                        course.finish = content_pb2.FINISH_REASON_CONTENT
                        await session.finish(course.usage, course.finish)
                        raise _cut(answer)
                    if (chunk := course.release(answer)) is not None:
                        yield chunk
        if course.finish == content_pb2.FINISH_REASON_UNSPECIFIED:
            raise errors.BackendUnavailable("the backend ended without saying why")
        closed = await session.finish(course.usage, course.finish, rest)
        if isinstance(closed, guard_pb2.Cut):
            course.finish = content_pb2.FINISH_REASON_CONTENT
            raise _cut(closed)
        course.verdict = self._verified(call, closed.verdict)
        if (chunk := course.release(closed.released)) is not None:
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

    async def _authorise(self, call: Call, course: Course, seconds: float) -> record_pb2.Record:
        record = evidence.beginning(call, course)
        record.lease.FromTimedelta(dt.timedelta(seconds=seconds + LEASE_MARGIN_SECONDS))
        await self._audit.append([record])
        call.recorded = True
        return record

    async def _end(
        self,
        call: Call,
        course: Course,
        session: GuardSession,
        authorised: asyncio.Task[record_pb2.Record],
        error: errors.Error | None,
    ) -> audit_pb2.Appended:
        """Settle what an authorised call used, end its session and record its end.

        Raises AuditUnavailable where the record waits, so that a call without it never ends well, and where the call
        was never authorised.
        """
        if isinstance(error, errors.GuardUnavailable):
            session.close()
        else:
            cancelled = isinstance(error, errors.Cancelled | errors.DeadlineExceeded)
            await session.leave(
                course.usage,
                content_pb2.FINISH_REASON_CANCELLED if cancelled else content_pb2.FINISH_REASON_ERROR,
            )
        return await self._audit.conclude(evidence.ending(call, course, await authorised, error))


def _cut(cut: guard_pb2.Cut) -> StreamCut:
    public = "; ".join(item.message for item in cut.reasons if item.public)
    return StreamCut(public or "the answer was cut by policy", kind=cut.finding.kind)

"""The model server's side of a guard session: one stream for one inference call, in lockstep.

Every step has a deadline, and whatever is not the one answer that the contract allows is GuardUnavailable.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Literal, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from bastide.policy_guard.v1 import guard_pb2, guard_pb2_grpc
from bastide.types.v1 import content_pb2
from shared.errors import AlreadyExists, Error, GuardUnavailable, ResourceExhausted
from shared.guard import TooManyFindings
from shared.rpc.channel import Channel, outgoing
from shared.rpc.status import peer_failure

Answer = guard_pb2.Released | guard_pb2.Cut
A = TypeVar("A", bound=Message)

log = structlog.get_logger()


class BudgetExhausted(ResourceExhausted):
    """The guard would not reserve the call's tokens."""

    reason = "BUDGET_EXHAUSTED"


class RepeatedRequest(AlreadyExists):
    """The principal used this request_id within a day."""

    reason = "REQUEST_ID_REPEATED"


class GuardSession:
    """One open session. Callers MUST `close` it; leaving it before `finish` settles the whole reservation."""

    def __init__(self, channel: Channel, *, timeout: float, lifetime: float) -> None:
        """Open the stream for at most `lifetime` seconds; each step gets `timeout`."""
        stub: guard_pb2_grpc.GuardServiceAsyncStub = guard_pb2_grpc.GuardServiceStub(channel.get())
        self._stream = stub.GuardInference(timeout=lifetime, metadata=outgoing())
        self._timeout = timeout
        self._finished = False

    async def open(self, opening: guard_pb2.OpenSession) -> guard_pb2.Decided:
        """Return the decision, which the caller MUST verify."""
        answer = await self._step(guard_pb2.GuardInferenceRequest(open=opening), "decided")
        return answer.decided

    async def reserve(self, *, prompt_tokens: int, max_new_tokens: int, lease: float) -> int:
        """Return the cap on new tokens. Raises BudgetExhausted."""
        step = guard_pb2.Reserve(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens)
        step.lease.FromTimedelta(dt.timedelta(seconds=lease))
        answer = await self._step(guard_pb2.GuardInferenceRequest(reserve=step), "reserved")
        if not 1 <= answer.reserved.max_new_tokens <= max_new_tokens:
            raise GuardUnavailable("the guard reserved something else")
        return answer.reserved.max_new_tokens

    async def inspect(self, text: str) -> Answer:
        """Return what of the output so far may go out, or that the stream must end."""
        answer = await self._step(
            guard_pb2.GuardInferenceRequest(output=guard_pb2.Output(text=text)), "released", "cut"
        )
        return answer.cut if answer.HasField("cut") else answer.released

    async def finish(
        self, usage: content_pb2.Usage, reason: content_pb2.FinishReason.ValueType, text: str = ""
    ) -> guard_pb2.Closed | guard_pb2.Cut:
        """Settle the budget and return the final verdict with the rest, `text` inspected, or a cut."""
        self._finished = True
        step = guard_pb2.GuardInferenceRequest(finish=guard_pb2.Finish(usage=usage, finish_reason=reason, text=text))
        answer = await self._step(step, "closed", "cut")
        return answer.cut if answer.HasField("cut") else answer.closed

    async def leave(self, usage: content_pb2.Usage, reason: content_pb2.FinishReason.ValueType) -> None:
        """Settle what was used, unless that is done or the guard does not answer, and end the stream."""
        try:
            if not self._finished:
                await self.finish(usage, reason)
        except Error as error:
            log.warning("session_left_unsettled", reason=error.reason)
        finally:
            self.close()

    def close(self) -> None:
        """End the stream, whatever its state. Idempotent."""
        self._stream.cancel()

    async def _step(
        self,
        request: guard_pb2.GuardInferenceRequest,
        *expected: Literal["decided", "reserved", "released", "cut", "closed"],
    ) -> guard_pb2.GuardInferenceResponse:
        try:
            async with asyncio.timeout(self._timeout):
                await self._stream.write(request)
                answer = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except (TimeoutError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise GuardUnavailable("the policy guard did not answer") from None
        if not isinstance(answer, guard_pb2.GuardInferenceResponse) or answer.WhichOneof("step") not in expected:
            raise GuardUnavailable("the policy guard answered something else")
        return answer


def _translated(error: grpc.aio.AioRpcError) -> Error:
    """Tell a refusal that the caller may know (budget, prompt) from all else, which is the guard's failure."""
    reason, delay = peer_failure(error)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason == BudgetExhausted.reason:
        return BudgetExhausted("the budget for this call is used up", retry_after=delay or 1.0)
    if error.code() is grpc.StatusCode.ALREADY_EXISTS and reason == RepeatedRequest.reason:
        return RepeatedRequest("this request_id was used before")
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT and reason == TooManyFindings.reason:
        return TooManyFindings(field="call.messages")
    return GuardUnavailable("the policy guard did not answer")

"""The other services' side of the guard: asking for decisions, and believing only those that verify.

Everything here fails closed: whatever is not one signed, current decision about this very call is GuardUnavailable.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterable, Sized

import grpc
import stamina
from google.protobuf.message import DecodeError

from bastide.policy_guard.v1 import guard_pb2, guard_pb2_grpc
from bastide.types.v1 import content_pb2, decision_pb2, principal_pb2
from shared.errors import GuardUnavailable, InvalidArgument
from shared.rpc.call import Call, Judgement
from shared.rpc.channel import Channel, outgoing
from shared.statements import Signature, StatementRefused, TrustRoot, verify_bytes
from shared.statements.dsse import encode_base64
from shared.transparency.commitment import verify_commitment
from shared.transparency.errors import Unverified

DECISION_TYPE = "application/vnd.bastide.decision.v1+protobuf"
GUARD = "policy-guard"
DECISION_KEY = "decision"
MAX_PROMPT_BYTES = 1024 * 1024
MAX_FINDINGS = 4096
"""In one prompt. More are a list of data and no question; each costs time in which the guard answers nobody."""
_SKEW = dt.timedelta(seconds=5)


def check_prompt(messages: Iterable[content_pb2.Message], *, field: str) -> None:
    """Refuse a conversation of more than `MAX_PROMPT_BYTES`, which one field's rule cannot. Raises InvalidArgument."""
    if sum(len(message.content.encode()) for message in messages) > MAX_PROMPT_BYTES:
        raise InvalidArgument(f"{field}: together at most {MAX_PROMPT_BYTES} bytes", field=field)


class TooManyFindings(InvalidArgument):
    """A prompt, or a text to inspect, has more findings than are dealt with in one call."""

    reason = "TOO_MANY_FINDINGS"

    def __init__(self, *, field: str) -> None:
        """Name the field that holds them."""
        super().__init__(f"{field}: at most {MAX_FINDINGS} findings", field=field)


def check_findings(found: Iterable[Sized], *, field: str) -> None:
    """Refuse texts with more than `MAX_FINDINGS` findings. Raises TooManyFindings."""
    if sum(map(len, found)) > MAX_FINDINGS:
        raise TooManyFindings(field=field)


class DecisionVerifier:
    """Verifies the guard's decisions for one service."""

    def __init__(
        self, trust: TrustRoot, *, audience: str, clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    ) -> None:
        """Believe the decision keys that `trust` lists for the guard, in decisions made for `audience` (SPIFFE id)."""
        self._trust = trust
        self._audience = audience
        self._clock = clock

    def verify(
        self,
        signed: decision_pb2.SignedDecision,
        opening: decision_pb2.DecisionOpening,
        *,
        method: str,
        action: str,
        subject: str,
    ) -> Judgement:
        """Return the judgement on `subject` calling `method` for `action`. Raises GuardUnavailable for any doubt."""
        now = self._clock()
        try:
            signature = Signature(keyid=signed.key_id, sig=encode_base64(signed.signature))
            verify_bytes(
                DECISION_TYPE, signed.decision, signature, self._trust, service=GUARD, kind=DECISION_KEY, at=now
            )
            decision = decision_pb2.Decision.FromString(signed.decision)
            verify_commitment(decision.input_commitment, opening.policy_input, opening.salt)
            verify_commitment(decision.subject_commitment, subject.encode(), opening.salt)
        except (StatementRefused, Unverified, DecodeError, ValueError):
            raise GuardUnavailable("the guard's decision does not verify") from None
        expected = (method, action, self._audience, subject)
        found = (decision.method, decision.action, decision.audience, opening.principal.subject)
        current = decision.decided_at.ToDatetime(dt.UTC) <= now + _SKEW and decision.expires_at.ToDatetime(dt.UTC) > now
        known = decision.effect in (decision_pb2.EFFECT_ALLOW, decision_pb2.EFFECT_DENY)
        if not (expected == found and current and known and decision.decision_id):
            raise GuardUnavailable("the guard's decision is not about this call")
        return Judgement(decision=decision, signed=signed, opening=opening)


class GuardClient:
    """Asks the guard over mutual TLS. A decision has no effect, so a lost question is asked again."""

    def __init__(self, channel: Channel, verifier: DecisionVerifier, *, timeout: float) -> None:
        """Give each question `timeout` seconds in all."""
        self._channel = channel
        self._verifier = verifier
        self._timeout = timeout

    async def check(self, call: Call, resource: guard_pb2.Resource) -> Judgement:
        """Return the decision on `call`; see `shared.rpc.layers.AccessGuard`."""
        request = guard_pb2.CheckAccessRequest(
            token=call.token or "",
            workload=principal_pb2.Workload(
                spiffe_id=call.caller.spiffe_id, certificate_sha256=call.caller.certificate_sha256
            ),
            method=call.method,
            action=call.row.action,
            mfa=call.row.mfa,
            resource=resource,
        )
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._ask(request)
        except (grpc.aio.AioRpcError, TimeoutError):
            raise GuardUnavailable("the policy guard did not decide") from None
        if not isinstance(response, guard_pb2.CheckAccessResponse):  # what cannot be parsed arrives as None
            raise GuardUnavailable("the policy guard answered something else")
        return self._verifier.verify(
            response.decision,
            response.opening,
            method=call.method,
            action=call.row.action,
            subject=call.person.subject,
        )

    async def _ask(self, request: guard_pb2.CheckAccessRequest) -> guard_pb2.CheckAccessResponse:
        def transient(error: Exception) -> bool:
            return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE

        async for attempt in stamina.retry_context(
            on=transient, attempts=3, timeout=self._timeout, wait_initial=0.05, wait_max=0.5, wait_jitter=0.1
        ):
            with attempt:
                stub: guard_pb2_grpc.GuardServiceAsyncStub = guard_pb2_grpc.GuardServiceStub(self._channel.get())
                return await stub.CheckAccess(request, timeout=self._timeout, metadata=outgoing())
        raise AssertionError("unreachable: the last attempt raises")

"""Decisions as messages: a policy result, bound to one call and one asking service, and signed."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import rfc8785
from prometheus_client import Counter

from bastide.types.v1 import content_pb2, decision_pb2
from services.policy_guard.result import InferenceObligations, PolicyResult
from shared.audit import principal_message
from shared.errors import GuardUnavailable
from shared.guard import DECISION_TYPE
from shared.identity.principal import Principal
from shared.keys import SigningKey
from shared.rpc.call import Judgement
from shared.statements import sign_bytes
from shared.statements.dsse import decode_base64
from shared.transparency.commitment import commit, new_salt

LIFETIME = dt.timedelta(seconds=30)
MAX_INPUT_BYTES = 16 * 1024


DECISIONS = Counter("bastide_decisions_total", "Decisions of policy.", ["action", "effect"])


class DecisionSigner:
    """Signs what policy decided. The only place in the suite where an allow comes from."""

    def __init__(self, key: SigningKey, *, clock: Callable[[], dt.datetime]) -> None:
        """Sign with the guard's decision key."""
        self._key = key
        self._clock = clock

    def sign(
        self, result: PolicyResult, *, policy_input: dict[str, Any], principal: Principal, method: str, audience: str
    ) -> Judgement:
        """Return `result` as a signed decision for `audience` (SPIFFE id) about `principal` calling `method`.

        Raises GuardUnavailable when the input is larger than a record can keep.
        """
        facts = rfc8785.dumps(policy_input)
        if len(facts) > MAX_INPUT_BYTES:
            raise GuardUnavailable("the policy input is too large to be recorded")
        salt = new_salt()
        now = self._clock()
        decision = decision_pb2.Decision(
            decision_id=str(uuid.uuid4()),
            effect=decision_pb2.EFFECT_ALLOW if result.allowed else decision_pb2.EFFECT_DENY,
            reasons=[
                decision_pb2.Reason(code=item.code, message=item.message, public=item.public) for item in result.reasons
            ],
            obligations=_obligations(result),
            limits=[
                decision_pb2.BudgetLimit(
                    scope=decision_pb2.BudgetScope.Value(f"BUDGET_SCOPE_{item.scope}"),
                    unit=decision_pb2.BudgetUnit.Value(f"BUDGET_UNIT_{item.unit}"),
                    limit=item.limit,
                )
                for item in result.limits
            ],
            policy_revision=result.revision,
            action=policy_input["action"],
            method=method,
            audience=audience,
            input_commitment=commit(facts, salt),
            subject_commitment=commit(principal.subject.encode(), salt),
        )
        for limit, item in zip(decision.limits, result.limits, strict=True):
            limit.window.FromSeconds(item.window_seconds)
        decision.decided_at.FromDatetime(now)
        decision.expires_at.FromDatetime(now + LIFETIME)
        DECISIONS.labels(decision.action, decision_pb2.Effect.Name(decision.effect).removeprefix("EFFECT_")).inc()
        opening = decision_pb2.DecisionOpening(salt=salt, policy_input=facts, principal=principal_message(principal))
        return Judgement(decision=decision, signed=self._signed(decision), opening=opening)

    def verdict(
        self, of: decision_pb2.Decision, *, effect: decision_pb2.Effect.ValueType, reasons: list[decision_pb2.Reason]
    ) -> decision_pb2.SignedDecision:
        """Return the signed final word on the output of the call that `of` allowed: same id, no obligations."""
        verdict = decision_pb2.Decision(
            decision_id=of.decision_id,
            effect=effect,
            reasons=reasons,
            policy_revision=of.policy_revision,
            action=of.action,
            method=of.method,
            audience=of.audience,
            input_commitment=of.input_commitment,
            subject_commitment=of.subject_commitment,
        )
        now = self._clock()
        verdict.decided_at.FromDatetime(now)
        verdict.expires_at.FromDatetime(now + LIFETIME)
        return self._signed(verdict)

    def _signed(self, decision: decision_pb2.Decision) -> decision_pb2.SignedDecision:
        payload = decision.SerializeToString(deterministic=True)
        signature = sign_bytes(DECISION_TYPE, payload, self._key)
        return decision_pb2.SignedDecision(
            decision=payload, key_id=signature.keyid, signature=decode_base64(signature.sig)
        )


def _obligations(result: PolicyResult) -> decision_pb2.Obligations | None:
    duties = result.obligations
    if not isinstance(duties, InferenceObligations):
        return None
    return decision_pb2.Obligations(
        input_actions={kind: _action(action) for kind, action in duties.input_actions.items()},
        output_actions={kind: _action(action) for kind, action in duties.output_actions.items()},
        release=decision_pb2.ReleaseMode.Value(f"RELEASE_MODE_{duties.release}"),
        max_new_tokens=duties.max_new_tokens,
        disclosure=duties.disclosure,
        retain_text=duties.retain_text,
        restore_surrogates=duties.restore_surrogates,
    )


def _action(action: str) -> content_pb2.ContentAction.ValueType:
    return content_pb2.ContentAction.Value(f"CONTENT_ACTION_{action}")

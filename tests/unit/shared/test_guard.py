"""A decision is believed about the one call that it was made for, and about nothing else."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from bastide.types.v1 import decision_pb2
from services.policy_guard.decisions import LIFETIME, DecisionSigner
from services.policy_guard.result import Effect, PolicyResult, Reason
from shared.errors import GuardUnavailable
from shared.guard import DecisionVerifier
from shared.identity.principal import Kind, Principal, Workload
from shared.keys import SigningKey
from shared.rpc.call import Judgement
from shared.statements import TrustedKey, TrustRoot

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
AUDIENCE = "spiffe://bastide.local/model-server"
METHOD, ACTION, ADA = "/bastide.model_server.v1.CatalogService/CreateRelease", "release.create", "ada@example.org"


def new_key() -> SigningKey:
    return SigningKey(name="policy-guard/decision", _private=ed25519.Ed25519PrivateKey.generate())


KEY = new_key()
TRUST = TrustRoot(keys=(TrustedKey.of(KEY, service="policy-guard", kind="decision"),))


def principal(subject: str) -> Principal:
    workload = Workload(spiffe_id="spiffe://bastide.local/client/cli", certificate_sha256=bytes(32))
    return Principal(
        subject=subject, kind=Kind.PERSON, tenant="default", roles=("administrator",), amr=(), authenticated_at=NOW,
        workload=workload,
    )  # fmt: skip


def decided(
    *,
    key: SigningKey = KEY,
    at: dt.datetime = NOW,
    subject: str = ADA,
    method: str = METHOD,
    action: str = ACTION,
    audience: str = AUDIENCE,
    effect: Effect = Effect.ALLOW,
) -> Judgement:
    """Return what the guard really signs."""
    reason = Reason(code="ALLOWED", message="It is allowed.", public=True)
    result = PolicyResult(effect=effect, reasons=(reason,), obligations=None, limits=(), revision="sha256:" + "0" * 64)
    return DecisionSigner(key, clock=lambda: at).sign(
        result, policy_input={"action": action}, principal=principal(subject), method=method, audience=audience
    )


def believed(found: Judgement) -> Judgement:
    verifier = DecisionVerifier(TRUST, audience=AUDIENCE, clock=lambda: NOW)
    return verifier.verify(found.signed, found.opening, method=METHOD, action=ACTION, subject=ADA)


@pytest.mark.parametrize("effect", list(Effect))
def test_the_decision_on_this_very_call_is_believed(effect: Effect) -> None:
    assert believed(decided(effect=effect)).allowed is (effect is Effect.ALLOW)


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "bob@example.org"},
        {"subject": ""},
        {"method": METHOD + "2"},
        {"action": "release.rollback"},
        {"audience": "spiffe://bastide.local/audit"},
        {"at": NOW - LIFETIME},
        {"at": NOW + dt.timedelta(seconds=6)},
        {"key": new_key()},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_genuine_decision_about_anything_else_is_not(other: dict[str, Any]) -> None:
    with pytest.raises(GuardUnavailable):
        believed(decided(**other))


@pytest.mark.parametrize("seconds", [5, 0, -29])
def test_clocks_may_differ_a_little_and_a_decision_lives_for_a_while(seconds: int) -> None:
    assert believed(decided(at=NOW + dt.timedelta(seconds=seconds))).allowed


@pytest.mark.parametrize("part", ["policy_input", "salt", "principal"])
def test_an_opening_of_another_decision_does_not_fit(part: str) -> None:
    mine, other = decided(), decided(subject="bob@example.org", action="release.rollback")
    opening = decision_pb2.DecisionOpening()
    opening.CopyFrom(mine.opening)
    if part == "principal":
        opening.principal.CopyFrom(other.opening.principal)
    else:
        setattr(opening, part, getattr(other.opening, part))
    with pytest.raises(GuardUnavailable):
        believed(Judgement(decision=mine.decision, signed=mine.signed, opening=opening))


def test_another_persons_decision_does_not_become_mine_by_its_opening() -> None:
    other = decided(subject="bob@example.org")
    opening = decision_pb2.DecisionOpening()
    opening.CopyFrom(other.opening)
    opening.principal.subject = ADA
    with pytest.raises(GuardUnavailable):
        believed(Judgement(decision=other.decision, signed=other.signed, opening=opening))


@pytest.mark.parametrize(
    "change",
    [
        {"effect": decision_pb2.EFFECT_UNSPECIFIED},
        {"effect": 7},
        {"decision_id": ""},
    ],
    ids=str,
)
def test_a_signed_decision_that_decides_nothing_is_not_believed(change: dict[str, Any]) -> None:
    mine = decided()
    for name, value in change.items():
        setattr(mine.decision, name, value)
    signed = DecisionSigner(KEY, clock=lambda: NOW)._signed(mine.decision)
    with pytest.raises(GuardUnavailable):
        believed(Judgement(decision=mine.decision, signed=signed, opening=mine.opening))


def test_every_flipped_byte_of_a_signed_decision_is_refused() -> None:
    mine = decided()
    for field in ("decision", "signature"):
        content = bytearray(getattr(mine.signed, field))
        for position in range(len(content)):
            changed = decision_pb2.SignedDecision()
            changed.CopyFrom(mine.signed)
            content[position] ^= 1
            setattr(changed, field, bytes(content))
            content[position] ^= 1
            with pytest.raises(GuardUnavailable):
                believed(Judgement(decision=mine.decision, signed=changed, opening=mine.opening))

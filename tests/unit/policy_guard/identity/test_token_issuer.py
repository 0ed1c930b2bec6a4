"""What is issued here, the rest of the suite's verifier accepts, and nothing near it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from services.policy_guard.sign_in import SignedIn
from services.policy_guard.token_issuer import TokenIssuer
from shared.errors import Unauthenticated
from shared.identity.issuers import IssuerSettings
from shared.identity.principal import Kind, Workload
from shared.identity.tokens import TokenVerifier
from shared.keys import SigningKey
from tests.unit.policy_guard.clock import Clock

ISSUER, AUDIENCE = "https://bastide.local/identity", "bastide"
LAPTOP = Workload(spiffe_id="spiffe://bastide.local/client/laptop", certificate_sha256=hashlib.sha256(b"1").digest())
OTHER = Workload(spiffe_id="spiffe://bastide.local/client/other", certificate_sha256=hashlib.sha256(b"2").digest())

Verify = Callable[[TokenIssuer], TokenVerifier]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "identity.pem", name="policy-guard/identity")


@pytest.fixture
def issuer(key: SigningKey, clock: Clock) -> TokenIssuer:
    return make(key, clock)


def make(key: SigningKey, clock: Clock, **previous: object) -> TokenIssuer:
    lifetime = dt.timedelta(minutes=15)
    return TokenIssuer(key, issuer=ISSUER, audience=AUDIENCE, lifetime=lifetime, clock=clock, **previous)  # type: ignore[arg-type]


@pytest.fixture
def verifier_of(tmp_path: Path, clock: Clock) -> Verify:
    def verifier(issuer: TokenIssuer) -> TokenVerifier:
        (tmp_path / "jwks.json").write_text(issuer.jwks())
        settings = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=tmp_path / "jwks.json")
        return TokenVerifier([settings], clock=lambda: clock().timestamp())

    return verifier


def person(clock: Clock, *amr: str) -> SignedIn:
    return SignedIn(
        subject="ada@example.org", tenant="acme", roles=("user", "auditor"), amr=amr, authenticated_at=clock()
    )


async def test_a_persons_token_verifies(issuer: TokenIssuer, clock: Clock, verifier_of: Verify) -> None:
    issued = issuer.issue_to_person(person(clock, "pwd", "otp", "mfa"), LAPTOP)
    principal = await verifier_of(issuer).verify(issued.token, LAPTOP)
    assert (principal.subject, principal.kind, principal.tenant) == ("ada@example.org", Kind.PERSON, "acme")
    assert (principal.roles, principal.amr) == (("user", "auditor"), ("pwd", "otp", "mfa"))
    assert principal.authenticated_at == clock()
    assert issued.expires_at == clock() + dt.timedelta(minutes=15)
    assert issued.token not in repr(issued)


async def test_a_workloads_token_verifies_and_carries_no_factors(issuer: TokenIssuer, verifier_of: Verify) -> None:
    issued = issuer.issue_to_workload(LAPTOP, tenant="acme", roles=["user"])
    principal = await verifier_of(issuer).verify(issued.token, LAPTOP)
    assert (principal.subject, principal.kind) == (LAPTOP.spiffe_id, Kind.WORKLOAD)
    assert (principal.tenant, principal.roles) == ("acme", ("user",))
    assert (principal.amr, principal.authenticated_at) == ((), None)


async def test_a_token_is_bound_to_the_certificate(issuer: TokenIssuer, clock: Clock, verifier_of: Verify) -> None:
    verifier = verifier_of(issuer)
    for issued in (
        issuer.issue_to_person(person(clock, "pwd"), LAPTOP),
        issuer.issue_to_workload(LAPTOP, tenant="acme", roles=[]),
    ):
        with pytest.raises(Unauthenticated):
            await verifier.verify(issued.token, OTHER)


async def test_a_token_dies_after_its_lifetime(issuer: TokenIssuer, clock: Clock, verifier_of: Verify) -> None:
    issued = issuer.issue_to_person(person(clock, "pwd"), LAPTOP)
    verifier = verifier_of(issuer)
    clock.advance(minutes=14, seconds=59)
    await verifier.verify(issued.token, LAPTOP)
    clock.advance(seconds=6)
    with pytest.raises(Unauthenticated):
        await verifier.verify(issued.token, LAPTOP)


def test_claims_are_the_documented_ones(issuer: TokenIssuer, key: SigningKey, clock: Clock) -> None:
    tokens = [issuer.issue_to_person(person(clock, "pwd"), LAPTOP).token for _ in range(2)]
    first, second = (jwt.decode(token, options={"verify_signature": False}) for token in tokens)
    assert jwt.get_unverified_header(tokens[0]) == {"alg": "EdDSA", "kid": key.key_id, "typ": "JWT"}
    assert set(first) == {
        "iss", "aud", "sub", "iat", "nbf", "exp", "jti", "tenant", "roles", "cnf", "amr", "auth_time",
    }  # fmt: skip
    assert first["jti"] != second["jti"]
    workload = issuer.issue_to_workload(LAPTOP, tenant="acme", roles=[]).token
    assert not {"amr", "auth_time"} & set(jwt.decode(workload, options={"verify_signature": False}))


def test_keys_are_published_without_their_private_half(issuer: TokenIssuer, key: SigningKey) -> None:
    (published,) = json.loads(issuer.jwks())["keys"]
    assert set(published) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert (published["kid"], published["alg"], published["use"]) == (key.key_id, "EdDSA", "sig")


async def test_tokens_of_the_previous_key_verify_until_it_is_withdrawn(
    issuer: TokenIssuer, key: SigningKey, clock: Clock, verifier_of: Verify, tmp_path: Path
) -> None:
    old = issuer.issue_to_person(person(clock, "pwd"), LAPTOP).token
    newer = SigningKey.create(tmp_path / "new.pem", name="policy-guard/identity")
    rotated = make(newer, clock, previous={key.key_id: key.public_key})
    new = rotated.issue_to_person(person(clock, "pwd"), LAPTOP).token
    verifier = verifier_of(rotated)
    await verifier.verify(old, LAPTOP)
    await verifier.verify(new, LAPTOP)
    verifier = verifier_of(make(newer, clock))
    await verifier.verify(new, LAPTOP)
    with pytest.raises(Unauthenticated):
        await verifier.verify(old, LAPTOP)


async def test_a_token_signed_by_an_unpublished_key_under_a_published_id_is_refused(
    issuer: TokenIssuer, clock: Clock, verifier_of: Verify, tmp_path: Path
) -> None:
    verifier = verifier_of(issuer)
    forger = make(SigningKey.create(tmp_path / "forged.pem", name="policy-guard/identity"), clock)
    header, _, _ = issuer.issue_to_person(person(clock, "pwd"), LAPTOP).token.split(".")
    _, payload, signature = forger.issue_to_person(person(clock, "pwd"), LAPTOP).token.split(".")
    with pytest.raises(Unauthenticated):
        await verifier.verify(f"{header}.{payload}.{signature}", LAPTOP)

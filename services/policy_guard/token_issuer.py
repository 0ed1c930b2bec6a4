"""Issues bearer tokens: JWTs (RFC 7519) signed with Ed25519 (RFC 8037), bound to a certificate (RFC 8705).

`shared.identity.tokens` verifies them.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm

from services.policy_guard.sign_in import SignedIn
from shared.identity.jwks import key_set
from shared.identity.principal import Workload
from shared.identity.tokens import thumbprint
from shared.keys import SigningKey


@dataclass(frozen=True, kw_only=True)
class IssuedToken:
    """A bearer token, which is a secret, and when it dies."""

    token: str = field(repr=False)
    expires_at: dt.datetime


class TokenIssuer:
    """Signs tokens with one key and publishes the keys that verify them."""

    def __init__(
        self,
        key: SigningKey,
        *,
        issuer: str,
        audience: str,
        lifetime: dt.timedelta,
        clock: Callable[[], dt.datetime],
        previous: Mapping[str, Ed25519PublicKey] | None = None,
    ) -> None:
        """Sign with `key`; `previous` keys, by id, are still published until their last token has died."""
        self.issuer = issuer
        self.audience = audience
        self._key = key
        self._published = {key.key_id: key.public_key, **(previous or {})}
        self._lifetime = lifetime
        self._clock = clock
        self._jws = jwt.PyJWS(algorithms=[])
        self._jws.register_algorithm("EdDSA", _HeldKey())

    def issue_to_person(self, person: SignedIn, workload: Workload) -> IssuedToken:
        """Return a token for who signed in, usable only over connections of `workload`'s certificate."""
        proof = {"amr": list(person.amr), "auth_time": int(person.authenticated_at.timestamp())}
        return self._issue(person.subject, person.tenant, person.roles, workload, proof)

    def issue_to_workload(self, workload: Workload, *, tenant: str, roles: Sequence[str]) -> IssuedToken:
        """Return a token for a backend itself, without `amr`. Callers MUST have checked that it is registered."""
        return self._issue(workload.spiffe_id, tenant, roles, workload, {})

    def jwks(self) -> str:
        """Return the JWK Set (RFC 7517) of the public keys."""
        return key_set(self._published)

    def _issue(
        self, subject: str, tenant: str, roles: Sequence[str], workload: Workload, proof: dict[str, Any]
    ) -> IssuedToken:
        issued = int(self._clock().timestamp())
        expires = issued + int(self._lifetime.total_seconds())
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "iat": issued,
            "nbf": issued,
            "exp": expires,
            "jti": str(uuid.uuid4()),
            "tenant": tenant,
            "roles": list(roles),
            "cnf": {"x5t#S256": thumbprint(workload.certificate_sha256)},
            **proof,
        }
        payload = json.dumps(claims, separators=(",", ":")).encode()
        token = self._jws.encode(payload, self._key, algorithm="EdDSA", headers={"kid": self._key.key_id})  # type: ignore[arg-type]
        return IssuedToken(token=token, expires_at=dt.datetime.fromtimestamp(expires, dt.UTC))


class _HeldKey(OKPAlgorithm):
    """EdDSA with a key that signs but does not show itself."""

    def prepare_key(self, key: Any) -> Any:
        if not isinstance(key, SigningKey):
            raise jwt.InvalidKeyError("not a signing key")
        return key

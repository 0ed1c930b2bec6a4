"""Bearer tokens: JWTs verified against JSON Web Key Sets (RFC 7519, 7517, 8725), bound to certificates (RFC 8705)."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import jwt
import pydantic
from cachetools import LRUCache

from shared.errors import Unauthenticated
from shared.identity.issuers import IssuerKeys, IssuerSettings
from shared.identity.principal import Kind, Principal, Workload

MAX_TOKEN_BYTES = 8192
_REMEMBERED = 4096
_ASYMMETRIC = ("EdDSA", "ES256", "ES384", "RS256", "PS256")

# OpenID Connect Core, section 2: a `sub` has at most 255 characters. Control characters are in no name.
_Text = Annotated[str, pydantic.Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
# RFC 7519 NumericDate; the end of year 9999.
_Date = Annotated[float, pydantic.Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]


class _Confirmation(pydantic.BaseModel):
    """RFC 7800 with RFC 8705's `x5t#S256`: a token that is bound some other way is refused, for nobody would ask."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="forbid")

    thumbprint: str = pydantic.Field(alias="x5t#S256")


class _Claims(pydantic.BaseModel):
    """The claims that count here, each of exactly its type."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True)

    sub: _Text
    tenant: _Text
    exp: _Date
    iat: _Date
    nbf: _Date = 0.0
    auth_time: _Date | None = None
    roles: list[_Text] = []
    amr: list[_Text] = []
    cnf: _Confirmation | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Signed:
    """Claims whose signature, issuer and audience were verified with `key`."""

    claims: _Claims
    settings: IssuerSettings
    keys: IssuerKeys
    key_id: str
    key: jwt.PyJWK


class TokenVerifier:
    """Verifies bearer tokens of the configured issuers."""

    def __init__(self, issuers: Sequence[IssuerSettings], *, clock: Callable[[], float] = time.time) -> None:
        """Trust `issuers`, told apart by `iss`."""
        self._issuers: Mapping[str, tuple[IssuerSettings, IssuerKeys]] = {
            item.issuer: (item, IssuerKeys(item, clock)) for item in issuers
        }
        self._clock = clock
        # A signature that verified goes on verifying under the same key: everything else is judged at every call.
        self._signed: LRUCache[bytes, _Signed] = LRUCache(_REMEMBERED)

    async def verify(self, token: str, workload: Workload) -> Principal:
        """Return the principal that `token` proves for a caller connected as `workload`.

        Raises Unauthenticated for any doubt, with one message for all of them, and Unavailable when the issuer's keys
        cannot be had.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("the token is not valid")
        try:
            signed = await self._signed_claims(token)
            return self._principal(signed.claims, workload, bound=signed.settings.bound)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            raise Unauthenticated("the token is not valid") from None

    async def _signed_claims(self, token: str) -> _Signed:
        digest = hashlib.sha256(token.encode()).digest()
        signed = self._signed.get(digest)
        if signed is None or await signed.keys.key(signed.key_id) is not signed.key:
            signed = self._signed[digest] = await self._verify_signature(token)
        claims, leeway, now = signed.claims, signed.settings.leeway_seconds, self._clock()
        if not (claims.exp > now - leeway and claims.iat <= now + leeway and claims.nbf <= now + leeway):
            raise ValueError("time")
        return signed

    async def _verify_signature(self, token: str) -> _Signed:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in _ASYMMETRIC or not isinstance(header.get("kid"), str):
            raise ValueError("algorithm")
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        settings, keys = self._issuers[str(issuer)]
        key_id = header["kid"]
        key = await keys.key(key_id)
        # PyJWT reads the system clock; expiry is judged below against the injected one.
        claims = jwt.decode(
            token,
            key=key,
            algorithms=list(settings.algorithms),
            audience=settings.audience,
            issuer=settings.issuer,
            options={"require": ["exp", "iat", "iss", "aud", "sub"], "verify_exp": False, "verify_iat": False,
                     "verify_nbf": False},
        )  # fmt: skip
        return _Signed(claims=_Claims.model_validate(claims), settings=settings, keys=keys, key_id=key_id, key=key)

    @staticmethod
    def _principal(claims: _Claims, workload: Workload, *, bound: bool) -> Principal:
        if claims.cnf is None:
            if bound:
                raise ValueError("not bound")
        elif not hmac.compare_digest(_unpad(claims.cnf.thumbprint), workload.certificate_sha256):
            raise ValueError("bound to another certificate")
        kind = Kind.WORKLOAD if claims.sub.startswith("spiffe://") else Kind.PERSON
        if kind is Kind.WORKLOAD and claims.sub != workload.spiffe_id:
            raise ValueError("workload token of another workload")
        at = claims.auth_time
        return Principal(
            subject=claims.sub,
            kind=kind,
            tenant=claims.tenant,
            roles=tuple(claims.roles),
            amr=tuple(claims.amr),
            authenticated_at=None if at is None else dt.datetime.fromtimestamp(at, dt.UTC),
            workload=workload,
        )


def thumbprint(certificate_sha256: bytes) -> str:
    """Return the `x5t#S256` form (base64url without padding) of a certificate's SHA-256."""
    return base64.urlsafe_b64encode(certificate_sha256).rstrip(b"=").decode()


def _unpad(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

"""Bearer tokens: JWTs verified against JSON Web Key Sets (RFC 7519, 7517, 8725), bound to certificates (RFC 8705)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jwt
import pydantic
from cachetools import LRUCache

from shared.config import Settings
from shared.errors import Unauthenticated, Unavailable
from shared.identity.principal import Kind, Principal, Workload

MAX_TOKEN_BYTES = 8192
MAX_JWKS_BYTES = 256 * 1024
_REMEMBERED = 4096
_ASYMMETRIC = ("EdDSA", "ES256", "ES384", "RS256", "PS256")


class IssuerSettings(Settings):
    """One token issuer that this service trusts."""

    issuer: str = pydantic.Field(description="Value that `iss` must have.")
    audience: str = pydantic.Field(description="Value that `aud` must hold.")
    jwks_file: Path | None = pydantic.Field(default=None, description="JWK Set file; read again when it changes.")
    jwks_url: str | None = pydantic.Field(default=None, description="JWK Set URL (https); fetched when stale.")
    jwks_ca_file: Path | None = pydantic.Field(
        default=None, description="PEM bundle to verify `jwks_url` with; none: the system's."
    )
    algorithms: tuple[Literal["EdDSA", "ES256", "ES384", "RS256", "PS256"], ...] = pydantic.Field(
        default=("EdDSA",), description="Signature algorithms that are accepted; never `none`, never symmetric."
    )
    bound: bool = pydantic.Field(
        default=True, description="Refuse tokens that are not bound to the caller's certificate (`cnf.x5t#S256`)."
    )
    max_age_seconds: int = pydantic.Field(
        default=3600, ge=10, le=86400, description="How long the last good key set is used without a fresh one."
    )
    leeway_seconds: int = pydantic.Field(default=5, ge=0, le=60, description="Clock difference that is tolerated.")

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> IssuerSettings:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("exactly one of jwks_file and jwks_url is needed")
        if self.jwks_url is not None and not self.jwks_url.startswith("https://"):
            raise ValueError("jwks_url must be https")
        return self


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from the configured address or not at all: a redirect may lead to plain HTTP or anywhere."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


class _KeySet:
    """An issuer's keys, refreshed when stale or when a token names an unknown key; the last good set has an age."""

    _REFRESH_SECONDS = 30.0

    def __init__(self, settings: IssuerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._good_at = float("-inf")
        self._tried_at = float("-inf")

    def fresh(self, key_id: str) -> bool:
        """Whether `key` would answer at once."""
        return key_id in self._keys and self._clock() - self._good_at <= self._REFRESH_SECONDS

    def key(self, key_id: str) -> jwt.PyJWK:
        now = self._clock()
        if not self.fresh(key_id) and now - self._tried_at > 1.0:
            self._tried_at = now
            self._refresh(now)
        if now - self._good_at > self._settings.max_age_seconds:
            raise Unavailable("no fresh signing keys of the token issuer")
        try:
            return self._keys[key_id]
        except KeyError:
            raise Unauthenticated("the token is not valid") from None

    def _refresh(self, now: float) -> None:
        try:
            document = json.loads(self._read())
            keys = {
                item["kid"]: jwt.PyJWK.from_dict(item) for item in document["keys"] if item.get("use", "sig") == "sig"
            }
        except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError):
            # The last good set stays in use until its maximum age; `key` then refuses.
            return
        self._keys, self._good_at = keys, now

    def _read(self) -> bytes:
        if self._settings.jwks_file is not None:
            data = self._settings.jwks_file.read_bytes()
        else:
            tls = ssl.create_default_context(cafile=self._settings.jwks_ca_file)
            opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls), _NoRedirect())
            with opener.open(str(self._settings.jwks_url), timeout=2) as response:
                data = response.read(MAX_JWKS_BYTES + 1)
        if len(data) > MAX_JWKS_BYTES:
            raise ValueError("key set too large")
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Signed:
    """Claims whose signature, issuer and audience were verified with `key`."""

    claims: Mapping[str, Any]
    settings: IssuerSettings
    keys: _KeySet
    key_id: str
    key: jwt.PyJWK


class TokenVerifier:
    """Verifies bearer tokens of the configured issuers."""

    def __init__(self, issuers: Sequence[IssuerSettings], *, clock: Callable[[], float] = time.time) -> None:
        """Trust `issuers`, told apart by `iss`."""
        self._issuers: Mapping[str, tuple[IssuerSettings, _KeySet]] = {
            item.issuer: (item, _KeySet(item, clock)) for item in issuers
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
            claims = await self._claims(token)
            return self._principal(claims, workload)
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            raise Unauthenticated("the token is not valid") from None

    async def _claims(self, token: str) -> dict[str, Any]:
        digest = hashlib.sha256(token.encode()).digest()
        signed = self._signed.get(digest)
        if signed is None or not signed.keys.fresh(signed.key_id) or signed.keys.key(signed.key_id) is not signed.key:
            signed = self._signed[digest] = await self._verify_signature(token)
        claims, leeway, now = signed.claims, signed.settings.leeway_seconds, self._clock()
        expires, issued, not_before = claims["exp"], claims["iat"], claims.get("nbf", claims["iat"])
        if not (expires > now - leeway and issued <= now + leeway and not_before <= now + leeway):
            raise ValueError("time")
        return {**claims, "_bound": signed.settings.bound}

    async def _verify_signature(self, token: str) -> _Signed:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in _ASYMMETRIC or not isinstance(header.get("kid"), str):
            raise ValueError("algorithm")
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        settings, keys = self._issuers[str(issuer)]
        key_id = header["kid"]
        # Reading a key set blocks.
        key = keys.key(key_id) if keys.fresh(key_id) else await asyncio.to_thread(keys.key, key_id)
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
        return _Signed(claims=claims, settings=settings, keys=keys, key_id=key_id, key=key)

    def _principal(self, claims: dict[str, Any], workload: Workload) -> Principal:
        confirmation = claims.get("cnf", {}).get("x5t#S256")
        if confirmation is None:
            if claims["_bound"]:
                raise ValueError("not bound")
        elif not hmac.compare_digest(_unpad(confirmation), workload.certificate_sha256):
            raise ValueError("bound to another certificate")
        subject, tenant = claims["sub"], claims["tenant"]
        roles, amr = claims.get("roles", []), claims.get("amr", [])
        if not all(isinstance(item, str) and item for item in (subject, tenant, *roles, *amr)):
            raise ValueError("claims")
        kind = Kind.WORKLOAD if subject.startswith("spiffe://") else Kind.PERSON
        if kind is Kind.WORKLOAD and subject != workload.spiffe_id:
            raise ValueError("workload token of another workload")
        auth_time = claims.get("auth_time")
        return Principal(
            subject=subject,
            kind=kind,
            tenant=tenant,
            roles=tuple(roles),
            amr=tuple(amr),
            authenticated_at=None if auth_time is None else dt.datetime.fromtimestamp(auth_time, dt.UTC),
            workload=workload,
        )


def thumbprint(certificate_sha256: bytes) -> str:
    """Return the `x5t#S256` form (base64url without padding) of a certificate's SHA-256."""
    return base64.urlsafe_b64encode(certificate_sha256).rstrip(b"=").decode()


def _unpad(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

"""The issuers whose tokens are trusted, and their keys (JWK Sets, RFC 7517), which are never kept for ever."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx2
import jwt
import pydantic
import structlog

from shared.config import Settings
from shared.errors import Unauthenticated, Unavailable

MAX_JWKS_BYTES = 256 * 1024
_REFRESH_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_FETCH_SECONDS = 2.0

log = structlog.get_logger()


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


class IssuerKeys:
    """An issuer's keys, refreshed when stale or when a token names an unknown one; the last good set has an age."""

    def __init__(self, settings: IssuerSettings, clock: Callable[[], float]) -> None:
        """Fetch on first use."""
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._good_at = float("-inf")
        self._tried_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> jwt.PyJWK:
        """Return a key. Waits for one refresh at most, and for none that another call began if the key is at hand.

        Raises Unauthenticated for a key that the issuer does not have, Unavailable when its set cannot be had.
        """
        if self._due(key_id):
            at_hand = key_id in self._keys and self._usable()
            if self._refreshing is None or self._refreshing.done():
                self._refreshing, at_hand = asyncio.create_task(self._refresh()), False
            if not at_hand:
                # It ends within its own time; a caller who goes away does not take it from the others.
                await asyncio.shield(self._refreshing)
        if not self._usable():
            raise Unavailable("no fresh signing keys of the token issuer")
        try:
            return self._keys[key_id]
        except KeyError:
            raise Unauthenticated("the token is not valid") from None

    def _due(self, key_id: str) -> bool:
        now = self._clock()
        fresh = key_id in self._keys and now - self._good_at <= _REFRESH_SECONDS
        return not fresh and now - self._tried_at > _RETRY_SECONDS

    def _usable(self) -> bool:
        return self._clock() - self._good_at <= self._settings.max_age_seconds

    async def _refresh(self) -> None:
        asked_at = self._clock()
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                document = await self._read()
            keys = self._parse(document)
        except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            # The last good set stays in use until its maximum age; `key` then refuses.
            log.warning("issuer_keys_not_refreshed", issuer=self._settings.issuer, error=type(error).__name__)
        else:
            self._keys, self._good_at = keys, asked_at
        self._tried_at = self._clock()

    async def _read(self) -> bytes:
        if self._settings.jwks_file is not None:
            return _bounded(await asyncio.to_thread(self._settings.jwks_file.read_bytes))
        tls = ssl.create_default_context(cafile=self._settings.jwks_ca_file)
        # Keys come from the configured address or not at all: a redirect may lead anywhere.
        async with (
            httpx2.AsyncClient(verify=tls, follow_redirects=False, timeout=_FETCH_SECONDS) as client,
            client.stream("GET", str(self._settings.jwks_url), headers={"Accept-Encoding": "identity"}) as response,
        ):
            response.raise_for_status()
            data = b""
            async for chunk in response.aiter_raw():
                data = _bounded(data + chunk)
            return data

    def _parse(self, document: bytes) -> dict[str, jwt.PyJWK]:
        """Return the keys that are for signatures and understood; others are passed over (RFC 7517, section 5)."""
        items: list[Any] = json.loads(document)["keys"]
        keys = {}
        for item in items:
            try:
                if item.get("use", "sig") == "sig":
                    keys[str(item["kid"])] = jwt.PyJWK.from_dict(item)
            except (jwt.PyJWTError, AttributeError, KeyError, TypeError, ValueError):
                continue
        if items and not keys:
            raise ValueError("no key of the set is understood")
        return keys


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_JWKS_BYTES:
        raise ValueError("key set too large")
    return data

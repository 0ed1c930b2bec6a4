"""Second factors: time-based one-time passwords (RFC 6238), their secrets sealed at rest."""

from __future__ import annotations

import datetime as dt
import hmac
from dataclasses import dataclass, field

import pyotp

from shared.keys import KeyProvider, seal, unseal

_USE = "identity"
_PURPOSE = "totp-secret"
_NOBODY = "\nnobody"
_STEP_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class NewSecret:
    """A secret to store as `sealed` and to show once as an `otpauth://` URI."""

    sealed: bytes
    uri: str = field(repr=False)


class SecondFactors:
    """Makes secrets and checks codes. Everything blocks on the key provider: call off the loop."""

    def __init__(self, keys: KeyProvider, *, issuer: str) -> None:
        """Seal under the provider's use `identity`; authenticator apps show `issuer`. Raises `UnknownUse`."""
        self._keys = keys
        self._issuer = issuer
        self._nobodys = self._seal(_NOBODY, pyotp.random_base32())

    def create(self, subject: str) -> NewSecret:
        """Return a new secret of `subject`."""
        secret = pyotp.random_base32()
        uri = pyotp.TOTP(secret).provisioning_uri(name=subject, issuer_name=self._issuer)
        return NewSecret(sealed=self._seal(subject, secret), uri=uri)

    def match(self, subject: str, sealed: bytes | None, code: str, now: dt.datetime) -> int | None:
        """Return the time step whose code this is, the current one or a neighbour; None if it is none of them.

        Callers MUST accept a step only once (RFC 6238, 5.2). No secret, for nobody, takes as long and is None.
        Raises `DataLoss` for a secret that is not this subject's.
        """
        name, stored = (_NOBODY, self._nobodys) if sealed is None else (subject, sealed)
        secret = unseal(stored, self._keys, use=_USE, purpose=_PURPOSE, name=name).decode()
        generator = pyotp.TOTP(secret, interval=_STEP_SECONDS)
        current = int(now.timestamp()) // _STEP_SECONDS
        steps = [
            step
            for step in (current + 1, current, current - 1)
            if hmac.compare_digest(generator.generate_otp(step).encode(), code.encode(errors="replace"))
        ]
        return steps[0] if steps and sealed is not None else None

    def _seal(self, name: str, secret: str) -> bytes:
        return seal(secret.encode(), self._keys, use=_USE, purpose=_PURPOSE, name=name)

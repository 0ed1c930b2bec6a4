"""The trust root: which public key may sign which kind of statement for which service, and when."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared import errors
from shared.keys import SigningKey, files
from shared.keys.signing import key_id

_Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
_MAX_KEYS = 1024


class StatementRefused(errors.FailedPrecondition):
    """A signed statement is not one that this service accepts; the message says why, never what it holds."""

    reason = "STATEMENT_REFUSED"


class TrustedKey(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """One entry: `key_id` may sign statements of `kind` as `service`, from `not_before` up to `not_after`.

    `public_key` is the raw Ed25519 key in base64, or SPKI PEM; `key_id` MUST end in its fingerprint, as
    `SigningKey.key_id` does.
    """

    service: _Name
    kind: _Name
    key_id: str
    public_key: str
    not_before: pydantic.AwareDatetime | None = None
    not_after: pydantic.AwareDatetime | None = None

    @classmethod
    def of(cls, key: SigningKey, *, service: str, kind: str) -> Self:
        """Return the entry for `key`, without a time limit."""
        public_key = base64.b64encode(key.public_key.public_bytes_raw()).decode()
        return cls(service=service, kind=kind, key_id=key.key_id, public_key=public_key)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if key_id(self.key_id.rpartition("+")[0], self.verifying_key()) != self.key_id:
            raise ValueError("key_id does not belong to public_key")
        if self.not_before and self.not_after and self.not_before >= self.not_after:
            raise ValueError("not_before is not before not_after")
        return self

    def verifying_key(self) -> Ed25519PublicKey:
        """Return the public key; raises `ValueError` unless it is an Ed25519 key."""
        if not self.public_key.startswith("-----BEGIN"):
            return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.public_key, validate=True))
        try:
            key = load_pem_public_key(self.public_key.encode())
        except UnsupportedAlgorithm:
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("public_key is not an Ed25519 key")  # noqa: TRY004 (pydantic wants ValueError)
        return key


class TrustRoot(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """The public keys that a service believes; no key is listed twice, not even for two kinds."""

    keys: Annotated[tuple[TrustedKey, ...], pydantic.Field(max_length=_MAX_KEYS)]

    @pydantic.model_validator(mode="after")
    def _keys_are_separate(self) -> Self:
        if len({key.verifying_key().public_bytes_raw() for key in self.keys}) != len(self.keys):
            raise ValueError("a public key is listed twice")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a trust root from JSON; raises `KeyFileRefused` if it is malformed or others may write it."""
        content = files.read(path, forbidden_mode=files.WRITABLE_BY_OTHERS)
        try:
            json.loads(content, object_pairs_hook=_refuse_duplicates)
            return cls.model_validate_json(content)
        except (ValueError, RecursionError):
            raise files.KeyFileRefused(f"{path.name} is not a trust root") from None

    def find(self, key_id: str, *, service: str, kind: str, at: datetime) -> Ed25519PublicKey:
        """Return that key; raises `StatementRefused` unless `service` may sign `kind` with it at `at`."""
        entry = next((key for key in self.keys if key.key_id == key_id), None)
        if entry is None:
            raise StatementRefused("signed by a key that is not trusted")
        if (entry.service, entry.kind) != (service, kind):
            raise StatementRefused("signed by a key for another service or kind of statement")
        if (entry.not_before and at < entry.not_before) or (entry.not_after and at >= entry.not_after):
            raise StatementRefused("signed by a key outside its period of validity")
        return entry.verifying_key()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members

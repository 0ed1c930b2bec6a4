"""Ed25519 signing keys (RFC 8032), one for each kind of statement that a service signs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared import errors
from shared.keys import files

_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key and the name it signs under, e.g. `policy_guard/decision`."""

    name: str
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, path: Path, *, name: str) -> Self:
        """Make a key and write it to `path` as PKCS#8 PEM (RFC 5958), mode 0600. Raises `AlreadyExists`."""
        key = cls(name=_checked(name), _private=Ed25519PrivateKey.generate())
        pem = key._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.create(path, pem)
        return key

    @classmethod
    def load(cls, path: Path, *, name: str) -> Self:
        """Read the key at `path`; raises `KeyFileRefused` unless it is an Ed25519 key of ours alone."""
        pem = files.read(path, forbidden_mode=files.PRIVATE)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise files.KeyFileRefused(f"{path.name} is not an Ed25519 private key in PKCS#8 PEM")
        return cls(name=_checked(name), _private=private)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The public half, for a trust root."""
        return self._private.public_key()

    @property
    def key_id(self) -> str:
        """The id under which trust roots list the public half."""
        return key_id(self.name, self.public_key)

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes. `message` MUST name its own type: see `shared.statements.pae`."""
        return self._private.sign(message)


def key_id(name: str, public_key: Ed25519PublicKey) -> str:
    """Return `<name>+<first 8 bytes of SHA-256 of the raw public key, hex>`."""
    return f"{name}+{hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise errors.InvalidArgument("a key's name has the form service/kind", field="name")
    return name

"""Salted commitments: a leaf can be bound to text that it does not hold.

SHA-256 over a fresh 32-byte salt and the content is binding (collision resistance) and, while the salt is
secret, hiding. Whoever destroys salt and content leaves a number that says nothing about either.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from shared.transparency.errors import Unverified

SALT_SIZE = 32


def new_salt() -> bytes:
    """Return a salt. Callers MUST use each for one commitment only, and keep it with the content."""
    return secrets.token_bytes(SALT_SIZE)


def commit(content: bytes, salt: bytes) -> bytes:
    """Return the 32-byte commitment to `content`: SHA-256(salt || content)."""
    if len(salt) != SALT_SIZE:
        raise ValueError("a salt has 32 bytes")
    return hashlib.sha256(salt + content).digest()


def verify_commitment(commitment: bytes, content: bytes, salt: bytes) -> None:
    """Check that `commitment` was made of `content` and `salt`; raises `Unverified` if not."""
    if len(salt) != SALT_SIZE or not hmac.compare_digest(commitment, commit(content, salt)):
        raise Unverified("the commitment is of other content")

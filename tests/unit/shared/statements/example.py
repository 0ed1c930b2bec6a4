"""A signed release statement, its key and the trust root that lists it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from shared.keys import SigningKey
from shared.statements import (
    Digest,
    Statement,
    Subject,
    TrustedKey,
    TrustRoot,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
RELEASE = "https://bastide.dev/release/v1"
EXPECTED: dict[str, Any] = {
    "service": "model_server",
    "kind": "release",
    "predicate_type": RELEASE,
    "at": NOW,
}
STATEMENT = Statement(
    subject=(Subject(name="model", digest=Digest(sha256="ab" * 32)),),
    predicate_type=RELEASE,
    predicate={"canary": 0.25, "name": "é", "approvals": ["a", "b"], "none": None},
)


def new_key(name: str = "model_server/release") -> SigningKey:
    return SigningKey(name=name, _private=ed25519.Ed25519PrivateKey.generate())


KEY = new_key()
ENTRY = TrustedKey.of(KEY, service="model_server", kind="release")
TRUST = TrustRoot(keys=(ENTRY,))

"""JWK Sets (RFC 7517) of Ed25519 keys (RFC 8037), as issuers publish them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt.algorithms import OKPAlgorithm


def key_set(keys: Mapping[str, Ed25519PublicKey]) -> str:
    """Return the set of `keys`, by key id, for verifying EdDSA signatures."""
    entries = [
        {**OKPAlgorithm.to_jwk(key, as_dict=True), "kid": key_id, "use": "sig", "alg": "EdDSA"}
        for key_id, key in keys.items()
    ]
    return json.dumps({"keys": entries}, indent=2) + "\n"

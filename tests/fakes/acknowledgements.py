"""Acknowledgements of a log that there is not: signed and proven as real ones are."""

from __future__ import annotations

import json

from bastide.audit.v1 import audit_pb2
from shared.transparency.checkpoint import Checkpoint, sign_checkpoint
from shared.transparency.merkle import hash_leaf
from shared.transparency.note import Signer
from shared.transparency.proof import TlogProof

LOG = Signer("log.example/audit", bytes(range(32)))


def acknowledged(record_id: str, *, signer: Signer = LOG, **members: object) -> audit_pb2.Appended:
    """Return what a log acknowledges that holds this one record."""
    leaf = json.dumps({"record_id": record_id}).encode()
    checkpoint = Checkpoint(origin=signer.name, size=1, root=hash_leaf(leaf))
    proof = TlogProof(index=0, hashes=(), checkpoint=sign_checkpoint(checkpoint, signer))
    return audit_pb2.Appended(**{"leaf": leaf, "proof": proof.encode()} | members)  # type: ignore[arg-type]

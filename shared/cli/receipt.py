"""Verifying a receipt from the log's public key alone."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hmac
import json
from pathlib import Path

import rfc8785
from google.protobuf import json_format

from bastide.types.v1 import decision_pb2, evidence_pb2
from shared.cli.failures import USAGE, Failure
from shared.cli.leaf import Leaf, decision_of
from shared.errors import Error
from shared.guard import DECISION_KEY, DECISION_TYPE, GUARD
from shared.statements import Signature, TrustRoot, verify_bytes
from shared.statements.dsse import encode_base64
from shared.transparency.checkpoint import Checkpoint
from shared.transparency.commitment import SALT_SIZE, verify_commitment
from shared.transparency.errors import Unverified
from shared.transparency.merkle import hash_leaf
from shared.transparency.note import Verifier
from shared.transparency.proof import TlogProof

_MAX_FILE_BYTES = 1 << 20
# Whether the guard's decision allowed, by the kinds of entry that are nothing but its word.
_DECIDED = {"authorised": True, "access": True, "denied": False}
_NOT_PROVEN = "the receipt does NOT verify"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifiedReceipt:
    """A receipt whose leaf the log signed for."""

    leaf: Leaf
    leaf_hash: bytes
    index: int
    checkpoint: Checkpoint
    salts: dict[str, bytes]

    def opens(self, name: str, candidates: list[bytes]) -> None:
        """Check that the commitment `name` of the leaf was made of one of `candidates`. Raises Failure."""
        digest, salt = self.leaf.commitments().get(name), self.salts.get(name)
        if digest is None:
            raise Failure(f"the record commits to no {name}", title=_NOT_PROVEN)
        if salt is None:
            raise Failure(
                f"the receipt has no salt for the {name}; only the receipt that came with the answer has it",
                title=f"the {name} cannot be checked",
            )
        for content in candidates:
            try:
                verify_commitment(digest, content, salt)
            except Unverified:
                continue
            return
        raise Failure(f"the {name} is not the one that was recorded", title=_NOT_PROVEN)


def read(path: Path) -> evidence_pb2.Receipt:
    """Return the receipt in a JSON file. Raises Failure, OSError."""
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    try:
        if len(data) > _MAX_FILE_BYTES:
            raise ValueError("too large")
        return json_format.Parse(data, evidence_pb2.Receipt(), max_recursion_depth=16)
    except (json_format.ParseError, ValueError):
        raise Failure(f"{path} does not hold a receipt", title="not a receipt") from None


def verify(receipt: evidence_pb2.Receipt, vkey: str) -> VerifiedReceipt:
    """Check the proof, and that everything beside it agrees with the leaf. Raises Failure."""
    try:
        proof = TlogProof.parse(receipt.proof)
        checkpoint = proof.verify(receipt.leaf, Verifier.parse(vkey))
    except Error as error:
        raise Failure(error.message, title=_NOT_PROVEN) from None
    leaf = Leaf.parse(receipt.leaf)
    for name in ("decision_id", "call_id"):
        if getattr(receipt, name) not in ("", leaf.field(name)):
            raise Failure(f"its {name} is not that of the recorded entry", title=_NOT_PROVEN)
    recorded = leaf.commitments()
    for item in receipt.commitments:
        if not hmac.compare_digest(item.digest, recorded.get(item.name, b"")) or len(item.salt) != SALT_SIZE:
            raise Failure(f"its commitment to the {item.name} is not that of the recorded entry", title=_NOT_PROVEN)
    return VerifiedReceipt(
        leaf=leaf,
        leaf_hash=hash_leaf(receipt.leaf),
        index=proof.index,
        checkpoint=checkpoint,
        salts={item.name: item.salt for item in receipt.commitments},
    )


def verify_decisions(leaf: Leaf, trust: TrustRoot) -> list[str]:
    """Check the guard's signatures on what the leaf embeds, and return the names of what was signed. Raises Failure.

    A whole answer needs an allow and a verdict on that same decision, and what else was allowed or denied a decision
    that says so; what a writer says without the guard is not enough.
    """
    signed = leaf.decisions()
    effects = {}
    for name, item in signed.items():
        decision = decision_of(item)
        signature = Signature(keyid=item.key_id, sig=encode_base64(item.signature))
        try:
            verify_bytes(
                DECISION_TYPE, item.decision, signature, trust,
                service=GUARD, kind=DECISION_KEY, at=decision.decided_at.ToDatetime(dt.UTC),
            )  # fmt: skip
        except (Error, ValueError):
            raise Failure(f"the guard did not sign its {name}", title=_NOT_PROVEN) from None
        if decision.decision_id != leaf.field("decision_id"):
            raise Failure(f"the guard's {name} is about another call", title=_NOT_PROVEN)
        effects[name] = decision.effect
    allowed = {name for name, effect in effects.items() if effect == decision_pb2.EFFECT_ALLOW}
    kind = leaf.field("kind")
    if kind == "completed" and allowed != {"decision", "verdict"}:
        raise Failure("the call ended well without the guard's word", title=_NOT_PROVEN)
    if kind in _DECIDED and ("decision" not in signed or ("decision" in allowed) is not _DECIDED[kind]):
        raise Failure(f"the entry says {kind}, and the guard's decision does not", title=_NOT_PROVEN)
    return sorted(signed)


def prompts(data: bytes) -> list[bytes]:
    """Return what a prompt's commitment may cover: RFC 8785 JSON of the messages. Raises Failure.

    `data` is those messages as JSON (a list of `{"role", "content"}`), or the text of the one user message, whose
    last line may have been ended by an editor. A text may itself be a JSON list, so that both are tried.
    """
    try:
        texts = [text.decode() for text in answers(data)]
    except UnicodeDecodeError:
        raise Failure("a prompt is text in UTF-8, or messages as JSON", exit_code=USAGE) from None
    found = [rfc8785.dumps([{"role": "user", "content": text}]) for text in texts]
    with contextlib.suppress(ValueError, RecursionError):
        messages = json.loads(data)
        if isinstance(messages, list):
            found.append(rfc8785.dumps(messages))
    return found


def answers(data: bytes) -> list[bytes]:
    """Return what an answer's commitment may cover: the text, with and without the end of its last line."""
    return list(dict.fromkeys((data, data.removesuffix(b"\n"))))

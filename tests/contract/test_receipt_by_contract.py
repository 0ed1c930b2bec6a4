"""A receipt is checked with what the contract says about it, and with no code of the suite.

Everything that this module knows of leaves, proofs, checkpoints, keys and commitments is in the comments of
`types/v1/evidence.proto` and `audit/v1/record.proto`, and in the specifications that they name.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc
from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.types.v1 import content_pb2, evidence_pb2
from tests.contract.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("contract"), pytest.mark.timeout(120)]

CONVERSATION = (
    ("system", content_pb2.ROLE_SYSTEM, 'Answer in "plain" words.\n'),
    ("user", content_pb2.ROLE_USER, "Grüß Gott \\ \t ☕"),
    ("assistant", content_pb2.ROLE_ASSISTANT, "hello"),
    ("user", content_pb2.ROLE_USER, "and again"),
)


class NotProven(Exception):
    """The receipt does not show what it should."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a caller has in hand after a call."""

    call_id: str
    text: str
    receipt: evidence_pb2.Receipt


@pytest_asyncio.fixture(params=["unary", "stream"], loop_scope="session")
async def answered(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Answered]:
    stub = inference_pb2_grpc.InferenceServiceStub(world.suite.channel("model-server"))
    call = inference_pb2.InferenceCall(
        model="tiny",
        purpose="internal-assistant",
        messages=[content_pb2.Message(role=role, content=content) for _, role, content in CONVERSATION],
        parameters=content_pb2.SamplingParameters(max_new_tokens=8),
    )
    metadata = world.everyone.metadata
    if request.param == "unary":
        answer = await stub.Generate(inference_pb2.GenerateRequest(call=call), metadata=metadata, timeout=30)
        yield Answered(call_id=answer.end.receipt.call_id, text=answer.text, receipt=answer.end.receipt)
        return
    stream = stub.GenerateStream(inference_pb2.GenerateStreamRequest(call=call), metadata=metadata, timeout=30)
    events = [event async for event in stream]
    yield Answered(
        call_id=events[0].start.call_id,
        text="".join(event.chunk.text for event in events),
        receipt=events[-1].end.receipt,
    )


@pytest.fixture
def vkey(world: World) -> str:
    """The log's public key, as the operator hands it out."""
    return (world.suite.home / "trust" / "log.vkey").read_text().strip()


def prompt_bytes(conversation: Sequence[tuple[str, Any, str]]) -> bytes:
    """RFC 8785 of an array of objects with text members only: members in order, no space, nothing escaped in vain."""
    messages = [{"content": content, "role": role} for role, _, content in conversation]
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":")).encode()


def check(receipt: evidence_pb2.Receipt, vkey: str, *, call_id: str, values: dict[str, bytes]) -> dict[str, Any]:
    """Follow the steps that the contract lists, and return the leaf. Raises NotProven."""
    head, _, checkpoint = receipt.proof.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("index "):
        raise NotProven("not a proof")
    index, path = int(lines[1].removeprefix("index ")), [base64.b64decode(line) for line in lines[2:]]
    size, root = signed_tree(checkpoint, vkey)
    if root_of(hashlib.sha256(b"\0" + receipt.leaf).digest(), index, size, path) != root:
        raise NotProven("the leaf is not in the tree")
    leaf: dict[str, Any] = json.loads(receipt.leaf)
    if leaf["version"] != 1 or leaf["record"]["fields"]["call_id"] != call_id:
        raise NotProven("the leaf is about another call")
    recorded = {item["name"]: base64.b64decode(item["digest"]) for item in leaf["record"]["data"]["commitments"]}
    if {item.name for item in receipt.commitments} != set(values):
        raise NotProven("something is not opened")
    for item in receipt.commitments:
        digest = hashlib.sha256(item.salt + values[item.name]).digest()
        if not digest == item.digest == recorded[item.name]:
            raise NotProven(f"another {item.name}")
    return leaf


def signed_tree(note: str, vkey: str) -> tuple[int, bytes]:
    """Return size and root hash of a checkpoint (c2sp.org/tlog-checkpoint, c2sp.org/signed-note)."""
    name, key_id, encoded = vkey.split("+", 2)
    key = base64.b64decode(encoded)
    expected = hashlib.sha256(f"{name}\n".encode() + key).digest()[:4]
    text, _, signatures = note.rpartition("\n\n")
    text += "\n"
    origin, size, root = text.split("\n")[:3]
    if key[:1] != b"\x01" or expected.hex() != key_id or origin != name:
        raise NotProven("another log's key")
    for line in signatures.splitlines():
        dash, signer, signature = line.split(" ")
        raw = base64.b64decode(signature)
        if (dash, signer, raw[:4]) == ("\N{EM DASH}", name, expected):
            try:
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], text.encode())
            except InvalidSignature:
                raise NotProven("the log did not sign this") from None
            return int(size), base64.b64decode(root)
    raise NotProven("the log's signature is missing")


def root_of(leaf_hash: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, 2.1.3.2)."""
    if index >= size:
        raise NotProven("beyond the tree")
    number, last, found = index, size - 1, leaf_hash
    for item in path:
        if last == 0:
            raise NotProven("the path is too long")
        if number & 1 or number == last:
            found = hashlib.sha256(b"\x01" + item + found).digest()
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\x01" + found + item).digest()
        number, last = number >> 1, last >> 1
    if last:
        raise NotProven("the path is too short")
    return found


async def test_a_receipt_proves_prompt_and_answer_to_whoever_has_read_the_contract(
    world: World, answered: Answered, vkey: str
) -> None:
    values = {"prompt": prompt_bytes(CONVERSATION), "completion": answered.text.encode()}
    leaf = check(answered.receipt, vkey, call_id=answered.call_id, values=values)
    assert set(leaf) == {"record", "record_id", "time", "version", "writer"}
    assert leaf["writer"] == "spiffe://bastide.local/model-server"
    data, fields = leaf["record"]["data"], leaf["record"]["fields"]
    assert set(fields) == {"kind", "call_id", "decision_id", "tenant", "principal", "model", "method", "outcome"}
    assert (fields["kind"], fields["outcome"], fields["model"]) == ("completed", "OK", "tiny")
    assert fields["decision_id"] == answered.receipt.decision_id
    assert set(data["principal"]) == {"kind", "roles", "amr", "workload"}
    assert not {"record_id", "kind", "opening", "sealed_text"} & set(data)
    assert all(set(item) == {"name", "digest"} for item in data["commitments"])
    assert data["inference"]["usage"]["completion_tokens"] > 0


async def test_nothing_else_is_proven_by_it(answered: Answered, vkey: str) -> None:
    values = {"prompt": prompt_bytes(CONVERSATION), "completion": answered.text.encode()}
    for name, value in values.items():
        with pytest.raises(NotProven, match=f"another {name}"):
            check(answered.receipt, vkey, call_id=answered.call_id, values={**values, name: value + b" "})
    changed = evidence_pb2.Receipt()
    changed.CopyFrom(answered.receipt)
    changed.leaf = answered.receipt.leaf.replace(b'"outcome":"OK"', b'"outcome":"KO"')
    with pytest.raises(NotProven, match="not in the tree"):
        check(changed, vkey, call_id=answered.call_id, values=values)
    name, _, _ = vkey.split("+", 2)
    other = b"\x01" + bytes(32)
    forged = hashlib.sha256(f"{name}\n".encode() + other).digest()[:4].hex()
    with pytest.raises(NotProven, match="signature is missing"):
        check(
            answered.receipt,
            f"{name}+{forged}+{base64.b64encode(other).decode()}",
            call_id=answered.call_id,
            values=values,
        )


async def test_the_receipt_that_is_found_later_is_of_the_same_entry(
    world: World, answered: Answered, vkey: str
) -> None:
    stub = audit_pb2_grpc.AuditServiceStub(world.suite.channel("audit"))
    found = await stub.GetReceipt(
        audit_pb2.GetReceiptRequest(call_id=answered.call_id), metadata=world.everyone.metadata, timeout=10
    )
    assert found.receipt.leaf == answered.receipt.leaf
    check(found.receipt, vkey, call_id=answered.call_id, values={})

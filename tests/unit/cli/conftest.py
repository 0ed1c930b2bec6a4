"""A small published log with one answered call in it, and the `bastide` command."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785
from google.protobuf import json_format
from typer.testing import CliRunner, Result

from bastide.audit.v1 import record_pb2
from bastide.types.v1 import content_pb2, decision_pb2, evidence_pb2, principal_pb2
from services.audit import entry, rendering
from shared.cli.main import app
from shared.guard import DECISION_TYPE
from shared.keys import SigningKey
from shared.statements import TrustedKey, TrustRoot, sign_bytes
from shared.statements.dsse import decode_base64
from shared.transparency.checkpoint import Checkpoint, sign_checkpoint
from shared.transparency.commitment import commit, new_salt
from shared.transparency.merkle import fold, hash_leaf, inclusion_plan
from shared.transparency.note import Signer
from shared.transparency.proof import TlogProof
from shared.transparency.tiles import TileId, bundle_path, encode_bundle, tile_path
from shared.transparency.tree import Tree

NOW = dt.datetime(2026, 11, 2, 9, 30, tzinfo=dt.UTC)
PROMPT = "What is a bastide?"
ANSWER = "A fortified town.\nSeveral stand in Gascony."
Bastide = Callable[..., Result]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedLog:
    """A tlog-tiles folder, its key file, and the receipt of the call in it."""

    directory: Path
    key: Path
    trust: Path
    receipt: evidence_pb2.Receipt

    def write_receipt(self, path: Path) -> Path:
        path.write_text(json_format.MessageToJson(self.receipt, preserving_proto_field_name=True))
        return path


@pytest.fixture
def bastide(tmp_path: Path) -> Bastide:
    def run(*arguments: str | Path) -> Result:
        home = () if "--home" in arguments else ("--home", str(tmp_path / "home"))
        return CliRunner().invoke(app, [*home, *map(str, arguments)], catch_exceptions=False)

    return run


@pytest.fixture
def log(tmp_path: Path) -> PublishedLog:
    signer = Signer.generate("bastide.local/audit")
    salts = {"prompt": new_salt(), "completion": new_salt()}
    values = {"prompt": rfc8785.dumps([{"role": "user", "content": PROMPT}]), "completion": ANSWER.encode()}
    commitments = [
        evidence_pb2.Commitment(name=name, salt=salts[name], digest=commit(values[name], salts[name]))
        for name in values
    ]
    guard = SigningKey.create(tmp_path / "decision.pem", name="policy-guard/decision")
    trust = tmp_path / "trust.json"
    trusted = TrustRoot(keys=(TrustedKey.of(guard, service="policy-guard", kind="decision"),))
    trust.write_text(trusted.model_dump_json())
    leaves = [_leaf(_record(f"call-{number}", commitments, guard)) for number in range(5)]
    tree = Tree()
    for leaf in leaves:
        tree.append(hash_leaf(leaf))
    checkpoint = sign_checkpoint(Checkpoint(origin=signer.name, size=tree.size, root=tree.root()), signer)
    hashes = tuple(fold(tree.reader(), part) for part in inclusion_plan(3, tree.size))
    directory = tmp_path / "log"
    for name, data in {
        "checkpoint": checkpoint.encode(),
        bundle_path(0, tree.size): encode_bundle(leaves),
        tile_path(TileId(0, 0), tree.size): b"".join(hash_leaf(leaf) for leaf in leaves),
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    key = tmp_path / "log.vkey"
    key.write_text(signer.verifier.vkey + "\n")
    receipt = evidence_pb2.Receipt(
        leaf=leaves[3],
        proof=TlogProof(index=3, hashes=hashes, checkpoint=checkpoint).encode(),
        commitments=commitments,
        decision_id="decision-call-3",
        call_id="call-3",
    )
    return PublishedLog(directory=directory, key=key, trust=trust, receipt=receipt)


def document(result: Result) -> dict[str, object]:
    """Return the one JSON document on standard output."""
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


def signed(decision: decision_pb2.Decision, guard: SigningKey) -> decision_pb2.SignedDecision:
    payload = decision.SerializeToString()
    signature = sign_bytes(DECISION_TYPE, payload, guard)
    return decision_pb2.SignedDecision(decision=payload, key_id=signature.keyid, signature=decode_base64(signature.sig))


def _record(call_id: str, commitments: list[evidence_pb2.Commitment], guard: SigningKey) -> record_pb2.Record:
    decision = decision_pb2.Decision(
        decision_id=f"decision-{call_id}", effect=decision_pb2.EFFECT_ALLOW, policy_revision="sha256:00ff"
    )
    decision.decided_at.FromDatetime(NOW)
    record = record_pb2.Record(
        record_id=f"record-{call_id}",
        kind=record_pb2.RECORD_KIND_COMPLETED,
        call_id=call_id,
        method="/bastide.model_server.v1.InferenceService/GenerateStream",
        principal=principal_pb2.Principal(
            subject="ada@example.org",
            kind=principal_pb2.PRINCIPAL_KIND_PERSON,
            tenant="default",
            roles=["user"],
            workload=principal_pb2.Workload(spiffe_id="spiffe://bastide.local/client/cli"),
        ),
        decision=signed(decision, guard),
        inference=record_pb2.InferenceFacts(
            model="smollm2",
            model_version="models/smollm2/versions/1",
            binding=record_pb2.MODEL_BINDING_LOADED,
            usage=content_pb2.Usage(prompt_tokens=7, completion_tokens=9),
            finish_reason=content_pb2.FINISH_REASON_STOP,
            verdict=signed(decision, guard),
        ),
        commitments=commitments,
    )
    record.occurred_at.FromDatetime(NOW)
    return record


def _leaf(record: record_pb2.Record) -> bytes:
    logged = rendering.to_entry(
        record, writer="spiffe://bastide.local/model-server", pseudonym="9c013c62", sealed=(), now=NOW
    )
    return entry.draft(logged, NOW).leaf

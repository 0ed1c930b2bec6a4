"""Receipts checked offline, whole and tampered with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import rfc8785
from google.protobuf import json_format

from bastide.types.v1 import decision_pb2
from shared.cli.failures import Failure
from shared.cli.leaf import Leaf
from shared.cli.receipt import prompts, verify_decisions
from shared.keys import SigningKey
from shared.statements import TrustedKey, TrustRoot
from shared.transparency.commitment import new_salt
from shared.transparency.note import Signer
from tests.unit.cli.conftest import ANSWER, NOW, PROMPT, Bastide, PublishedLog, document, signed


def test_a_receipt_verifies_and_says_what_it_proves(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    result = bastide("audit", "receipt", "verify", log.write_receipt(tmp_path / "r.json"), "--key", log.key)
    assert result.exit_code == 0, result.output
    for part in ("entry 3 of bastide.local/audit", "completed", "pseudonym 9c013c62", "decision-call-3: allow"):
        assert part in result.stdout
    assert "It proves" in result.stdout
    assert "It does not prove" in result.stdout
    assert "were not compared" in result.stdout


def test_the_guards_word_is_checked_with_a_trust_root(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    receipt = log.write_receipt(tmp_path / "r.json")
    unchecked = bastide("audit", "receipt", "verify", receipt, "--key", log.key)
    assert "signatures in the entry were not checked" in unchecked.stdout
    found = document(bastide("audit", "receipt", "verify", receipt, "--key", log.key, "--trust", log.trust, "--json"))
    assert found["guard_signed"] == ["decision", "verdict"]


def test_a_decision_that_the_guard_did_not_sign_is_refused(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    other = SigningKey.create(tmp_path / "other.pem", name="policy-guard/decision")
    trust = tmp_path / "other.json"
    trust.write_text(TrustRoot(keys=(TrustedKey.of(other, service="policy-guard", kind="decision"),)).model_dump_json())
    receipt = log.write_receipt(tmp_path / "r.json")
    result = bastide("audit", "receipt", "verify", receipt, "--key", log.key, "--trust", trust)
    assert result.exit_code == 1
    assert "the guard did not sign its decision" in result.stderr
    assert "verifies" not in result.stdout


def decided(call_id: str, effect: decision_pb2.Effect.ValueType) -> decision_pb2.Decision:
    decision = decision_pb2.Decision(decision_id=f"decision-{call_id}", effect=effect)
    decision.decided_at.FromDatetime(NOW)
    return decision


@pytest.mark.parametrize(
    ("decision", "verdict", "message"),
    [
        (decided("call", decision_pb2.EFFECT_ALLOW), None, "without the guard's word"),
        (None, decided("call", decision_pb2.EFFECT_ALLOW), "without the guard's word"),
        (decided("call", decision_pb2.EFFECT_DENY), decided("call", decision_pb2.EFFECT_ALLOW), "without the guard's"),
        (decided("call", decision_pb2.EFFECT_ALLOW), decided("call", decision_pb2.EFFECT_DENY), "without the guard's"),
        (decided("call", decision_pb2.EFFECT_ALLOW), decided("b", decision_pb2.EFFECT_ALLOW), "about another call"),
        (decided("b", decision_pb2.EFFECT_ALLOW), decided("call", decision_pb2.EFFECT_ALLOW), "about another call"),
    ],
)
def test_a_whole_answer_needs_the_guards_allow_and_its_verdict(
    tmp_path: Path, decision: decision_pb2.Decision | None, verdict: decision_pb2.Decision | None, message: str
) -> None:
    guard = SigningKey.create(tmp_path / "guard.pem", name="policy-guard/decision")
    trust = TrustRoot(keys=(TrustedKey.of(guard, service="policy-guard", kind="decision"),))
    stated = {
        name: json_format.MessageToDict(signed(item, guard), preserving_proto_field_name=True)
        for name, item in (("decision", decision), ("verdict", verdict))
        if item is not None
    }
    data = {"inference": {"verdict": stated.get("verdict", {})}, "decision": stated.get("decision", {})}
    fields = {"kind": "completed", "decision_id": "decision-call"}
    leaf = Leaf(document={"version": 1, "record": {"data": data, "fields": fields}})
    with pytest.raises(Failure, match=message):
        verify_decisions(leaf, trust)


@pytest.mark.parametrize("kind", ["authorised", "access", "denied"])
@pytest.mark.parametrize("effect", [decision_pb2.EFFECT_ALLOW, decision_pb2.EFFECT_DENY, None])
def test_what_was_allowed_or_denied_needs_a_decision_that_says_so(
    tmp_path: Path, kind: str, effect: decision_pb2.Effect.ValueType | None
) -> None:
    guard = SigningKey.create(tmp_path / "guard.pem", name="policy-guard/decision")
    trust = TrustRoot(keys=(TrustedKey.of(guard, service="policy-guard", kind="decision"),))
    stated = signed(decided("call", effect), guard) if effect is not None else decision_pb2.SignedDecision()
    data = {"decision": json_format.MessageToDict(stated, preserving_proto_field_name=True)}
    leaf = Leaf(
        document={"version": 1, "record": {"data": data, "fields": {"kind": kind, "decision_id": "decision-call"}}}
    )
    if effect is not None and (effect == decision_pb2.EFFECT_DENY) == (kind == "denied"):
        assert verify_decisions(leaf, trust) == ["decision"]
        return
    with pytest.raises(Failure, match=f"the entry says {kind}, and the guard's decision does not"):
        verify_decisions(leaf, trust)


@pytest.mark.parametrize(
    "prompt", ["[1, 2]", '["a"]\n', "[1e400]", "[99999999999999999999]", '["\\ud800"]', "[" * 9999]
)
def test_a_prompt_that_is_a_list_in_json_is_a_text_too(prompt: str) -> None:
    assert rfc8785.dumps([{"role": "user", "content": prompt}]) in prompts(prompt.encode())


def test_a_prompt_that_is_no_text_is_wrong_usage(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff")
    receipt = log.write_receipt(tmp_path / "r.json")
    for option in ("--prompt", "--key"):
        given = {"--key": log.key, option: tmp_path / "text"}
        result = bastide("audit", "receipt", "verify", receipt, *itertools.chain(*given.items()))
        assert result.exit_code == 2, option


def test_json_goes_anywhere_on_the_line_and_stands_alone(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    receipt = log.write_receipt(tmp_path / "r.json")
    found = document(bastide("audit", "receipt", "verify", receipt, "--key", log.key, "--json"))
    assert found["verified"] is True
    assert found["index"] == 3
    assert found == document(bastide("--json", "audit", "receipt", "verify", receipt, "--key", log.key))


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + "\n", json.dumps([{"content": PROMPT, "role": "user"}], indent=1)])
@pytest.mark.parametrize("end", ["", "\n"])
def test_prompt_and_answer_open_the_commitments(
    bastide: Bastide, log: PublishedLog, tmp_path: Path, prompt: str, end: str
) -> None:
    (tmp_path / "prompt").write_text(prompt)
    (tmp_path / "answer").write_text(ANSWER + end)
    opening = ("--prompt", tmp_path / "prompt", "--answer", tmp_path / "answer")
    receipt = log.write_receipt(tmp_path / "r.json")
    result = bastide("audit", "receipt", "verify", receipt, "--key", log.key, *opening, "--json")
    assert document(result)["opened"] == ["prompt", "completion"]


@pytest.mark.parametrize(("option", "text"), [("--prompt", PROMPT + "!"), ("--answer", ANSWER[:-1])])
def test_another_prompt_or_answer_is_refused(
    bastide: Bastide, log: PublishedLog, tmp_path: Path, option: str, text: str
) -> None:
    (tmp_path / "text").write_text(text)
    receipt = log.write_receipt(tmp_path / "r.json")
    result = bastide("audit", "receipt", "verify", receipt, "--key", log.key, option, tmp_path / "text")
    assert result.exit_code == 1
    assert "is not the one that was recorded" in result.stderr
    assert "verifies" not in result.stdout


def test_a_receipt_without_salts_cannot_open_a_prompt(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    del log.receipt.commitments[:]
    (tmp_path / "text").write_text(PROMPT)
    receipt = log.write_receipt(tmp_path / "r.json")
    result = bastide("audit", "receipt", "verify", receipt, "--key", log.key, "--prompt", tmp_path / "text")
    assert result.exit_code == 1
    assert "has no salt" in result.stderr


def test_a_wrong_leaf_is_refused(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    log.receipt.leaf = log.receipt.leaf.replace(b'"OK"', b'"KO"')
    _refused(bastide, log, tmp_path)


def test_another_leaf_of_the_same_log_is_refused(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    log.receipt.proof = log.receipt.proof.replace("index 3", "index 2")
    _refused(bastide, log, tmp_path)


@pytest.mark.parametrize("field", ["decision_id", "call_id"])
def test_ids_beside_the_leaf_must_be_the_leafs(bastide: Bastide, log: PublishedLog, tmp_path: Path, field: str) -> None:
    setattr(log.receipt, field, "another")
    _refused(bastide, log, tmp_path)


def test_commitments_beside_the_leaf_must_be_the_leafs(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    log.receipt.commitments[0].digest = new_salt()
    _refused(bastide, log, tmp_path)


def test_the_key_of_another_log_is_refused(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    log.key.write_text(Signer.generate("bastide.local/audit").verifier.vkey)
    _refused(bastide, log, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"leaf": 7}', '{"unknown": 1}', "\ufffd", "{}"])
def test_what_is_no_receipt_is_refused_in_one_panel(
    bastide: Bastide, log: PublishedLog, tmp_path: Path, text: str
) -> None:
    (tmp_path / "r.json").write_text(text)
    result = bastide("audit", "receipt", "verify", tmp_path / "r.json", "--key", log.key)
    assert result.exit_code == 1
    assert "receipt" in result.stderr
    assert "Traceback" not in result.output


def _refused(bastide: Bastide, log: PublishedLog, tmp_path: Path) -> None:
    result = bastide("audit", "receipt", "verify", log.write_receipt(tmp_path / "r.json"), "--key", log.key)
    assert result.exit_code == 1
    assert "does NOT verify" in result.stderr
    assert result.stdout == ""

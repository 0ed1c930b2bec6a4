from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.keys import SigningKey
from shared.statements import (
    MAX_PAYLOAD_SIZE,
    Envelope,
    Signature,
    StatementRefused,
    TrustedKey,
    TrustRoot,
    pae,
    sign,
    sign_bytes,
    verify,
    verify_bytes,
)
from tests.unit.shared.statements.example import ENTRY, EXPECTED, KEY, NOW, RELEASE, STATEMENT, TRUST, new_key

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda f: abs(f) < 2**53 or abs(f) >= 1e21),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def enveloped(payload: bytes, payload_type: str = "application/vnd.in-toto+json", key: SigningKey = KEY) -> bytes:
    """An envelope with a good signature over whatever payload."""
    return json_envelope(payload, payload_type, [sign_bytes(payload_type, payload, key).model_dump()])


def json_envelope(payload: bytes, payload_type: str, signatures: list[Any], **more: Any) -> bytes:
    encoded = base64.b64encode(payload).decode()
    return rfc8785.dumps({"payload": encoded, "payloadType": payload_type, "signatures": signatures, **more})


def document(**changed: Any) -> dict[str, Any]:
    return {**json.loads(STATEMENT.to_json()), **changed}


def test_pae_is_the_specification_s_example() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", b"hello world") == expected


def test_pae_counts_bytes() -> None:
    assert pae("é", "é".encode()) == "DSSEv1 2 é 2 é".encode()


@given(st.text(max_size=20), st.binary(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_pae_is_injective(type_a: str, body_a: bytes, type_b: str, body_b: bytes) -> None:
    assert (pae(type_a, body_a) == pae(type_b, body_b)) == ((type_a, body_a) == (type_b, body_b))


def test_statement_has_in_toto_s_members() -> None:
    assert json.loads(STATEMENT.to_json()) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": "ab" * 32}}],
        "predicateType": RELEASE,
        "predicate": {"canary": 0.25, "name": "é", "approvals": ["a", "b"], "none": None},
    }


def test_signed_statement_verifies_and_is_the_same() -> None:
    envelope = sign(STATEMENT, KEY).to_json()
    assert verify(envelope, TRUST, **EXPECTED) == STATEMENT
    assert set(json.loads(envelope)) == {"payload", "payloadType", "signatures"}


@given(predicate=st.dictionaries(st.text(max_size=8), json_values, max_size=5))
@settings(deadline=None)
def test_any_predicate_survives(predicate: dict[str, Any]) -> None:
    statement = STATEMENT.model_copy(update={"predicate": predicate})
    assert verify(sign(statement, KEY).to_json(), TRUST, **EXPECTED).predicate == predicate


def test_every_flipped_byte_and_truncation_is_refused() -> None:
    envelope = sign(STATEMENT, KEY).to_json()
    for position in range(len(envelope)):
        for bit in (0x01, 0x20, 0x80):
            altered = bytearray(envelope)
            altered[position] ^= bit
            with pytest.raises(StatementRefused):
                verify(bytes(altered), TRUST, **EXPECTED)
        with pytest.raises(StatementRefused):
            verify(envelope[:position], TRUST, **EXPECTED)


@given(st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    for envelope in (garbage, enveloped(garbage)):
        with pytest.raises(StatementRefused):
            verify(envelope, TRUST, **EXPECTED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"service": "audit"}, "another service or kind"),
        ({"kind": "approval"}, "another service or kind"),
        ({"predicate_type": RELEASE + "2"}, "another predicate type"),
    ],
)
def test_other_service_kind_or_predicate_type_is_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(StatementRefused, match=message):
        verify(sign(STATEMENT, KEY).to_json(), TRUST, **{**EXPECTED, **changed})


def test_unknown_key_is_refused_even_under_a_known_id() -> None:
    stranger = new_key()
    with pytest.raises(StatementRefused, match="not trusted"):
        verify(sign(STATEMENT, stranger).to_json(), TRUST, **EXPECTED)
    payload = STATEMENT.to_json()
    forged = sign_bytes("application/vnd.in-toto+json", payload, stranger).model_dump() | {"keyid": KEY.key_id}
    with pytest.raises(StatementRefused, match="does not verify"):
        verify(json_envelope(payload, "application/vnd.in-toto+json", [forged]), TRUST, **EXPECTED)


def test_exactly_one_signature_is_accepted() -> None:
    payload = STATEMENT.to_json()
    good = sign_bytes("application/vnd.in-toto+json", payload, KEY).model_dump()
    for signatures in ([], [good, good], [good, sign_bytes("x", payload, new_key()).model_dump()]):
        with pytest.raises(StatementRefused, match="one signature"):
            verify(json_envelope(payload, "application/vnd.in-toto+json", signatures), TRUST, **EXPECTED)


def test_other_payload_type_is_refused_though_signed() -> None:
    with pytest.raises(StatementRefused, match="not an in-toto Statement"):
        verify(enveloped(STATEMENT.to_json(), "application/json"), TRUST, **EXPECTED)
    payload = STATEMENT.to_json()
    relabelled = [sign_bytes("application/json", payload, KEY).model_dump()]
    with pytest.raises(StatementRefused, match="does not verify"):
        verify(json_envelope(payload, "application/vnd.in-toto+json", relabelled), TRUST, **EXPECTED)


def test_other_members_are_refused_everywhere() -> None:
    payload = STATEMENT.to_json()
    good = sign_bytes("application/vnd.in-toto+json", payload, KEY).model_dump()
    subject = document()["subject"][0]
    digests = {"sha256": "ab" * 32, "sha512": "cd" * 64}
    for envelope in (
        json_envelope(payload, "application/vnd.in-toto+json", [good], extra=1),
        json_envelope(payload, "application/vnd.in-toto+json", [{**good, "cert": "x"}]),
        enveloped(rfc8785.dumps(document(extra=1))),
        enveloped(rfc8785.dumps(document(subject=[{**subject, "uri": "x"}]))),
        enveloped(rfc8785.dumps(document(subject=[{**subject, "digest": digests}]))),
    ):
        with pytest.raises(StatementRefused):
            verify(envelope, TRUST, **EXPECTED)


@pytest.mark.parametrize(
    "changed",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"subject": []},
        {"subject": [{"name": "", "digest": {"sha256": "ab" * 32}}]},
        {"subject": [{"name": "a", "digest": {"sha256": "AB" * 32}}]},
        {"subject": [{"name": "a", "digest": {}}]},
        {"subject": [{"name": "a", "digest": {"sha256": "ab" * 32}}] * 1025},
        {"predicate": []},
        {"predicate": None},
        {"predicateType": 1},
    ],
)
def test_malformed_statement_is_refused_though_signed(changed: dict[str, Any]) -> None:
    assert verify(enveloped(rfc8785.dumps(document())), TRUST, **EXPECTED) == STATEMENT
    with pytest.raises(StatementRefused, match="not an in-toto Statement"):
        verify(enveloped(rfc8785.dumps(document(**changed))), TRUST, **EXPECTED)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(b'"predicate":{', b'"predicate":{"canary":0.25,'),
        lambda text: text.replace(b'{"_type"', b'{"_type":"https://in-toto.io/Statement/v1","_type"'),
        lambda text: text.replace(b":", b": ", 1),
        lambda text: text + b"\n",
        lambda text: text.replace(b"0.25", b"0.250"),
        lambda text: text.replace(b"0.25", b"2.5e-1"),
        lambda text: text.replace("é".encode(), b"\\u00e9"),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")).encode(),
        lambda text: text.replace(b'"predicateType"', b'"predicate_type"'),
        lambda text: text.replace(b"0.25", b"9007199254740993"),
        lambda text: text.replace(b"0.25", b"NaN"),
        lambda text: text.replace(b"0.25", b"9" * 5000),
        lambda text: text.replace(b"0.25", b"[" * 100_000 + b"]" * 100_000),
        lambda text: text.replace(b'"b"', b'"\\ud800"'),
        lambda text: b"\xef\xbb\xbf" + text,
    ],
)
def test_payload_that_is_not_canonical_is_refused_though_signed(rewrite: Callable[[bytes], bytes]) -> None:
    payload = rewrite(STATEMENT.to_json())
    assert payload != STATEMENT.to_json()
    with pytest.raises(StatementRefused):
        verify(enveloped(payload), TRUST, **EXPECTED)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b":", b": ", 1),
        lambda text: text.replace(b'{"payload":', b'{"payload":"","payload":'),
        lambda text: text.replace(b"payloadType", b"payload_type"),
        lambda text: b"[" * 100_000 + text,
        lambda text: b"[" + text + b"]",
    ],
)
def test_envelope_that_is_not_canonical_is_refused(rewrite: Callable[[bytes], bytes]) -> None:
    with pytest.raises(StatementRefused):
        verify(rewrite(sign(STATEMENT, KEY).to_json()), TRUST, **EXPECTED)


def test_base64_has_one_form() -> None:
    envelope = sign(STATEMENT.model_copy(update={"predicate": {"a": ""}}), KEY)
    assert verify(envelope.to_json(), TRUST, **EXPECTED).predicate == {"a": ""}
    signature = envelope.signatures[0]
    assert signature.sig.endswith("==")
    stem = signature.sig[:-3]
    last = signature.sig[-3]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    loose = stem + alphabet[alphabet.index(last) + 1] + "=="  # the same bytes, with stray trailing bits
    assert base64.b64decode(loose) == base64.b64decode(signature.sig)
    for sig in (loose, signature.sig[:-1], signature.sig.rstrip("="), signature.sig[:10] + "\n" + signature.sig[10:-1]):
        changed = envelope.model_copy(update={"signatures": (signature.model_copy(update={"sig": sig}),)})
        with pytest.raises(StatementRefused):
            verify(changed.to_json(), TRUST, **EXPECTED)


def test_size_is_bounded_both_ways() -> None:
    large = STATEMENT.model_copy(update={"predicate": {"a": "x" * MAX_PAYLOAD_SIZE}})
    with pytest.raises(errors.InvalidArgument):
        sign(large, KEY)
    with pytest.raises(StatementRefused, match="too large"):
        verify(b" " * (2 * MAX_PAYLOAD_SIZE), TRUST, **EXPECTED)
    with pytest.raises(StatementRefused, match="too large"):
        verify_bytes(
            "x", bytes(MAX_PAYLOAD_SIZE + 1), Signature(keyid=KEY.key_id, sig=""), TRUST,
            service="model_server", kind="release", at=NOW,
        )  # fmt: skip
    room = MAX_PAYLOAD_SIZE - len(STATEMENT.model_copy(update={"predicate": {"a": ""}}).to_json())
    largest = STATEMENT.model_copy(update={"predicate": {"a": "x" * room}})
    assert verify(sign(largest, KEY).to_json(), TRUST, **EXPECTED) == largest


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [2**53, -(2**53), 2.0**53, float("nan"), float("inf"), "\ud800", nested(240)])
def test_what_would_not_verify_is_not_signed(value: Any) -> None:
    with pytest.raises(errors.InvalidArgument):
        sign(STATEMENT.model_copy(update={"predicate": {"a": value}}), KEY)


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        ({}, True),
        ({"not_before": NOW}, True),
        ({"not_before": NOW + timedelta(seconds=1)}, False),
        ({"not_after": NOW}, False),
        ({"not_after": NOW + timedelta(seconds=1)}, True),
    ],
)
def test_key_counts_within_its_period_only(limits: dict[str, datetime], accepted: bool) -> None:
    trust = TrustRoot(keys=(TrustedKey(**{**ENTRY.model_dump(), **limits}),))
    envelope = sign(STATEMENT, KEY).to_json()
    if accepted:
        assert verify(envelope, trust, **EXPECTED) == STATEMENT
    else:
        with pytest.raises(StatementRefused, match="period"):
            verify(envelope, trust, **EXPECTED)


DECISION = "application/vnd.bastide.decision.v1+protobuf"
WHO: dict[str, Any] = {"service": "model_server", "kind": "release", "at": NOW}


@given(st.binary(max_size=200))
def test_signed_bytes_verify_as_they_are_only(payload: bytes) -> None:
    signature = sign_bytes(DECISION, payload, KEY)
    verify_bytes(DECISION, payload, signature, TRUST, **WHO)
    for payload_type, body in ((DECISION, payload + b"\0"), (DECISION + "2", payload)):
        with pytest.raises(StatementRefused):
            verify_bytes(payload_type, body, signature, TRUST, **WHO)
    for changed in ({"service": "audit"}, {"kind": "approval"}):
        with pytest.raises(StatementRefused):
            verify_bytes(DECISION, payload, signature, TRUST, **{**WHO, **changed})


def test_envelope_parse_gives_back_what_was_signed() -> None:
    envelope = sign(STATEMENT, KEY)
    assert Envelope.parse(envelope.to_json()) == envelope

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.keys import KeyFileRefused
from shared.statements import (
    TrustedKey,
    TrustRoot,
    sign,
    verify,
)
from tests.unit.shared.statements.example import ENTRY, EXPECTED, KEY, NOW, STATEMENT, TRUST, new_key


def written(tmp_path: Path, content: object, mode: int = 0o644) -> Path:
    path = tmp_path / "trust.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def entry(**changed: Any) -> dict[str, Any]:
    return {**ENTRY.model_dump(exclude_none=True), **changed}


def test_trust_root_written_as_json_loads_the_same(tmp_path: Path) -> None:
    trust = TrustRoot(
        keys=(
            ENTRY,
            TrustedKey(
                **TrustedKey.of(new_key("audit/x"), service="audit", kind="x").model_dump(exclude_none=True),
                not_before=NOW,
                not_after=NOW + timedelta(days=1),
            ),
        )
    )
    path = written(tmp_path, trust.model_dump_json(exclude_none=True))
    assert TrustRoot.load(path) == trust


def test_key_may_be_listed_as_pem(tmp_path: Path) -> None:
    pem = KEY.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    trust = TrustRoot.load(written(tmp_path, {"keys": [entry(public_key=pem.decode())]}))
    assert verify(sign(STATEMENT, KEY).to_json(), trust, **EXPECTED) == STATEMENT


P256 = ec.generate_private_key(ec.SECP256R1()).public_key()
P256_PEM = P256.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"keys": [entry()], "extra": 1},
        {"keys": [entry(extra=1)]},
        {"keys": [entry(public_key="")]},
        {"keys": [entry(public_key="AAAA")]},
        {"keys": [entry(public_key=P256_PEM)]},
        {"keys": [entry(public_key="-----BEGIN PUBLIC KEY-----")]},
        {"keys": [entry(key_id="model_server/release+0000000000000000")]},
        {"keys": [entry(public_key=TrustedKey.of(new_key(), service="a", kind="b").public_key)]},
        {"keys": [entry(service="Model Server")]},
        {"keys": [entry(kind="")]},
        {"keys": [entry(not_before="2026-11-01T00:00:00")]},
        {"keys": [entry(not_before="2026-11-02T00:00:00Z", not_after="2026-11-01T00:00:00Z")]},
        {"keys": [entry(), entry()]},
        {"keys": [entry(), entry(kind="approval")]},
        json.dumps({"keys": [entry()]}).replace('"kind":', '"kind": "approval", "kind":'),
        "[" * 100_000,
        "{",
    ],
)
def test_malformed_trust_root_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(KeyFileRefused, match=r"trust\.json is not a trust root"):
        TrustRoot.load(written(tmp_path, content))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_trust_root_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path, {"keys": [entry()]})
    assert TrustRoot.load(path) == TRUST
    path.chmod(mode)
    with pytest.raises(KeyFileRefused, match="permissions"):
        TrustRoot.load(path)

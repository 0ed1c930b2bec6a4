from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from shared import errors
from shared.keys import KeyFileRefused, SigningKey


def test_created_key_loads_and_signs_alike(tmp_path: Path) -> None:
    path = tmp_path / "decision.pem"
    created = SigningKey.create(path, name="policy_guard/decision")
    loaded = SigningKey.load(path, name="policy_guard/decision")
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert loaded.sign(b"message") == created.sign(b"message")
    loaded.public_key.verify(created.sign(b"message"), b"message")
    with pytest.raises(InvalidSignature):
        loaded.public_key.verify(created.sign(b"message"), b"other")


def test_key_id_is_the_name_and_a_fingerprint(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "key.pem", name="audit/checkpoint")
    fingerprint = hashlib.sha256(key.public_key.public_bytes_raw()).hexdigest()[:16]
    assert key.key_id == f"audit/checkpoint+{fingerprint}"


def test_existing_key_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = SigningKey.create(path, name="audit/checkpoint")
    with pytest.raises(errors.AlreadyExists):
        SigningKey.create(path, name="audit/checkpoint")
    assert SigningKey.load(path, name="audit/checkpoint").key_id == key.key_id


def test_wider_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    SigningKey.create(path, name="audit/checkpoint")
    path.chmod(0o640)
    with pytest.raises(KeyFileRefused):
        SigningKey.load(path, name="audit/checkpoint")


@pytest.mark.parametrize("password", [None, b"password"])
@pytest.mark.parametrize("kind", ["ec", "ed25519", "garbage"])
def test_anything_but_a_plain_ed25519_key_is_refused(tmp_path: Path, kind: str, password: bytes | None) -> None:
    private = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else ed25519.Ed25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    path = tmp_path / "key.pem"
    path.write_bytes(pem if kind != "garbage" else pem[40:])
    path.chmod(0o600)
    if kind == "ed25519" and password is None:
        assert SigningKey.load(path, name="a/b").public_key == private.public_key()
    else:
        with pytest.raises(KeyFileRefused):
            SigningKey.load(path, name="a/b")


@pytest.mark.parametrize("name", ["", "A/b", "a+b", "a b", "a\n", "x" * 65])
def test_name_is_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        SigningKey.create(tmp_path / "key.pem", name=name)
    assert list(tmp_path.iterdir()) == []


def test_key_is_not_in_its_representation(tmp_path: Path) -> None:
    key = SigningKey.create(tmp_path / "key.pem", name="a/b")
    assert "rivate" not in repr(key)

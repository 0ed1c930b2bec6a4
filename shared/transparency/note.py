"""Signed notes with Ed25519 keys (c2sp.org/signed-note)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.transparency.encoding import decode_base64, encode_base64
from shared.transparency.errors import Malformed, Unverified

MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 64
_ED25519 = b"\x01"
_KEY_ID_SIZE = 4
_SKEY_PREFIX = "PRIVATE+KEY+"


def _check_name(name: str) -> None:
    if not name or "+" in name or any(c.isspace() or ord(c) < 0x20 for c in name):
        raise Malformed("a key name is empty or has a space, plus or control character")


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_KEY_ID_SIZE]


def _split_key(text: str) -> tuple[str, str, bytes]:
    name, plus, rest = text.partition("+")
    key_id, second_plus, encoded = rest.partition("+")
    if not plus or not second_plus:
        raise Malformed("a key is name+id+base64")
    _check_name(name)
    key = decode_base64(encoded)
    if len(key) != 33 or key[:1] != _ED25519:
        raise Malformed("not an Ed25519 note key")
    return name, key_id, key[1:]


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """A log's name and public key, as its vkey spells it."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public) != 32:
            raise Malformed("an Ed25519 public key has 32 bytes")

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """Parse `name+id+base64`, without surrounding white space; raises `Malformed`."""
        name, key_id, public = _split_key(vkey)
        if key_id != _key_id(name, public).hex():
            raise Malformed("the key id does not match the key")
        return cls(name=name, public=public)

    @property
    def key_id(self) -> bytes:
        """The four bytes that name this key in a signature line."""
        return _key_id(self.name, self.public)

    @property
    def vkey(self) -> str:
        """The encoding that verifiers are configured with."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(_ED25519 + self.public)}"


class Signer:
    """A named Ed25519 private key. It never shows its secret, save through `skey`."""

    def __init__(self, name: str, seed: bytes) -> None:
        """Take a key name and the 32 bytes of RFC 8032's private key; raises `Malformed`."""
        if len(seed) != 32:
            raise Malformed("an Ed25519 seed has 32 bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self.verifier = Verifier(name=name, public=self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> Signer:
        """Make a new random key."""
        return cls(name, secrets.token_bytes(32))

    @classmethod
    def parse(cls, skey: str) -> Signer:
        """Parse `PRIVATE+KEY+name+id+base64`; raises `Malformed`, never quoting the text."""
        if not skey.startswith(_SKEY_PREFIX):
            raise Malformed("not a note signing key")
        name, key_id, seed = _split_key(skey.removeprefix(_SKEY_PREFIX))
        signer = cls(name, seed)
        if not hmac.compare_digest(key_id.encode(), signer.verifier.key_id.hex().encode()):
            raise Malformed("the key id does not match the key")
        return signer

    @property
    def name(self) -> str:
        """The key name, which for a log is its origin."""
        return self.verifier.name

    @property
    def skey(self) -> str:
        """The secret encoding. Callers MUST write it only where secrets are kept."""
        return f"{_SKEY_PREFIX}{self.name}+{self.verifier.key_id.hex()}+{encode_base64(_ED25519 + self._seed)}"

    def sign(self, text: str) -> str:
        """Return the note of `text`, which MUST end in a newline and hold no other control character."""
        _check_text(text)
        signature = self.verifier.key_id + self._key.sign(text.encode())
        return f"{text}\n\u2014 {self.name} {encode_base64(signature)}\n"


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any(c < " " and c != "\n" for c in text):
        raise Malformed("a note's text ends in a newline and has no other control character")


def open_note(note: str, verifiers: Sequence[Verifier]) -> str:
    """Return the text of `note` if at least one of `verifiers` signed it.

    Signatures of unknown keys are ignored, as the specification demands; one of a known key that fails
    refuses the note. Raises `Malformed` or `Unverified`.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise Malformed("the note is too large")
    split = note.rfind("\n\n")
    if split < 0 or not note.endswith("\n"):
        raise Malformed("a note is a text, an empty line and signatures")
    text, block = note[: split + 1], note[split + 2 :]
    _check_text(note)
    lines = block[:-1].split("\n")
    if not block or len(lines) > MAX_SIGNATURES:
        raise Malformed("a note has between 1 and 64 signatures")
    known = {(v.name, v.key_id): v for v in verifiers}
    verified = False
    for line in lines:
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "\u2014":
            raise Malformed("not a signature line")
        _check_name(parts[1])
        signature = decode_base64(parts[2])
        if len(signature) <= _KEY_ID_SIZE:
            raise Malformed("a signature is too short")
        verifier = known.get((parts[1], signature[:_KEY_ID_SIZE]))
        if verifier is None:
            continue
        try:
            public = Ed25519PublicKey.from_public_bytes(verifier.public)
            public.verify(signature[_KEY_ID_SIZE:], text.encode())
        except (InvalidSignature, ValueError):
            raise Unverified("a known key's signature does not verify") from None
        verified = True
    if not verified:
        raise Unverified("no known key signed the note")
    return text

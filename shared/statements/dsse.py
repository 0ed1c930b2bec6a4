"""Dead Simple Signing Envelope, version 1 (secure-systems-lab/dsse, protocol.md and envelope.md), strictly.

Stricter than DSSE asks: one signature with a key id, standard base64, and the envelope itself in canonical
JSON (RFC 8785), so that an envelope has one form and one digest.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Self

import pydantic
import rfc8785
from cryptography.exceptions import InvalidSignature

from shared import errors
from shared.keys import SigningKey
from shared.statements.trust import StatementRefused, TrustRoot

MAX_PAYLOAD_SIZE = 1 << 20
_MAX_ENVELOPE_SIZE = MAX_PAYLOAD_SIZE * 4 // 3 + 4096


class Signature(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """A signature over the pre-authentication encoding: `keyid` and the 64 bytes in base64."""

    keyid: Annotated[str, pydantic.Field(min_length=1, max_length=255)]
    sig: Annotated[str, pydantic.Field(max_length=88)]


class Envelope(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, validate_by_name=True):
    """A payload in base64, its type, and exactly one signature."""

    payload: str
    payload_type: Annotated[
        str,
        pydantic.Field(max_length=255, validation_alias="payloadType", serialization_alias="payloadType"),
    ]
    signatures: tuple[Signature]

    @classmethod
    def parse(cls, envelope: bytes) -> Self:
        """Read an envelope from its canonical JSON, verifying nothing; raises `StatementRefused`."""
        if len(envelope) > _MAX_ENVELOPE_SIZE:
            raise StatementRefused("the envelope is too large")
        try:
            parsed = cls.model_validate_json(envelope)
        except ValueError:
            raise StatementRefused("not a DSSE envelope with one signature") from None
        if parsed.to_json() != envelope:
            raise StatementRefused("the envelope is not canonical JSON")
        return parsed

    def to_json(self) -> bytes:
        """Return the canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(by_alias=True))


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding, which is what gets signed (protocol.md)."""
    encoded = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(encoded), encoded, len(payload), payload)


def sign_bytes(payload_type: str, payload: bytes, key: SigningKey) -> Signature:
    """Sign a payload of at most 1 MiB, e.g. a serialised protobuf, which MUST travel as those bytes."""
    if len(payload) > MAX_PAYLOAD_SIZE:
        raise errors.InvalidArgument("a signed payload has at most 1 MiB", field="payload")
    return Signature(keyid=key.key_id, sig=encode_base64(key.sign(pae(payload_type, payload))))


def verify_bytes(
    payload_type: str,
    payload: bytes,
    signature: Signature,
    trust: TrustRoot,
    *,
    service: str,
    kind: str,
    at: datetime,
) -> None:
    """Return only if `signature` is by a key that `trust` lists for `service` and `kind` at `at`.

    Callers MUST give as `payload` the bytes received, and parse them only afterwards. `at` (aware) is the
    time that the signature is judged by: now, or when the log took it. Raises `StatementRefused`.
    """
    if len(payload) > MAX_PAYLOAD_SIZE:
        raise StatementRefused("the payload is too large")
    key = trust.find(signature.keyid, service=service, kind=kind, at=at)
    try:
        key.verify(decode_base64(signature.sig), pae(payload_type, payload))
    except InvalidSignature:
        raise StatementRefused("the signature does not verify") from None


def encode_base64(content: bytes) -> str:
    """Return standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(content).decode()


def decode_base64(text: str) -> bytes:
    """Return the bytes; raises `StatementRefused` unless `text` is their one standard form."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise StatementRefused("not base64") from None
    if encode_base64(content) != text:
        raise StatementRefused("not base64 in its one standard form")
    return content

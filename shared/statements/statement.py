"""in-toto Statements, version 1 (in-toto/attestation, spec/v1/statement.md), signed in DSSE envelopes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

import pydantic
import rfc8785

from shared import errors
from shared.keys import SigningKey
from shared.statements.dsse import Envelope, decode_base64, encode_base64, sign_bytes, verify_bytes
from shared.statements.trust import StatementRefused, TrustRoot

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MAX_SUBJECTS = 1024

_Name = Annotated[str, pydantic.Field(min_length=1, max_length=2048)]


class Digest(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """A digest set (in-toto spec/v1/digest_set.md) of the one algorithm used here."""

    sha256: Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Subject(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """An artefact that a statement is about."""

    name: _Name
    digest: Digest


class Statement(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, validate_by_name=True):
    """What is claimed (`predicate`, of `predicate_type`) about which artefacts."""

    type_: Annotated[
        Literal["https://in-toto.io/Statement/v1"],
        pydantic.Field(validation_alias="_type", serialization_alias="_type"),
    ] = "https://in-toto.io/Statement/v1"
    subject: Annotated[tuple[Subject, ...], pydantic.Field(min_length=1, max_length=_MAX_SUBJECTS)]
    predicate_type: Annotated[
        _Name, pydantic.Field(validation_alias="predicateType", serialization_alias="predicateType")
    ]
    predicate: dict[str, pydantic.JsonValue]

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Read a Statement from its canonical JSON; raises `ValueError` for any other bytes."""
        statement = cls.model_validate_json(payload)
        if statement.to_json() != payload:
            raise ValueError("not canonical JSON")
        return statement

    def to_json(self) -> bytes:
        """Return the canonical JSON (RFC 8785); raises `ValueError` for what that cannot hold."""
        return rfc8785.dumps(self.model_dump(by_alias=True))


def sign(statement: Statement, key: SigningKey) -> Envelope:
    """Return `statement` in a signed envelope.

    Raises `InvalidArgument` for what `verify` would refuse: over 1 MiB, whole numbers from 2**53, NaN, deep
    nesting.
    """
    try:
        payload = statement.to_json()
        Statement.parse(payload)
    except ValueError:
        raise errors.InvalidArgument("canonical JSON cannot hold this predicate", field="predicate") from None
    signature = sign_bytes(PAYLOAD_TYPE, payload, key)
    return Envelope(payload=encode_base64(payload), payload_type=PAYLOAD_TYPE, signatures=(signature,))


def verify(
    envelope: bytes, trust: TrustRoot, *, service: str, kind: str, predicate_type: str, at: datetime
) -> Statement:
    """Return the statement in `envelope`, or raise `StatementRefused`; no predicate is read before:

    1. the envelope is within its size, canonical JSON, without other members, and has one signature;
    2. its payload type is in-toto's;
    3. `trust` lists the signing key for `service` and `kind` at the time `at`, and the signature verifies;
    4. the payload is canonical JSON (so no member occurs twice) of a Statement without other members;
    5. it is of `predicate_type`.
    """
    parsed = Envelope.parse(envelope)
    if parsed.payload_type != PAYLOAD_TYPE:
        raise StatementRefused("the payload is not an in-toto Statement")
    payload = decode_base64(parsed.payload)
    verify_bytes(PAYLOAD_TYPE, payload, parsed.signatures[0], trust, service=service, kind=kind, at=at)
    try:
        statement = Statement.parse(payload)
    except ValueError:
        raise StatementRefused("the payload is not an in-toto Statement in canonical JSON") from None
    if statement.predicate_type != predicate_type:
        raise StatementRefused("the statement has another predicate type")
    return statement

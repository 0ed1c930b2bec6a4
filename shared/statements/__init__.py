"""Signed statements: in-toto Statements in DSSE envelopes, and the trust root that says whose to believe."""

from shared.statements.dsse import (
    MAX_PAYLOAD_SIZE,
    Envelope,
    Signature,
    pae,
    sign_bytes,
    verify_bytes,
)
from shared.statements.statement import Digest, Statement, Subject, sign, verify
from shared.statements.trust import StatementRefused, TrustedKey, TrustRoot

__all__ = [
    "MAX_PAYLOAD_SIZE",
    "Digest",
    "Envelope",
    "Signature",
    "Statement",
    "StatementRefused",
    "Subject",
    "TrustRoot",
    "TrustedKey",
    "pae",
    "sign",
    "sign_bytes",
    "verify",
    "verify_bytes",
]

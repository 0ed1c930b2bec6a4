"""Every kind of caller, and what the method table promises each of them."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import json
from pathlib import Path

import grpc
import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import load_pem_x509_certificate

from shared.identity.authority import CertificateAuthority
from shared.identity.tokens import thumbprint
from shared.rpc.methods import Auth, Method
from tests.suite import Suite


class Caller(enum.Enum):
    """The columns of the matrix."""

    NO_CERTIFICATE = "no certificate"
    FOREIGN_CA = "certificate of another CA"
    FALSE_SERVICE = "client certificate that names itself a service"
    NO_TOKEN = "no token"
    EXPIRED = "expired token"
    WRONG_AUDIENCE = "token for another audience"
    ALG_NONE = "token with alg none"
    OTHER_CERTIFICATE = "token of another certificate"
    WRONG_ROLE = "wrong role"
    WITHOUT_MFA = "right role without MFA"
    RIGHT = "right"
    MALFORMED = "malformed bytes"
    TOO_LARGE = "too large"


HANDSHAKE = (Caller.NO_CERTIFICATE, Caller.FOREIGN_CA)
BAD_TOKENS = (Caller.NO_TOKEN, Caller.EXPIRED, Caller.WRONG_AUDIENCE, Caller.ALG_NONE, Caller.OTHER_CERTIFICATE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What a cell must show. `reasons` empty: anything that is not a refusal of the caller."""

    code: grpc.StatusCode | None
    reasons: frozenset[str] = frozenset()
    recorded: frozenset[str] = frozenset()


def expected(row: Method, caller: Caller) -> Expected | None:
    """Return what the architecture promises for a method of this row and a caller; None where the cell has no sense."""
    if caller in HANDSHAKE:
        return Expected(code=grpc.StatusCode.UNAVAILABLE)
    denied = Expected(
        code=grpc.StatusCode.PERMISSION_DENIED,
        reasons=frozenset({"PERMISSION_DENIED"}),
        recorded=frozenset({"denied"}),
    )
    unauthenticated = Expected(code=grpc.StatusCode.UNAUTHENTICATED, reasons=frozenset({"UNAUTHENTICATED"}))
    not_a_peer = Expected(code=grpc.StatusCode.PERMISSION_DENIED, reasons=frozenset({"PEER_NOT_ALLOWED"}))
    guarded = row.auth in (Auth.POLICY, Auth.SESSION)
    if caller is Caller.FALSE_SERVICE:
        return {Auth.PEER: not_a_peer, Auth.PUBLIC: None}.get(row.auth, unauthenticated)
    if caller in BAD_TOKENS:
        return {Auth.PEER: not_a_peer, Auth.PUBLIC: Expected(code=None)}.get(row.auth, unauthenticated)
    if caller is Caller.WRONG_ROLE:
        return denied if guarded else None
    if caller is Caller.WITHOUT_MFA:
        return denied if row.mfa else None
    if caller is Caller.RIGHT:
        return Expected(code=None)
    refused = frozenset({"refused"}) if guarded else frozenset()
    reason = "MALFORMED_REQUEST" if caller is Caller.MALFORMED else "MESSAGE_TOO_LARGE"
    return Expected(code=grpc.StatusCode.INVALID_ARGUMENT, reasons=frozenset({reason}), recorded=refused)


def forge(suite: Suite, caller: Caller, token: str, certificate: Path) -> str:
    """Return a token like `token` with the one fault that `caller` names, signed by the true key where that can be."""
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    now = int(dt.datetime.now(dt.UTC).timestamp())
    if caller is Caller.EXPIRED:
        claims |= {"iat": now - 1000, "nbf": now - 1000, "exp": now - 60}
    elif caller is Caller.WRONG_AUDIENCE:
        claims["aud"] = "somebody-else"
    elif caller is Caller.OTHER_CERTIFICATE:
        leaf = load_pem_x509_certificate(certificate.read_bytes())
        claims["cnf"] = {"x5t#S256": thumbprint(leaf.fingerprint(hashes.SHA256()))}
    elif caller is Caller.ALG_NONE:
        parts = [json.dumps(part).encode() for part in ({**header, "alg": "none"}, claims)]
        return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."
    key = serialization.load_pem_private_key((suite.home / "policy-guard" / "identity.pem").read_bytes(), None)
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": header["kid"]})


def false_pki(suite: Suite, folder: Path) -> None:
    """Make the certificates that must not get anywhere: one of another CA, one of ours with a service's DNS name."""
    foreign = CertificateAuthority.create(folder / "foreign", trust_domain="bastide.local")
    foreign.issue("model-server", folder / "foreign" / "model-server", dns="model-server.bastide.local")
    ours = CertificateAuthority(suite.home / "pki", trust_domain="bastide.local")
    for service in ("data-prep", "trainer"):
        ours.issue(service, suite.home / "pki" / service, dns=f"{service}.bastide.local")
    ours.issue("client/audit", suite.home / "pki" / "clients" / "false-service", dns="audit.bastide.local")

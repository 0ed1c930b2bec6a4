"""Every kind of caller, and what the promises of a method come to for each of them."""

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
from shared.rpc.methods import Auth
from tests.contract.promises import NOT_REGISTERED, Outcome, Promise
from tests.suite import Suite

SERVICES = ("audit", "policy-guard", "model-server", "data-prep", "trainer")


class Caller(enum.Enum):
    """The columns of the matrix. A false service is a client of ours whose certificate names itself a service."""

    NO_CERTIFICATE = "no certificate"
    FOREIGN_CA = "certificate of another CA"
    OTHER_SERVICE = "service that is no peer"
    FALSE_SERVICE = "false service"
    FALSE_SERVICE_USER = "false service with the token of a user"
    FALSE_SERVICE_BACKEND = "false service with the token of a backend"
    FALSE_SERVICE_NOBODY = "false service with a token of its own and no role"
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
FALSE_SERVICES = (
    Caller.FALSE_SERVICE,
    Caller.FALSE_SERVICE_USER,
    Caller.FALSE_SERVICE_BACKEND,
    Caller.FALSE_SERVICE_NOBODY,
)
BAD_TOKENS = (Caller.NO_TOKEN, Caller.EXPIRED, Caller.WRONG_AUDIENCE, Caller.ALG_NONE, Caller.OTHER_CERTIFICATE)
PEERS = (Caller.RIGHT, Caller.MALFORMED, Caller.TOO_LARGE)
"""Who comes to a peer method with the certificate of one of its peers."""

UNREACHABLE = Outcome(code=grpc.StatusCode.UNAVAILABLE)
UNAUTHENTICATED = Outcome(code=grpc.StatusCode.UNAUTHENTICATED, reason="UNAUTHENTICATED")
NOT_A_PEER = Outcome(code=grpc.StatusCode.PERMISSION_DENIED, reason="PEER_NOT_ALLOWED")
DENIED = Outcome(code=grpc.StatusCode.PERMISSION_DENIED, reason="PERMISSION_DENIED")
MALFORMED = Outcome(code=grpc.StatusCode.INVALID_ARGUMENT, reason="MALFORMED_REQUEST")
TOO_LARGE = Outcome(code=grpc.StatusCode.INVALID_ARGUMENT, reason="MESSAGE_TOO_LARGE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What a cell must show: the answer, and the kinds of records, in order, that the call leaves of its own."""

    outcome: Outcome
    recorded: tuple[str, ...] = ()

    @property
    def counted(self) -> bool:
        """Whether the refusal stands in the log as one of a number, not alone."""
        return self.outcome in (NOT_A_PEER, NOT_REGISTERED) or self.outcome.code is grpc.StatusCode.UNAUTHENTICATED


def expected(promise: Promise, caller: Caller) -> Expected | None:
    """Return what `promise` comes to for `caller`; None where the cell has no sense."""
    if caller in HANDSHAKE:
        return Expected(outcome=UNREACHABLE)
    if promise.auth is Auth.PUBLIC:
        return _of_public(promise, caller)
    if promise.auth is Auth.PEER:
        return _of_peers(promise, caller)
    if caller is Caller.OTHER_SERVICE or (caller is Caller.WITHOUT_MFA and not promise.mfa):
        return None
    if caller in (Caller.WRONG_ROLE, Caller.WITHOUT_MFA, Caller.FALSE_SERVICE_NOBODY):
        return Expected(outcome=DENIED, recorded=("denied",))
    if caller in BAD_TOKENS or caller in FALSE_SERVICES:
        return Expected(outcome=UNAUTHENTICATED)
    return _with_request(promise, caller, refused=("refused",))


def _of_public(promise: Promise, caller: Caller) -> Expected | None:
    if caller is Caller.FALSE_SERVICE and promise.unregistered is not None:
        return Expected(outcome=promise.unregistered)
    if caller in BAD_TOKENS or caller is Caller.FALSE_SERVICE:
        return Expected(outcome=promise.right, recorded=promise.recorded)
    return _with_request(promise, caller, refused=()) if caller in PEERS else None


def _of_peers(promise: Promise, caller: Caller) -> Expected | None:
    if caller in BAD_TOKENS or caller in FALSE_SERVICES or caller is Caller.OTHER_SERVICE:
        return Expected(outcome=NOT_A_PEER)
    return _with_request(promise, caller, refused=()) if caller in PEERS else None


def _with_request(promise: Promise, caller: Caller, *, refused: tuple[str, ...]) -> Expected:
    if caller is Caller.RIGHT:
        return Expected(outcome=promise.right, recorded=promise.recorded)
    return Expected(outcome=MALFORMED if caller is Caller.MALFORMED else TOO_LARGE, recorded=refused)


def certificate_of(promise: Promise, method: str, caller: Caller) -> str:
    """Return the name of the certificate with which `caller` comes to `method`."""
    if caller is Caller.OTHER_SERVICE:
        return next(name for name in SERVICES if name not in promise.peers)
    if caller in FALSE_SERVICES:
        # Where peers may call, it names itself one of them.
        return f"false-{min(promise.peers, default='audit')}"
    if promise.auth is Auth.PEER and caller in PEERS:
        return min(promise.peers)
    return "example-backend" if method.endswith("/IssueWorkloadToken") else "cli"


def forge(suite: Suite, caller: Caller, token: str, certificate: Path) -> str:
    """Return a token like `token` with the one fault that `caller` names, signed by the true key where that can be.

    For those who come with a token of another certificate, or of their own, it is bound to `certificate`.
    """
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    now = int(dt.datetime.now(dt.UTC).timestamp())
    if caller is Caller.EXPIRED:
        claims |= {"iat": now - 1000, "nbf": now - 1000, "exp": now - 60}
    elif caller is Caller.WRONG_AUDIENCE:
        claims["aud"] = "somebody-else"
    elif caller in (Caller.OTHER_CERTIFICATE, Caller.FALSE_SERVICE_NOBODY):
        leaf = load_pem_x509_certificate(certificate.read_bytes())
        claims["cnf"] = {"x5t#S256": thumbprint(leaf.fingerprint(hashes.SHA256()))}
    elif caller is Caller.ALG_NONE:
        parts = [json.dumps(part).encode() for part in ({**header, "alg": "none"}, claims)]
        return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."
    key = serialization.load_pem_private_key((suite.home / "policy-guard" / "identity.pem").read_bytes(), None)
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": header["kid"]})


def false_pki(suite: Suite, folder: Path) -> None:
    """Make the certificates of another CA, of clients that name themselves services, and of services not started."""
    foreign = CertificateAuthority.create(folder / "foreign", trust_domain="bastide.local")
    foreign.issue("model-server", folder / "foreign" / "model-server", dns="model-server.bastide.local")
    ours = CertificateAuthority(suite.home / "pki", trust_domain="bastide.local")
    for service in SERVICES:
        dns = f"{service}.bastide.local"
        ours.issue(f"client/{service}", suite.home / "pki" / "clients" / f"false-{service}", dns=dns)
        if not (suite.home / service).exists():
            ours.issue(service, suite.home / service / "tls", dns=dns)

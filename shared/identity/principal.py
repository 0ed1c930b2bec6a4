"""Workloads and principals as the rest of the suite sees them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from shared.errors import Unauthenticated


class Kind(enum.Enum):
    """Whether a person or a backend was authenticated."""

    PERSON = "person"
    WORKLOAD = "workload"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The process at the other end of the connection: its SPIFFE id and its certificate's SHA-256 (32 bytes)."""

    spiffe_id: str
    certificate_sha256: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Principal:
    """A person or backend together with the workload it acts through. `tenant` is never empty."""

    subject: str
    kind: Kind
    tenant: str
    roles: tuple[str, ...]
    amr: tuple[str, ...]
    authenticated_at: dt.datetime | None
    workload: Workload


def workload_from_certificate(pem: bytes, *, trust_domain: str) -> Workload:
    """Return the workload that a leaf certificate names.

    The certificate MUST already be verified by the TLS handshake. Raises Unauthenticated unless it carries exactly one
    URI SAN within `trust_domain` (SPIFFE X.509-SVID, section 2).
    """
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Unauthenticated("the client certificate names no workload") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(f"spiffe://{trust_domain}/"):
        raise Unauthenticated("the client certificate names no workload of this trust domain")
    return Workload(spiffe_id=uris[0], certificate_sha256=certificate.fingerprint(hashes.SHA256()))

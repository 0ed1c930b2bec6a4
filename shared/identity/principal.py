"""Workloads and principals as the rest of the suite sees them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import re
import urllib.parse

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from shared.errors import Unauthenticated

# As wide as the stores' columns.
_MAX_LENGTH = 255
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[a-zA-Z0-9._-]+)+")


class Kind(enum.Enum):
    """Whether a person or a backend was authenticated."""

    PERSON = "person"
    WORKLOAD = "workload"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """The process at the other end of the connection: its SPIFFE id and its certificate's SHA-256 (32 bytes)."""

    spiffe_id: str
    certificate_sha256: bytes

    @property
    def is_client(self) -> bool:
        """Whether it is a caller (`/client/<name>`) rather than a service of the suite."""
        return urllib.parse.urlsplit(self.spiffe_id).path.startswith("/client/")


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
    URI SAN (SPIFFE X.509-SVID, section 2), a SPIFFE ID of `trust_domain` (SPIFFE-ID, section 2) of at most 255 bytes.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise Unauthenticated("the client certificate names no workload") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    path = uris[0].removeprefix(f"spiffe://{trust_domain}") if len(uris) == 1 else ""
    if not _PATH.fullmatch(path) or len(uris[0]) > _MAX_LENGTH:
        raise Unauthenticated("the client certificate names no workload of this trust domain")
    return Workload(spiffe_id=uris[0], certificate_sha256=certificate.fingerprint(hashes.SHA256()))

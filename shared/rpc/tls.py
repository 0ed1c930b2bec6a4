"""Mutual TLS 1.3 for servers and channels, with certificates that are read again when their files change."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import grpc
import pydantic
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from prometheus_client import Gauge

from shared.config import Settings
from shared.keys import KeyFileRefused, files

# Its group may read it: that is how a secret volume gives a file to a process that is not root.
_WIDER_THAN_0640 = 0o137

EXPIRATION = Gauge(
    "bastide_certificate_expiration_timestamp_seconds",
    "When the first certificate ends, in the chain in use (`own`) or among the authorities trusted (`authority`).",
    ["certificate"],
)


class TlsSettings(Settings):
    """This workload's certificate and the authorities it trusts."""

    certificate: Path = pydantic.Field(description="PEM chain of this workload; read again when it changes.")
    key: Path = pydantic.Field(description="PEM private key of the certificate; no wider than 0640.")
    ca: Path = pydantic.Field(description="PEM bundle of the authorities that peers' certificates must chain to.")
    trust_domain: str = pydantic.Field(
        default="bastide.local", description="SPIFFE trust domain; certificates of another are refused."
    )


class Certificates:
    """The files of one workload's identity and whether they changed since they were last read."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read on first use."""
        self._settings = settings
        self._stamp: tuple[int, ...] | None = None
        self._end: dt.datetime | None = None

    def changed(self) -> bool:
        """Say whether any file differs from what `read` last saw."""
        return self._now() != self._stamp

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return key, certificate chain and CA bundle.

        Raises OSError, also where a file holds no certificates, and KeyFileRefused where others may see the key.
        """
        stamp = self._now()
        key = files.read(self._settings.key, forbidden_mode=_WIDER_THAN_0640)
        chain, ca = self._settings.certificate.read_bytes(), self._settings.ca.read_bytes()
        own, authority = first_end(chain), first_end(ca)
        _check_pair(key, chain)
        EXPIRATION.labels("own").set(own.timestamp())
        EXPIRATION.labels("authority").set(authority.timestamp())
        self._end = own
        self._stamp = stamp
        return key, chain, ca

    def expired(self) -> dt.datetime | None:
        """Return when this workload's certificate ended, None while it counts. Reads the files when they changed.

        Nobody connects to a workload whose certificate has ended, and neither side's TLS says why.
        """
        try:
            if self.changed():
                self.read()
        except (OSError, KeyFileRefused):
            pass  # half-replaced files: what was read last is what is used
        ended = self._end is not None and self._end <= dt.datetime.now(dt.UTC)
        return self._end if ended else None

    def _now(self) -> tuple[int, ...]:
        paths = (self._settings.key, self._settings.certificate, self._settings.ca)
        return tuple(value for path in paths for value in (path.stat().st_mtime_ns, path.stat().st_ino))


def first_end(pem: bytes) -> dt.datetime:
    """Return when the first certificate in `pem` ends, in UTC. Raises OSError where it holds no certificates."""
    try:
        return min(item.not_valid_after_utc for item in x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise OSError("a certificate file is not whole, or holds something else") from error


def _check_pair(key: bytes, chain: bytes) -> None:
    try:
        public = serialization.load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OSError("the private key is not whole, or holds something else") from error
    if public != x509.load_pem_x509_certificates(chain)[0].public_key():
        raise OSError("the private key is not the certificate's")


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials:
    """Return credentials that demand a client certificate and follow the files. gRPC calls back on other threads."""
    certificates = Certificates(settings)

    def configuration() -> grpc.ServerCertificateConfiguration:
        key, chain, ca = certificates.read()
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            return configuration() if certificates.changed() else None
        except (OSError, KeyFileRefused):
            # Half-replaced files: the certificate in use stays until the next handshake finds them whole.
            return None

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        fetch,  # type: ignore[arg-type]  # gRPC documents None as "no change"; the stubs do not
        require_client_authentication=True,
    )

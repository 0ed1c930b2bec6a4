"""The local certificate authority of a development set-up. In a cluster cert-manager or SPIRE issues instead."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.keys import files

CA_LIFETIME = dt.timedelta(days=365)
LEAF_LIFETIME = dt.timedelta(days=7)
# Clocks of one site differ by seconds; a certificate must not be refused for that.
SKEW = dt.timedelta(minutes=5)


class CertificateAuthority:
    """Issues short-lived ECDSA leaves under one ECDSA root kept in `folder` (`ca.pem`, `ca.key` with mode 0600)."""

    def __init__(self, folder: Path, *, trust_domain: str) -> None:
        """Load the authority in `folder`.

        Raises FileNotFoundError when `create` was never called there, KeyFileRefused when others may see its key.
        """
        self.folder = folder
        self.trust_domain = trust_domain
        self._certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key(
            files.read(folder / "ca.key", forbidden_mode=files.PRIVATE), password=None
        )
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("ca.key is not an EC key")
        self._key = key

    @classmethod
    def create(cls, folder: Path, *, trust_domain: str) -> CertificateAuthority:
        """Create a root for `trust_domain` in `folder`, which must not hold one."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bastide development CA of {trust_domain}")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca.key", _pem(key), mode=0o600)
        _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return cls(folder, trust_domain=trust_domain)

    def issue(self, path: str, target: Path, *, dns: str, lifetime: dt.timedelta = LEAF_LIFETIME) -> None:
        """Write `<target>.pem` and `<target>.key` for the workload `spiffe://<trust-domain>/<path>`.

        `dns` is what clients of that workload verify; clients get one too, which nobody verifies.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path[-64:])]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(min(now + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}/{path}"),
                        x509.DNSName(dns),
                    ]
                ),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not `with_suffix`: a name may hold a dot, and what stands behind it belongs to the name.
        _write(target.with_name(f"{target.name}.key"), _pem(key), mode=0o600)
        _write(target.with_name(f"{target.name}.pem"), certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Replace `path` in one step, so that a reloading server never reads half a file."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

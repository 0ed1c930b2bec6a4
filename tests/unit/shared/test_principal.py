"""Which certificates name a workload."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import Unauthenticated
from shared.identity.principal import workload_from_certificate

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(*names: str) -> bytes:
    """Return a certificate of these URI SANs."""
    subject, now = x509.Name([]), dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(subject, subject, KEY.public_key(), 1, now, now + dt.timedelta(hours=1))
    if names:
        # Without what the library would check of them: an attacker's certificate is not made by it.
        uris = [x509.UniformResourceIdentifier._init_without_validation(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("spiffe://bastide.local/model-server", False),
        ("spiffe://bastide.local/client/example-backend", True),
        ("spiffe://bastide.local/ns/prod/sa/client", False),
        ("spiffe://bastide.local/client/v1.2_x", True),
    ],
)
def test_a_spiffe_id_of_the_trust_domain_is_the_workload(name: str, client: bool) -> None:
    found = workload_from_certificate(certificate(name), trust_domain="bastide.local")
    assert found.spiffe_id == name
    assert found.is_client is client


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("spiffe://bastide.local/a", "spiffe://bastide.local/b"),
        ("spiffe://other.example/model-server",),
        ("spiffe://bastide.local.evil/model-server",),
        ("SPIFFE://bastide.local/model-server",),
        ("spiffe://bastide.local",),
        ("spiffe://bastide.local/",),
        ("spiffe://bastide.local/model-server/",),
        ("spiffe://bastide.local//model-server",),
        ("spiffe://bastide.local/model%2Dserver",),
        ("spiffe://bastide.local/client/../model-server",),
        ("spiffe://bastide.local/./model-server",),
        ("spiffe://bastide.local/client/a b",),
        ("spiffe://bastide.local/model-server?x",),
        ("spiffe://bastide.local/model-server\n",),
        ("spiffe://bastide.local/" + "a" * 255,),
    ],
    ids=str,
)
def test_anything_else_is_nobody(names: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated):
        workload_from_certificate(certificate(*names), trust_domain="bastide.local")


def test_what_is_no_certificate_is_nobody() -> None:
    with pytest.raises(Unauthenticated):
        workload_from_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", trust_domain="x")

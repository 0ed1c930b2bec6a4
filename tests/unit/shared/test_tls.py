"""Certificate files: what is in use, until when, and what is not yet whole."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509

from shared.identity.authority import CertificateAuthority
from shared.keys import KeyFileRefused
from shared.rpc.tls import Certificates, TlsSettings
from tests.metrics import scraped

NAME = "bastide_certificate_expiration_timestamp_seconds"


def issue(folder: Path, *, days: int) -> None:
    authority = CertificateAuthority(folder, trust_domain="test")
    authority.issue("audit", folder / "audit", dns="audit.test", lifetime=dt.timedelta(days=days))


def ends(file: Path) -> list[float]:
    return [item.not_valid_after_utc.timestamp() for item in x509.load_pem_x509_certificates(file.read_bytes())]


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    CertificateAuthority.create(tmp_path / "pki", trust_domain="test")
    issue(tmp_path / "pki", days=7)
    return tmp_path / "pki"


@pytest.fixture
def certificates(pki: Path) -> Certificates:
    return Certificates(TlsSettings(certificate=pki / "audit.pem", key=pki / "audit.key", ca=pki / "ca.pem"))


def test_the_ends_of_the_certificates_in_use_are_shown(pki: Path, certificates: Certificates) -> None:
    certificates.read()
    (first,) = ends(pki / "audit.pem")
    assert scraped(NAME, certificate="own") == first
    assert [scraped(NAME, certificate="authority")] == ends(pki / "ca.pem")
    issue(pki, days=30)
    assert scraped(NAME, certificate="own") == first
    assert certificates.changed()
    certificates.read()
    assert [scraped(NAME, certificate="own")] == ends(pki / "audit.pem") != [first]


def test_of_several_certificates_the_first_to_end_counts(pki: Path, certificates: Certificates) -> None:
    file = pki / "ca.pem"
    file.write_bytes(file.read_bytes() + (pki / "audit.pem").read_bytes())
    certificates.read()
    assert scraped(NAME, certificate="authority") == min(ends(file)) < max(ends(file))


@pytest.mark.parametrize("file", ["audit.pem", "ca.pem"])
def test_a_file_that_is_not_whole_is_refused_until_it_is(pki: Path, certificates: Certificates, file: str) -> None:
    whole = (pki / file).read_bytes()
    certificates.read()
    shown = scraped(NAME, certificate="own")
    for part in (b"", whole[: len(whole) // 2]):
        (pki / file).write_bytes(part)
        with pytest.raises(OSError, match="not whole"):
            certificates.read()
        assert certificates.changed()
    assert scraped(NAME, certificate="own") == shown
    (pki / file).write_bytes(whole)
    certificates.read()
    assert not certificates.changed()


def test_a_key_that_is_not_yet_the_certificate_s_is_refused_until_it_is(pki: Path, certificates: Certificates) -> None:
    certificates.read()
    chain = (pki / "audit.pem").read_bytes()
    issue(pki, days=7)
    renewed = (pki / "audit.pem").read_bytes()
    (pki / "audit.pem").write_bytes(chain)
    with pytest.raises(OSError, match="not the certificate's"):
        certificates.read()
    assert certificates.changed()
    (pki / "audit.pem").write_bytes(renewed)
    certificates.read()


@pytest.mark.parametrize("mode", [0o604, 0o660, 0o755])
def test_a_key_that_others_may_see_or_change_is_refused(pki: Path, certificates: Certificates, mode: int) -> None:
    (pki / "audit.key").chmod(mode)
    with pytest.raises(KeyFileRefused):
        certificates.read()
    (pki / "audit.key").chmod(0o640)
    certificates.read()


def test_a_certificate_that_has_ended_is_told_until_it_is_replaced(pki: Path, certificates: Certificates) -> None:
    assert certificates.expired() is None
    CertificateAuthority(pki, trust_domain="test").issue(
        "audit", pki / "audit", dns="audit.test", lifetime=dt.timedelta(seconds=-1)
    )
    ended = certificates.expired()
    assert ended is not None
    assert [ended.timestamp()] == ends(pki / "audit.pem")
    (pki / "audit.pem").write_bytes(b"half")
    assert certificates.expired() == ended
    issue(pki, days=7)
    assert certificates.expired() is None

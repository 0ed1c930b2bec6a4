"""Tokens and second factors kept in files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pyotp
import pytest

from shared.cli.authenticator import Authenticator, secret_of
from shared.cli.credentials import Credential, Credentials
from shared.cli.failures import Failure
from shared.keys.files import KeyFileRefused

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


class Time:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def credential(subject: str, *, seconds: float = 900) -> Credential:
    return Credential(subject=subject, client="cli", expires_at=time.time() + seconds, token="secret-token")


def test_the_last_to_sign_in_is_the_default(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "cli")
    credentials.save(credential("ada@example.org"))
    os.utime(tmp_path / "cli" / "ada@example.org.json", (1, 1))
    credentials.save(credential("ben@example.org"))
    assert credentials.get().subject == "ben@example.org"
    assert credentials.get("ada@example.org").subject == "ada@example.org"


def test_a_new_token_takes_the_place_of_the_old_one_and_is_private(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "cli")
    credentials.save(credential("ada@example.org", seconds=-1))
    credentials.save(credential("ada@example.org"))
    assert credentials.get("ada@example.org").token == "secret-token"
    (path,) = (tmp_path / "cli").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_expired_token_is_not_used(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "cli")
    credentials.save(credential("ada@example.org", seconds=1))
    with pytest.raises(Failure, match=r"expired: bastide login ada@example\.org"):
        credentials.get("ada@example.org")


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "cli")
    credentials.save(credential("ada@example.org"))
    (tmp_path / "cli" / "ada@example.org.json").chmod(0o644)
    with pytest.raises(KeyFileRefused):
        credentials.get("ada@example.org")


@pytest.mark.parametrize("subject", ["../ada", "a/b", "", ".hidden"])
def test_a_subject_never_leads_out_of_the_folder(tmp_path: Path, subject: str) -> None:
    with pytest.raises(Failure, match="not a subject"):
        Credentials(tmp_path / "cli").save(credential(subject))


def test_a_token_never_shows_in_a_repr() -> None:
    assert "secret-token" not in repr(credential("ada@example.org"))


def test_codes_are_those_of_an_authenticator(tmp_path: Path) -> None:
    clock = Time(1_800_000_010.0)
    authenticator = Authenticator(tmp_path / "totp", now=clock, sleep=clock.sleep)
    authenticator.create(SECRET)
    assert authenticator.code() == pyotp.TOTP(SECRET).at(int(clock.now))


def test_no_code_is_given_twice_and_none_further_ahead_than_a_server_accepts(tmp_path: Path) -> None:
    clock = Time(1_800_000_010.0)
    codes = []
    for _ in range(4):
        authenticator = Authenticator(tmp_path / "totp", now=clock, sleep=clock.sleep)
        if not codes:
            authenticator.create(SECRET)
        codes.append(authenticator.code())
        steps = [step for step in (0, 1) if pyotp.TOTP(SECRET).at(int(clock.now) + 30 * step) == codes[-1]]
        assert steps
    assert len(set(codes)) == 4
    assert clock.now < 1_800_000_010.0 + 4 * 30


def test_the_secret_is_read_out_of_the_uri() -> None:
    uri = pyotp.TOTP(SECRET).provisioning_uri(name="ada@example.org", issuer_name="Bastide")
    assert secret_of(uri) == SECRET
    with pytest.raises(Failure):
        secret_of("https://example.org/?secret=x")


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"token": "x"})])
def test_a_damaged_token_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    credentials = Credentials(tmp_path / "cli")
    credentials.save(credential("ada@example.org"))
    (tmp_path / "cli" / "ada@example.org.json").write_text(text)
    with pytest.raises(Failure, match="does not hold a token"):
        credentials.get("ada@example.org")

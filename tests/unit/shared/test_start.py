"""What keeps a service from starting is said in one line, and known before it starts where it can be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.cli.setup import create

AUDIT = [sys.executable, "-m", "services.audit"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("start") / "home"
    create(home, clients=("cli",))
    return home


def run(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    settings = {f"BASTIDE_AUDIT_{name}": value for name, value in variables.items()}
    settings = {"BASTIDE_AUDIT_SERVER__LISTEN": "127.0.0.1:0", "BASTIDE_AUDIT_SERVER__PROBES": "127.0.0.1:0"} | settings
    return subprocess.run(
        [*AUDIT, "--config", str(home / "audit" / "audit.toml"), *arguments],
        check=False, env=os.environ | settings, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def refusal(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the one line with which a service refused."""
    assert ended.returncode == 1, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if '"refused"' in line]
    assert "Traceback" not in ended.stderr
    found: dict[str, str] = json.loads(line)
    return found


def test_a_database_that_was_not_migrated_is_refused(home: Path, tmp_path: Path) -> None:
    found = refusal(run(home, RECORDS=f"sqlite:///{tmp_path}/new.db"))
    assert found["reason"] == "SCHEMA_MISMATCH"
    assert "migrate" in found["message"]


@pytest.mark.parametrize("mode", [0o604, 0o660, 0o700])
def test_a_certificates_key_that_others_may_see_is_refused(home: Path, mode: int) -> None:
    assert run(home, "migrate").returncode == 0
    key = home / "audit" / "tls.key"
    key.chmod(mode)
    try:
        assert refusal(run(home))["reason"] == "KEY_FILE_REFUSED"
    finally:
        key.chmod(0o600)


@pytest.mark.parametrize("setting", ["SERVER__LISTEN", "SERVER__PROBES"])
def test_an_address_that_is_taken_is_named(home: Path, setting: str) -> None:
    assert run(home, "migrate").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = refusal(run(home, **{setting: address}))
    assert found["message"].startswith(f"{address}: ")


def test_a_missing_certificate_is_named(home: Path) -> None:
    assert run(home, "migrate").returncode == 0
    found = refusal(run(home, SERVER__TLS__CERTIFICATE="/nowhere/audit.pem"))
    assert found["message"] == "/nowhere/audit.pem: No such file or directory"


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("SERVER__OBSERVABILITY__LOG_LEVEL", "info", "server.observability.log_level"),
        ("SERVER__ISSUERS__ISSUER", "x", "SERVER__ISSUERS__ISSUER: issuers is no table"),
        ("SERVER__NO_SUCH", "x", "SERVER__NO_SUCH: no such setting"),
    ],
)
def test_a_bad_variable_is_refused_by_name_before_the_start(
    home: Path, variable: str, value: str, complaint: str
) -> None:
    ended = run(home, "--check-config", **{variable: value})
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr

"""`bastide init`, `client add`, and what commands say where there is no set-up or no service."""

from __future__ import annotations

import datetime as dt
import errno
from pathlib import Path

import pytest
from cryptography import x509

from shared.cli import setup
from shared.cli.supervisor import Process
from shared.identity.authority import CertificateAuthority
from tests.unit.cli.conftest import Bastide, document


def test_init_makes_a_set_up_with_the_clients_that_are_named(bastide: Bastide, tmp_path: Path) -> None:
    result = bastide("init", "--client", "portal", "--json")
    assert result.exit_code == 0, result.output
    assert document(result)["clients"] == ["cli", "portal"]
    assert (tmp_path / "home" / "pki" / "clients" / "portal.pem").is_file()
    assert (tmp_path / "home" / "policy-guard" / "policy-guard.toml").is_file()


def test_init_refuses_a_folder_that_is_not_empty(bastide: Bastide, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("mine")
    result = bastide("init")
    assert result.exit_code == 1
    assert "is not empty" in " ".join(result.stderr.replace("│", " ").split())
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["precious"]


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_command_too_early_leaves_the_folder_to_init(bastide: Bastide, command: str) -> None:
    early = bastide(command)
    assert early.exit_code == 1
    assert "init" in early.stderr
    assert bastide("init").exit_code == 0


def test_an_init_that_fails_leaves_the_folder_to_another(
    bastide: Bastide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shared.cli.setup.key_set", full)
        failed = bastide("init", "--json")
    assert failed.exit_code == 1
    assert document(failed)["error"]["message"] == f"{tmp_path / 'home'} cannot be filled: No space left on device"  # type: ignore[index]
    assert list((tmp_path / "home").iterdir()) == []
    assert bastide("init").exit_code == 0


def test_foreground_stops_only_what_it_started_and_so_starts_all(
    bastide: Bastide, monkeypatch: pytest.MonkeyPatch
) -> None:
    bastide("init", "--base-port", "1")
    monkeypatch.setattr(Process, "pid", lambda process: 4711 if process.name == "audit" else None)
    refused = bastide("up", "--foreground")
    assert refused.exit_code == 1
    assert "audit: started before; bastide down" in refused.stderr


def test_a_failure_that_nobody_foresaw_is_one_line(bastide: Bastide, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("shared.cli.setup.create", broken)
    failed = bastide("--json", "init")
    assert failed.exit_code == 70
    assert document(failed)["error"] == {"reason": "INTERNAL", "message": "ZeroDivisionError: by nought"}
    monkeypatch.setenv("BASTIDE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        bastide("init")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("model", "show"),
        ("whoami", "extra"),
        ("--nope",),
        ("chat", "m", "hi", "--temperature", "hot"),
        ("model",),
    ],
)
def test_wrong_usage_is_told_to_people_and_programs(bastide: Bastide, arguments: tuple[str, ...]) -> None:
    told = bastide(*arguments)
    assert told.exit_code == 2
    assert told.stderr
    assert told.stdout == ""
    wrong = bastide(*arguments, "--json")
    assert wrong.exit_code == 2
    assert document(wrong)["error"]["reason"] == "USAGE"  # type: ignore[index]


def test_a_name_that_is_not_signed_in_is_called_so(bastide: Bastide) -> None:
    bastide("init")
    assert "uma@x.org is not signed in here" in bastide("--as", "uma@x.org", "model", "list").stderr
    assert "nobody is signed in here" in bastide("model", "list").stderr


def test_a_prompt_that_is_no_text_is_wrong_usage(bastide: Bastide) -> None:
    bastide("init")
    refused = bastide("chat", "smollm2", "caf\udcff")
    assert refused.exit_code == 2
    assert "UTF-8" in refused.stderr


def test_a_client_is_added_once(bastide: Bastide, tmp_path: Path) -> None:
    bastide("init")
    assert bastide("client", "add", "batch").exit_code == 0
    certificate = (tmp_path / "home" / "pki" / "clients" / "batch.pem").read_bytes()
    again = bastide("client", "add", "batch")
    assert again.exit_code == 1
    assert "already" in again.stderr
    assert (tmp_path / "home" / "pki" / "clients" / "batch.pem").read_bytes() == certificate


@pytest.mark.parametrize("name", ["../esc", "ü", "a/b", "A", "-x", ".", "", "a" * 64, "a\n", "../../audit/tls"])
def test_a_client_with_a_name_that_is_none_is_wrong_usage(bastide: Bastide, tmp_path: Path, name: str) -> None:
    assert bastide("init", f"--client={name}").exit_code == 2
    assert not (tmp_path / "home").exists()
    bastide("init")
    before = sorted((tmp_path / "home").rglob("*"))
    refused = bastide("client", "add", "--", name)
    assert refused.exit_code == 2
    assert "begins with a letter or digit" in refused.stderr
    assert sorted((tmp_path / "home").rglob("*")) == before
    with pytest.raises(ValueError, match="no name of a client"):
        setup.issue_client(tmp_path / "home", name)


@pytest.mark.parametrize("name", ["0.-" + "a" * 60, "cli.x", "a..b"])
def test_a_client_s_certificate_lies_under_its_whole_name(bastide: Bastide, tmp_path: Path, name: str) -> None:
    bastide("init")
    clients = tmp_path / "home" / "pki" / "clients"
    others = {path: path.read_bytes() for path in clients.iterdir()}
    assert bastide("client", "add", name).exit_code == 0
    assert {path: path.read_bytes() for path in others} == others
    certificate = x509.load_pem_x509_certificate((clients / f"{name}.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://bastide.local/client/{name}"]
    assert name in bastide("renew").stdout


def test_commands_without_a_set_up_say_how_to_make_one(bastide: Bastide) -> None:
    result = bastide("status")
    assert result.exit_code == 1
    assert "init" in result.stderr


def test_renewed_certificates_are_new_and_of_the_same_authority(bastide: Bastide, tmp_path: Path) -> None:
    bastide("init", "--base-port", "1", "--client", "portal")
    home = tmp_path / "home"
    names = ("audit/tls", "policy-guard/tls", "model-server/tls", "pki/clients/cli", "pki/clients/portal")
    before = {name: (home / f"{name}.pem").read_bytes() for name in names}
    assert "portal" in bastide("renew").stdout
    authority = x509.load_pem_x509_certificate((home / "pki" / "ca.pem").read_bytes())
    for name in names:
        renewed = (home / f"{name}.pem").read_bytes()
        assert renewed != before[name]
        x509.load_pem_x509_certificate(renewed).verify_directly_issued_by(authority)


def test_an_authority_that_has_ended_renews_nothing(
    bastide: Bastide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.identity.authority.CA_LIFETIME", dt.timedelta(seconds=-1))
    bastide("init", "--base-port", "1")
    before = (tmp_path / "home" / "audit" / "tls.pem").read_bytes()
    refused = bastide("renew")
    assert refused.exit_code == 1
    assert "the authority of this set-up ended at" in refused.stderr
    assert (tmp_path / "home" / "audit" / "tls.pem").read_bytes() == before


def test_commands_without_a_token_say_how_to_sign_in(bastide: Bastide) -> None:
    bastide("init")
    result = bastide("--as", "ada@example.org", "audit", "list")
    assert result.exit_code == 1
    assert "bastide login ada@example.org" in result.stderr


def test_a_service_that_is_down_is_unavailable(bastide: Bastide) -> None:
    bastide("init", "--base-port", "1")  # privileged ports that nobody listens on
    result = bastide("audit", "checkpoint", "--json")
    assert result.exit_code == 3
    error = document(result)["error"]
    assert isinstance(error, dict)
    assert error["reason"] == "UNAVAILABLE"
    assert "does not answer" in error["message"]


def test_status_tells_that_nothing_runs(bastide: Bastide) -> None:
    bastide("init", "--base-port", "1")
    result = bastide("status", "--json")
    assert result.exit_code == 3
    services = document(result)["services"]
    assert isinstance(services, list)
    assert [(item["service"], item["pid"], item["ready"]) for item in services] == [
        ("audit", None, False),
        ("policy-guard", None, False),
        ("model-server", None, False),
    ]


def test_an_unknown_service_is_wrong_usage(bastide: Bastide) -> None:
    bastide("init")
    assert bastide("up", "audti").exit_code == 2


def end(home: Path, workload: str, target: str) -> None:
    """Replace a certificate by one that ended a second ago."""
    CertificateAuthority(home / "pki", trust_domain=setup.TRUST_DOMAIN).issue(
        workload, home / target, dns=f"{workload}.{setup.TRUST_DOMAIN}", lifetime=dt.timedelta(seconds=-1)
    )


def test_a_client_certificate_that_has_ended_is_told_with_its_cure(bastide: Bastide, tmp_path: Path) -> None:
    bastide("init", "--base-port", "1")
    end(tmp_path / "home", "client/cli", "pki/clients/cli")
    refused = bastide("audit", "checkpoint")
    assert refused.exit_code == 1
    assert "certificate of client 'cli' ended" in refused.stderr
    assert "bastide renew" in refused.stderr
    bastide("renew")
    assert "does not answer" in bastide("audit", "checkpoint").stderr


def test_a_service_whose_certificate_has_ended_is_not_started(bastide: Bastide, tmp_path: Path) -> None:
    bastide("init", "--base-port", "1")
    end(tmp_path / "home", "audit", "audit/tls")
    refused = bastide("up", "audit")
    assert refused.exit_code == 1
    assert "audit: its certificate ended at" in refused.stderr
    assert "bastide renew" in refused.stderr
    assert not (tmp_path / "home" / "run").exists()
    first = document(bastide("status", "--json"))["services"][0]  # type: ignore[index]
    assert "bastide renew" in first["problems"]["certificate"]

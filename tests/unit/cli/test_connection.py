"""Where services are found, and their own commands run as children."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.cli.connection import Home
from shared.cli.failures import Failure
from shared.cli.setup import create
from shared.cli.tools import ask_tool, run_tool


@pytest.fixture
def home(tmp_path: Path) -> Home:
    create(tmp_path / "home", base_port=21000)
    return Home(tmp_path / "home")


def configure(home: Home, listen: str, probes: str) -> None:
    path = home.configuration("audit")
    text = path.read_text().replace("127.0.0.1:21000", listen).replace("127.0.0.1:21010", probes)
    path.write_text(text)


def test_addresses_are_the_configured_ones(home: Home) -> None:
    assert home.addresses("model-server") == ("127.0.0.1:21002", "127.0.0.1:21012")


def test_a_service_that_listens_everywhere_is_reached_here(home: Home) -> None:
    configure(home, "0.0.0.0:21000", "[::]:21010")
    assert home.addresses("audit") == ("127.0.0.1:21000", "[::1]:21010")


def test_ports_that_the_system_chose_are_those_the_server_wrote_down(home: Home) -> None:
    configure(home, "127.0.0.1:0", "127.0.0.1:0")
    (home.path / "audit" / "ports").write_text("40001 40002\n")
    assert home.addresses("audit") == ("127.0.0.1:40001", "127.0.0.1:40002")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("listen = ", "listen = [", "Unclosed array"),
        ("listen = ", "listn = ", "server.listen: Field required"),
        ("[server]", "[servr]", "server.probes: Field required"),
        ('listen = "127.0.0.1:21000"', "listen = 21000", "server.listen: "),
        ('listen = "127.0.0.1:21000"', 'listen = "21000"', "server.listen: "),
        ("[server]", "\x00", "Invalid statement"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_told_in_one_sentence(
    home: Home, before: str, after: str, told: str
) -> None:
    path = home.configuration("audit")
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(Failure) as refused:
        home.addresses("audit")
    assert refused.value.title == "configuration refused"
    assert refused.value.message.startswith(f"{path}: ")
    assert told in refused.value.message


def test_a_client_without_certificate_is_named(home: Home) -> None:
    with pytest.raises(Failure, match="bastide client add portal"):
        home.tls("portal")


def test_a_folder_that_is_no_set_up_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="is not a set-up"):
        Home(tmp_path).configuration("audit")


def test_a_service_migrates(home: Home) -> None:
    run_tool(home, "audit", "migrate", seconds=60)
    assert (home.path / "audit" / "records.db").is_file()


def test_a_tool_that_fails_is_told_with_its_last_words(home: Home) -> None:
    with pytest.raises(Failure, match="invalid choice"):
        ask_tool(home, "audit", "nonsense", seconds=60)

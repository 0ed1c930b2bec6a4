"""Sample configurations load, Containerfiles copy what exists, and compose names what they expose."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from shared.config import load
from tests.suite import PARTS, ROOT

NAMES = sorted(PARTS)


@pytest.mark.parametrize("name", NAMES)
def test_sample_configuration_loads(name: str) -> None:
    loaded = load(PARTS[name][0], file=ROOT / "deploy/config" / f"{name}.toml", prefix="BASTIDE_NONE", environ={})
    assert loaded.settings.server.listen.startswith("0.0.0.0:")


@pytest.mark.parametrize("name", NAMES)
def test_containerfile_copies_what_exists_and_runs_unprivileged(name: str) -> None:
    text = (ROOT / "deploy/containers" / f"{name}.Containerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert re.search(r"^ARG UID=10001$", text, re.M)
    assert re.search(r"^USER \$\{UID\}$", text, re.M)
    extra = re.search(r"\.\[([a-z-]+)\]", text)
    assert extra is not None
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extra.group(1) in extras
    port = load(
        PARTS[name][0], file=ROOT / "deploy/config" / f"{name}.toml", prefix="BASTIDE_NONE", environ={}
    ).settings.server.listen.rpartition(":")[2]
    assert f"EXPOSE {port} " in text


def test_compose_builds_each_service_and_publishes_no_log() -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert sorted(compose["services"]) == sorted([*NAMES, *(f"{name}-migrate" for name in NAMES)])
    assert "ports" not in compose["services"]["audit"]
    for name, service in compose["services"].items():
        assert (ROOT / service["build"]["dockerfile"]).exists()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or (volume["read_only"] and not volume["bind"]["create_host_path"]), name
        assert (service["restart"] == "no") is name.endswith("-migrate")
        if name in NAMES:
            assert service["depends_on"] == {f"{name}-migrate": {"condition": "service_completed_successfully"}}

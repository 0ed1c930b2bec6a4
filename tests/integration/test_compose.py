"""The compose file over a set-up as `bastide init` leaves it: what it mounts is there, and what it runs gets ready.

There is no container engine: the commands run as processes of this host, and each path of the container is replaced by
what is mounted there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.suite import PARTS, ROOT, free_ports

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compose"), pytest.mark.timeout(300)]

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
NAMES = tuple(PARTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """A service of the compose file, with the places on this host that its mounts lead to."""

    name: str
    folder: Path
    mounts: dict[str, Path]

    def here(self, text: str) -> str:
        """Return `text` with each path of the container replaced by what is mounted there."""
        longest = sorted(self.mounts, key=len, reverse=True)
        pattern = "|".join(rf"{re.escape(target)}(?![\w.-])" for target in longest)
        return re.sub(pattern, lambda match: str(self.mounts[match[0]]), text)

    def command(self) -> list[str]:
        """Return the image's entrypoint and the service's command, over a configuration for this host."""
        dockerfile = (ROOT / COMPOSE["services"][self.name]["build"]["dockerfile"]).read_text()
        entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.MULTILINE)[-1])
        *words, flag, file = [*entrypoint]
        assert (words[0], flag) == ("python", "--config")
        configuration = self.folder / f"{self.name}.toml"
        configuration.write_text(self.here(Path(self.here(file)).read_text()))
        return [
            sys.executable,
            *words[1:],
            flag,
            str(configuration),
            *COMPOSE["services"][self.name].get("command", ()),
        ]


def container(name: str, home: Path, folder: Path) -> Container:
    """Resolve the mounts; each source MUST be there."""
    mounts = {}
    for volume in COMPOSE["services"][name]["volumes"]:
        if volume["type"] == "volume":
            # A named volume begins as the image's folder, which belongs to the service's user.
            mounts[volume["target"]] = folder / f"volume-{volume['source']}"
            mounts[volume["target"]].mkdir(exist_ok=True)
        else:
            source = volume["source"].replace("${BASTIDE_HOME:-../.bastide}", str(home))
            mounts[volume["target"]] = (ROOT / "deploy" / source).resolve(strict=True)
    return Container(name=name, folder=folder, mounts=mounts)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    command = [sys.executable, "-m", "shared.cli.main", "--home", str(tmp_path / "home"), "init"]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=ROOT)
    return tmp_path / "home"


@pytest.fixture
def environs() -> dict[str, dict[str, str]]:
    """Return what stands for the containers' network: free ports of this host instead of names and fixed ones."""
    grpc = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
    found = {}
    for name in NAMES:
        prefix = f"BASTIDE_{name.replace('-', '_').upper()}"
        found[name] = {
            f"{prefix}_SERVER__LISTEN": f"127.0.0.1:{grpc[name]}",
            f"{prefix}_SERVER__PROBES": f"127.0.0.1:{free_ports(1)[0]}",
            f"{prefix}_AUDIT__ADDRESS": f"127.0.0.1:{grpc['audit']}",
            f"{prefix}_GUARD__ADDRESS": f"127.0.0.1:{grpc['policy-guard']}",
        }
    return found


@pytest.fixture
def processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    started: dict[str, subprocess.Popen[bytes]] = {}
    yield started
    for process in started.values():
        process.terminate()
    for process in started.values():
        process.wait(60)


def problems(address: str) -> str:
    """Return what /readyz says is wrong; empty when it answers 200."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return "does not listen yet"


def test_a_fresh_set_up_comes_up_as_compose_runs_it(
    home: Path, tmp_path: Path, environs: dict[str, dict[str, str]], processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    for name in NAMES:
        environ = os.environ | environs[name]
        (before,) = COMPOSE["services"][name]["depends_on"]
        migration = container(before, home, tmp_path).command()
        subprocess.run(migration, check=True, env=environ, timeout=60, cwd=ROOT)
        with (tmp_path / f"{name}.log").open("wb") as log:
            command = container(name, home, tmp_path).command()
            processes[name] = subprocess.Popen(command, env=environ, stderr=log, cwd=ROOT)
    deadline = time.monotonic() + 120
    for name in NAMES:
        (probes,) = (value for key, value in environs[name].items() if key.endswith("_PROBES"))
        while found := problems(probes):
            log = (tmp_path / f"{name}.log").read_text()
            assert processes[name].poll() is None, log
            assert time.monotonic() < deadline, f"{name}: {found}\n{log}"
            time.sleep(0.2)
    outbox = tmp_path / "volume-policy-guard" / "outbox"
    assert outbox.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_given_no_other_services_keys(home: Path, tmp_path: Path, name: str) -> None:
    mounted = container(name, home, tmp_path).mounts.values()
    keys = {path for path in home.rglob("*") if path.suffix == ".key" or path.name in ("keys.json", "identity.pem")}
    seen = {path for path in keys for source in mounted if path.is_relative_to(source)}
    assert seen == {path for path in keys if path.parent == home / name} != set()

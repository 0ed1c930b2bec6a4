"""The client that the README shows, as a program of its own against the running services."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys

import pytest
import pytest_asyncio

from tests.integration.stage import Stage
from tests.suite import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="session")


README = (ROOT / "README.md").read_text()
ADDRESSES = {"127.0.0.1:8443": "model-server", "127.0.0.1:8442": "policy-guard"}


def commands() -> tuple[list[str], list[str]]:
    """Return the words of the two commands that the README puts before the client: the certificate's and the call's."""
    lines = re.findall(
        r"^    (.+)$", README.replace("\\\n", "").split("## Start as a backend engineer")[1], re.MULTILINE
    )
    issue, call = (shlex.split(line) for line in lines[:2])
    return issue, call


async def run(*command: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


def calling(stage: Stage, client: str = "example-backend") -> list[str]:
    """Return the README's call of the client, on this stage's addresses and files."""
    (python, script, *arguments) = commands()[1]
    assert (python, script) == ("python", "deploy/examples/backend_client.py")
    here = {address: f"127.0.0.1:{stage.suite.grpc[service]}" for address, service in ADDRESSES.items()}
    found = [here.get(word) or word.replace(".bastide", str(stage.home)) for word in arguments]
    return [sys.executable, script, *(word.replace("example-backend", client) for word in found)]


async def test_the_example_client_runs_as_the_readme_says(stage: Stage, released_as_smollm2: None) -> None:
    for suffix in (".pem", ".key"):
        (stage.home / "pki" / "clients" / f"example-backend{suffix}").unlink()
    program, *words = commands()[0]
    assert program == "bastide"
    code, _, error = await run(sys.executable, "-m", "shared.cli.main", "--home", str(stage.home), *words)
    assert code == 0, error
    code, out, error = await run(*calling(stage))
    assert code == 0, error
    assert "The first part is here." in out
    assert "bytes of proof for call" in out


async def test_the_example_client_says_why_it_is_refused(stage: Stage, released_as_smollm2: None) -> None:
    code, out, error = await run(*calling(stage, "stranger"))
    assert code == 1
    assert out == ""
    assert re.fullmatch(r"PERMISSION_DENIED: [^\n]*not registered[^\n]*\n", error)


async def test_the_example_client_says_what_it_needs(stage: Stage) -> None:
    command = calling(stage)
    assert (await run(*command[:2]))[2].startswith("usage: ")
    assert (await run(*command[:-1], "nowhere.key"))[2] == "nowhere.key: No such file or directory\n"
    unreachable = await run(*command[:3], "127.0.0.1:1", *command[4:])
    assert unreachable[2].startswith("UNAVAILABLE: ")
    assert "Traceback" not in unreachable[2]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def released_as_smollm2(standing_stage: Stage) -> None:
    """The tiny model under the name that the example asks for."""
    suite = standing_stage.suite
    version = await suite.import_model(standing_stage.manager, "directory:tiny", model="smollm2")
    await suite.release(standing_stage.approver, version)

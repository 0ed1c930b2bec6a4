"""The client that the README shows, as a program of its own against the running services."""

from __future__ import annotations

import asyncio
import sys

import pytest
import pytest_asyncio

from tests.integration.stage import Stage
from tests.suite import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def run(stage: Stage, client: str) -> tuple[int | None, str, str]:
    ports, pki = stage.suite.grpc, stage.home / "pki"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "deploy/examples/backend_client.py"),
        f"127.0.0.1:{ports['model-server']}",
        f"127.0.0.1:{ports['policy-guard']}",
        str(pki / "ca.pem"),
        str(pki / "clients" / f"{client}.pem"),
        str(pki / "clients" / f"{client}.key"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


async def test_the_example_client_gets_an_answer_and_its_proof(stage: Stage, released_as_smollm2: None) -> None:
    code, out, error = await run(stage, "example-backend")
    assert code == 0, error
    assert "The first part is here." in out
    assert "bytes of proof for call" in out


async def test_the_example_client_says_why_it_is_refused(stage: Stage, released_as_smollm2: None) -> None:
    code, out, error = await run(stage, "stranger")
    assert code == 1
    assert out == ""
    assert "UNAUTHENTICATED" in error or "PERMISSION_DENIED" in error


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def released_as_smollm2(standing_stage: Stage) -> None:
    """The tiny model under the name that the example asks for."""
    suite = standing_stage.suite
    version = await suite.import_model(standing_stage.manager, "directory:tiny", model="smollm2")
    await suite.release(standing_stage.approver, version)

"""The stub wheel alone, in an empty environment, on the oldest and newest supported protobuf, calls the suite."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.suite import ROOT, running

OLDEST = ("protobuf==6.33.5", "grpcio==1.80.0", "grpcio-status==1.80.0")
NEWEST = ("protobuf>=7", "grpcio", "grpcio-status")
ALLOWED = {"bastide-protos", "googleapis-common-protos", "grpcio", "grpcio-status", "protobuf", "typing-extensions"}
CLIENT = """
import sys, grpc
from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
address, ca, pem, key = sys.argv[1:]
read = lambda name: open(name, "rb").read()
credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(pem))
options = [("grpc.ssl_target_name_override", "policy-guard.bastide.local")]
with grpc.secure_channel(address, credentials, options) as channel:
    answer = identity_pb2_grpc.IdentityServiceStub(channel).IssueWorkloadToken(
        identity_pb2.IssueWorkloadTokenRequest(), timeout=10
    )
print(len(answer.token) > 100)
"""


def pip(python: Path, *arguments: str) -> str:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
@pytest.mark.parametrize("versions", [OLDEST, NEWEST], ids=["oldest", "newest"])
async def test_stub_wheel_alone_calls_the_running_suite(tmp_path: Path, versions: tuple[str, ...]) -> None:
    await asyncio.to_thread(
        pip, Path(sys.executable), "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT / "protos")
    )
    (wheel,) = tmp_path.glob("*.whl")
    await asyncio.to_thread(venv.create, tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    await asyncio.to_thread(pip, python, "install", "--quiet", str(wheel), *versions)
    listed = await asyncio.to_thread(pip, python, "list", "--format", "freeze")
    installed = {line.split("==")[0].lower().replace("_", "-") for line in listed.split()} - {"pip", "setuptools"}
    assert installed <= ALLOWED
    async with running(tmp_path / "home") as suite:
        pki = suite.home / "pki"
        leaf = pki / "clients" / "example-backend"
        process = await asyncio.create_subprocess_exec(
            str(python), "-W", "error", "-c", CLIENT, f"127.0.0.1:{suite.grpc['policy-guard']}",
            str(pki / "ca.pem"), f"{leaf}.pem", f"{leaf}.key",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert out.decode().strip() == "True", err.decode()

"""A policy that locks everyone out is undone on the guard's host, and the log tells of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.audit.search import Filter
from services.policy_guard import commands
from services.policy_guard.bundle import read_directory
from tests.suite import ROOT, Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEFAULT = ROOT / "services/policy_guard/policies"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    suite = Suite(tmp_path_factory.mktemp("recover") / "home", overrides={"policy-guard": {"ENGINE": "embedded"}})
    try:
        await suite.start("audit", "policy-guard")
        yield suite
    finally:
        await suite.close()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The default bundle with another limit."""
    copy = tmp_path / "policies"
    shutil.copytree(DEFAULT, copy)
    limits = copy / "bastide/limits/data.yaml"
    limits.write_text(re.sub(r"limit: 120\b", "limit: 121", limits.read_text()))
    return copy


async def recover(suite: Suite, directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    settings = suite.settings("policy-guard")
    capsys.readouterr()
    code = await asyncio.to_thread(commands.recover, settings, [str(directory), "--by", "ada"])
    (said,) = re.findall(r"^\{$.*?^\}$", capsys.readouterr().out, re.MULTILINE | re.DOTALL)
    return code, json.loads(said)


async def test_a_running_guard_is_not_recovered(suite: Suite, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = await recover(suite, other, capsys)
    assert (code, said["reason"]) == (1, "DATABASE_IN_USE")


async def test_a_stopped_guard_is_recovered_and_its_next_start_records_it(
    suite: Suite, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    revision = read_directory(other).revision
    await suite.stop("policy-guard")
    try:
        (other / "bastide" / "broken.rego").write_text("package bastide.broken\nallow if nonsense(\n")
        code, said = await recover(suite, other, capsys)
        assert code == 1
        assert said.get("problems") or said.get("error")
        (other / "bastide" / "broken.rego").unlink()
        code, said = await recover(suite, other, capsys)
        assert (code, said["revision"]) == (0, revision)
    finally:
        await suite.start("policy-guard")
    judge = suite.servers["policy-guard"]._servicers["bastide.policy_guard.v1.GuardService"]._judge
    assert judge._engine.current == revision
    async with asyncio.timeout(30):
        while not (page := await suite._log.reader.search(Filter(kinds=frozenset({"system"})), page_size=50)).records:
            await asyncio.sleep(0.1)
    assert any(f"revisions/{revision}".encode() in record.leaf for record in page.records)


@pytest.mark.parametrize(
    ("arguments", "code"), [(["check", str(DEFAULT)], 0), (["eval", str(DEFAULT), "access", "/nonexistent"], 1)]
)
async def test_commands_print_one_json_document_and_nothing_else(arguments: list[str], code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.policy_guard", *arguments), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    async with asyncio.timeout(90):
        out, _ = await process.communicate()
    assert process.returncode == code
    assert isinstance(json.loads(out), dict)

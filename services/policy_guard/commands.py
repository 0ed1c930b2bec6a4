"""Policy on the command line of the guard's host: check, test, evaluate, pack, and recover without the server."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from services.policy_guard import rego
from services.policy_guard.bundle import read_directory
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.documents import parse_input
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.engines import choose_engine
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.result import PolicyResult, Question
from services.policy_guard.revisions import Revisions
from services.policy_guard.server import now
from services.policy_guard.validation import validate
from shared.errors import Error
from shared.records.migrations import check_schema
from shared.records.store import Records

_SECONDS = 60.0
_QUESTIONS = {"access": Question.ACCESS, "inference": Question.INFERENCE, "identity": Question.IDENTITY}


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.policy_guard {name}")
    parser.add_argument("directory", type=Path, help="folder of the policy bundle")
    return parser


def _run(work: Coroutine[Any, Any, dict[str, Any]]) -> int:
    """Print what `work` found as JSON; exit code 1 for problems and errors."""
    try:
        found = asyncio.run(work)
    except Error as error:
        found = {"error": error.message, "reason": error.reason}
    except OSError as error:
        found = {"error": f"{error.filename}: {error.strerror}"}
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 1 if found.get("problems") or "error" in found else 0


async def _with_engine(
    settings: PolicyGuardSettings | None, work: Callable[[PolicyEngine], Coroutine[Any, Any, dict[str, Any]]]
) -> dict[str, Any]:
    engine = (
        choose_engine() if settings is None else choose_engine(engine=settings.engine, opa_binary=settings.opa_binary)
    )
    try:
        return {"engine": engine.name, **await work(engine)}
    finally:
        await engine.close()


def check(settings: PolicyGuardSettings | None, arguments: list[str]) -> int:
    """Validate a bundle as a proposal would be: parse, lint, schema, unit tests, coverage, samples, lifecycle."""
    given = _parser("check").parse_args(arguments)

    async def work(engine: PolicyEngine) -> dict[str, Any]:
        tenants = ("default",) if settings is None else settings.administrator_tenants
        bundle = await asyncio.to_thread(read_directory, given.directory)
        report = await validate(bundle, engine, administrator_tenants=tenants)
        return {
            "revision": report.revision,
            "tests": len(report.tests),
            "problems": [str(problem) for problem in report.problems],
        }

    return _run(_with_engine(settings, work))


def test(_settings: PolicyGuardSettings | None, arguments: list[str]) -> int:
    """Run a bundle's unit tests with coverage on the embedded engine."""
    given = _parser("test").parse_args(arguments)

    async def work() -> dict[str, Any]:
        bundle = await asyncio.to_thread(read_directory, given.directory)
        inspected = await rego.test(bundle, deadline=asyncio.get_running_loop().time() + _SECONDS)
        return {
            "tests": list(inspected.tests),
            "problems": [str(problem) for problem in inspected.problems] or ([] if inspected.tests else ["no tests"]),
            "uncovered": list(inspected.uncovered),
        }

    return _run(work())


def evaluate(settings: PolicyGuardSettings | None, arguments: list[str]) -> int:
    """Evaluate one question of a bundle on a given input."""
    parser = _parser("eval")
    parser.add_argument("question", choices=sorted(_QUESTIONS))
    parser.add_argument("input", type=Path, help="JSON input; see policies/schemas")
    given = parser.parse_args(arguments)

    async def work(engine: PolicyEngine) -> dict[str, Any]:
        bundle = await asyncio.to_thread(read_directory, given.directory)
        document = parse_input(await asyncio.to_thread(given.input.read_bytes))
        async with engine.trial(bundle) as ask:
            deadline = asyncio.get_running_loop().time() + _SECONDS
            result = await ask(_QUESTIONS[given.question], document, deadline=deadline)
        rendered: dict[str, Any] = TypeAdapter(PolicyResult).dump_python(result, mode="json")
        return rendered

    return _run(_with_engine(settings, work))


def pack(_settings: PolicyGuardSettings | None, arguments: list[str]) -> int:
    """Write a bundle in OPA's format, for ProposePolicy."""
    parser = _parser("pack")
    parser.add_argument("archive", type=Path, help="file to write")
    given = parser.parse_args(arguments)

    async def work() -> dict[str, Any]:
        bundle = await asyncio.to_thread(read_directory, given.directory)
        await asyncio.to_thread(given.archive.write_bytes, bundle.archive())
        return {"revision": bundle.revision, "archive": str(given.archive)}

    return _run(work())


def recover(settings: PolicyGuardSettings, arguments: list[str]) -> int:
    """Put a bundle in force without a decision, with the server stopped; its next start records that this happened."""
    parser = _parser("recover")
    parser.add_argument("--by", required=True, help="who does this, for the record")
    given = parser.parse_args(arguments)

    async def work(engine: PolicyEngine) -> dict[str, Any]:
        bundle = await asyncio.to_thread(read_directory, given.directory)
        report = await validate(bundle, engine, administrator_tenants=settings.administrator_tenants)
        if not report.ok:
            return {"problems": [str(problem) for problem in report.problems]}
        # Exclusive: on SQLite a running guard holds the lock, so that recovery cannot race it.
        async with Records(settings.records, exclusive=True) as records:
            await check_schema(records, SCRIPTS, "policy_guard")
            revisions = Revisions(records, clock=now)
            await revisions.propose(bundle.revision, bundle.archive(), proposer=given.by, note="offline recovery")
            activation = await revisions.recover(bundle.revision, activator=given.by)
        return {"revision": bundle.revision, "activation": activation.number}

    return _run(_with_engine(settings, work))

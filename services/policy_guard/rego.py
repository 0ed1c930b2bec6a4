"""Parses, lints and tests a bundle in a child process of its own, so that no policy can hang or crash the guard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.lint import Problem
from shared import errors
from shared.child.worker import Worker

_TARGET = "services.policy_guard.interpreter:inspector"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the interpreter says about a bundle's Rego."""

    problems: tuple[Problem, ...]
    """Parse errors, calls outside the allow-list, and unit tests that failed. Empty means sound."""
    tests: tuple[str, ...]
    """Full names of the unit tests that ran."""
    uncovered: tuple[str, ...]
    """`path:line` of rules that no test ran."""


async def lint(bundle: Bundle, *, deadline: float) -> None:
    """Refuse a bundle that either engine could not serve: parse every rule module, check every call.

    Raises BundleError naming the first problems, and GuardUnavailable where no answer came by `deadline`.
    """
    inspected = await _inspect(bundle.rules, bundle.served_data, tests=False, deadline=deadline)
    if inspected.problems:
        raise BundleError("; ".join(map(str, inspected.problems[:5])))


async def test(bundle: Bundle, *, deadline: float) -> Inspection:
    """Do what `lint` does on tests and rules alike, and run the tests with coverage. Raises GuardUnavailable."""
    return await _inspect(bundle.modules, bundle.served_data, tests=True, deadline=deadline)


async def _inspect(modules: Mapping[str, str], data: Mapping[str, Any], *, tests: bool, deadline: float) -> Inspection:
    request = json.dumps({"modules": modules, "data": data, "tests": tests}).encode()
    try:
        async with Worker(_TARGET) as worker:
            answer = json.loads(await worker.call(request, deadline=deadline))
    except errors.Error:
        raise errors.GuardUnavailable("the policy could not be inspected in time") from None
    return Inspection(
        problems=tuple(Problem(check=check, location=place, message=text) for check, place, text in answer["problems"]),
        tests=tuple(answer["tests"]),
        uncovered=tuple(answer["uncovered"]),
    )

"""What runs in the embedded engine's child processes: the Rego interpreter regorus, and nothing of the guard's.

Two targets for `shared.child.worker.Worker`; both speak JSON. The interpreter has no timeout of its own and may end
in a panic, which is why it lives here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import regorus

from services.policy_guard import lint
from services.policy_guard.lint import Problem

_PLACE = re.compile(r"--> (?P<path>.+):(?P<line>\d+):\d+$", re.MULTILINE)
_ERROR = re.compile(r"^error: (?P<message>.+)$", re.MULTILINE)

_MALFORMED = (RuntimeError, ValueError, TypeError)
"""What regorus raises for Rego that it cannot parse, compile or run."""


def evaluator(setup: bytes) -> Callable[[bytes], bytes]:
    """Load `{"modules", "data", "warm"}`, `warm` being any rule; answer each `{"rule", "input"}` with its JSON."""
    bundle = json.loads(setup)
    loaded = _engine(bundle["modules"], bundle["data"])
    loaded.set_input_json("{}")
    loaded.eval_rule_as_json(bundle["warm"])  # prepares the rules once; clones of it share that

    def evaluate(request: bytes) -> bytes:
        asked = json.loads(request)
        engine = loaded.clone()  # an evaluation that failed leaves its engine unusable
        engine.set_input_json(json.dumps(asked["input"]))
        value: str = engine.eval_rule_as_json(asked["rule"])
        return value.encode()

    return evaluate


def inspector(_: bytes) -> Callable[[bytes], bytes]:
    """Answer `{"modules", "data", "tests": bool}` with `{"problems", "tests", "uncovered"}`."""

    def inspect(request: bytes) -> bytes:
        bundle = json.loads(request)
        tests: list[str] = []
        uncovered: list[str] = []
        try:
            engine = _engine(bundle["modules"], bundle["data"])
            trees = json.loads(engine.get_ast_as_json())
            problems = lint.check(trees, bundle["data"])
        except _MALFORMED as failure:
            problems = [_problem("parse", failure)]
        if bundle["tests"] and not problems:
            tests, uncovered, problems = _test(engine, trees)
        found = [[problem.check, problem.location, problem.message] for problem in problems]
        return json.dumps({"problems": found, "tests": tests, "uncovered": uncovered}).encode()

    return inspect


def _engine(modules: Mapping[str, str], data: Mapping[str, Any]) -> Any:
    engine = regorus.Engine()
    engine.set_gather_prints(True)
    for path, source in modules.items():
        engine.add_policy(path, source)
    engine.add_data_json(json.dumps(data))
    return engine


def _test(engine: Any, trees: list[dict[str, Any]]) -> tuple[list[str], list[str], list[Problem]]:
    """Run every `test_*` rule; return their names, the lines of rules that none ran (`path:line`), and failures."""
    engine.set_enable_coverage(True)
    tests: list[str] = []
    problems: list[Problem] = []
    for path, line, name in lint.tests(trees):
        tests.append(name)
        engine.set_input_json("{}")
        try:
            passed = json.loads(engine.eval_rule_as_json(name)) is True
        except _MALFORMED as failure:
            problems.append(_problem("tests", failure))
            continue
        if not passed:
            problems.append(Problem(check="tests", location=f"{path}:{line}", message=f"{name} failed"))
    uncovered = [
        f"{file['path']}:{line}"
        for file in json.loads(engine.get_coverage_report_as_json())["files"]
        for line in file["not_covered"]
        if not file["path"].endswith(lint.TEST_SUFFIX)
    ]
    return tests, uncovered, problems


def _problem(check: str, failure: Exception) -> Problem:
    place, error = _PLACE.search(str(failure)), _ERROR.search(str(failure))
    return Problem(
        check=check,
        location=f"{place['path']}:{place['line']}" if place else "",
        message=error["message"] if error else "the interpreter refuses it",
    )

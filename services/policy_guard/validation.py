"""What a bundle must pass before it may be proposed, and again before it is served for the first time.

    parse, lint, builtins   the Rego itself (`lint`)
    tests, coverage         its unit tests pass and run every line of every rule
    schema                  its input schemas and data documents are what they claim to be, and what the guard reads
    samples                 its sample decisions come out as stated, and no malformed form of an allowed one is allowed
    lifecycle               an administrator can still activate and roll back under it, with a second factor and not
                            a proposal of their own

The engine that will serve the bundle answers the samples; `samples/data.yaml` in the bundle holds them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from services.policy_guard import rego
from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.engine import Ask, PolicyEngine
from services.policy_guard.guard_data import guard_data
from services.policy_guard.lint import Problem
from services.policy_guard.result import Effect, PolicyResult, Question
from shared import errors

ADMINISTRATOR = "administrator"
"""The role under which people are bootstrapped; policy may change what it can do, but not lock it out."""
TIMEOUT = 120.0
"""Seconds for a whole validation."""
MAX_PROBLEMS = 200

_ASK_TIMEOUT = 5.0
_NOW = 1_700_000_000
_SCHEMAS = {
    Question.INFERENCE: "inference",
    Question.ACCESS: "access",
    Question.IDENTITY: "identity",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What validation found."""

    revision: str
    problems: tuple[Problem, ...]
    """At most MAX_PROBLEMS; the bundle may be proposed only when there are none."""
    tests: tuple[str, ...]
    """Full names of the unit tests that ran."""

    @property
    def ok(self) -> bool:
        """Whether the bundle may be proposed."""
        return not self.problems


async def validate(bundle: Bundle, engine: PolicyEngine, *, administrator_tenants: Collection[str]) -> Report:
    """Check `bundle` on `engine`, without making it current.

    `administrator_tenants` are the tenants (at least one) whose administrators must stay able to change the policy.
    Raises GuardUnavailable when the checks could not be carried out in time; callers MUST then refuse the bundle.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    try:
        async with asyncio.timeout_at(deadline):
            inspected = await rego.test(bundle, deadline=deadline)
            problems = [*inspected.problems, *_coverage(inspected), *_documents(bundle)]
            if not problems:
                problems = await asyncio.to_thread(_unreadable, bundle)
            if not problems:
                async with engine.trial(bundle) as ask:
                    problems = [
                        *[problem async for problem in _samples(bundle, ask)],
                        *[problem async for problem in _lifecycle(ask, administrator_tenants)],
                    ]
    except BundleError as refusal:
        problems = [Problem(check="lint", location="", message=refusal.message)]
    except TimeoutError:
        raise errors.GuardUnavailable("the policy could not be validated in time") from None
    return Report(revision=bundle.revision, problems=tuple(problems[:MAX_PROBLEMS]), tests=inspected.tests)


def _coverage(inspected: rego.Inspection) -> Iterator[Problem]:
    if not inspected.problems:
        for location in inspected.uncovered:
            yield Problem(check="coverage", location=location, message="no unit test runs this line")


def _documents(bundle: Bundle) -> Iterator[Problem]:
    """Check the schemas against JSON Schema draft 7, the data and the samples' inputs against the schemas."""
    schemas = bundle.data.get("schemas", {})
    subjects: list[tuple[str, str, Any]] = [("documents", "bastide", bundle.data.get("bastide", {}))]
    subjects += [(_SCHEMAS[question], f"samples/{name}", case["input"]) for question, name, case in _cases(bundle)]
    for name in ("documents", *_SCHEMAS.values()):
        try:
            jsonschema.Draft7Validator.check_schema(schemas[name])
        except (KeyError, jsonschema.SchemaError):
            yield Problem(check="schema", location=f"schemas/{name}", message="no JSON Schema of draft 7")
            subjects = [subject for subject in subjects if subject[0] != name]
    for name, location, value in subjects:
        for error in jsonschema.Draft7Validator(schemas[name]).iter_errors(value):
            place = "/".join(map(str, error.absolute_path))
            yield Problem(check="schema", location=f"{location}/{place}", message=f"breaks `{error.validator}`")


def _unreadable(bundle: Bundle) -> list[Problem]:
    try:
        guard_data(bundle)
    except BundleError as refusal:
        return [Problem(check="schema", location="", message=refusal.message)]
    return []


def _cases(bundle: Bundle) -> Iterator[tuple[Question, str, Mapping[str, Any]]]:
    samples = bundle.data.get("samples", {})
    for question in Question:
        for name, case in samples.get(_SCHEMAS[question], {}).items():
            if isinstance(case, dict) and isinstance(case.get("input"), dict):
                yield question, name, case


async def _samples(bundle: Bundle, ask: Ask) -> Any:
    seen: set[tuple[Question, object]] = set()
    for question, name, case in _cases(bundle):
        location = f"samples/{_SCHEMAS[question]}/{name}"
        answer = await _answer(ask, question, case["input"])
        codes = sorted(reason.code for reason in answer.reasons)
        seen.add((question, answer.effect))
        if answer.effect != case.get("effect") or not set(case.get("reasons", ())) <= set(codes):
            yield Problem(
                check="samples", location=location, message=f"is {answer.effect} because of {', '.join(codes)}"
            )
        if answer.allowed:
            for change, document in malformed(case["input"], bundle.data["schemas"][_SCHEMAS[question]]):
                if (await _answer(ask, question, document)).allowed:
                    yield Problem(check="samples", location=location, message=f"is allowed though {change}")
    for question in Question:
        for effect in Effect:
            if (question, effect) not in seen:
                message = f"no sample that is {effect}"
                yield Problem(check="samples", location=f"samples/{_SCHEMAS[question]}", message=message)


def malformed(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every way to spoil `document` by one field: required and missing, of another type, or unknown."""
    for path, part in _objects(document, schema):
        for name in part["schema"].get("required", ()):
            yield f"{_name(path, name)} is missing", _changed(document, path, name, None, remove=True)
        for name in part["value"]:
            yield f"{_name(path, name)} has another type", _changed(document, path, name, {"unexpected": []})
        yield f"{_name(path, 'unknown')} is unknown", _changed(document, path, "unknown", True)


def _objects(value: Any, schema: Mapping[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield path, {"value": value, "schema": schema}
        for name, item in value.items():
            yield from _objects(item, schema.get("properties", {}).get(name, {}), (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _objects(item, schema.get("items", {}), (*path, index))


def _changed(document: Mapping[str, Any], path: Any, name: str, value: Any, *, remove: bool = False) -> dict[str, Any]:
    changed = copy.deepcopy(dict(document))
    part: Any = changed
    for step in path:
        part = part[step]
    part[name] = value
    if remove:
        del part[name]
    return changed


def _name(path: tuple[Any, ...], name: str) -> str:
    return ".".join(map(str, (*path, name)))


async def _lifecycle(ask: Ask, tenants: Collection[str]) -> Any:
    if not tenants:
        yield Problem(check="lifecycle", location="", message="no tenant has administrators")
    for tenant in tenants:
        for action in ("policy_guard.policy.activate", "policy_guard.policy.rollback"):
            question = _change(tenant, action, amr=["pwd", "otp"], submitter="proposer@example.org")
            if not (await _answer(ask, Question.ACCESS, question)).allowed:
                message = f"an administrator of tenant {tenant} could not call {action}"
                yield Problem(check="lifecycle", location=action, message=message)
            question = _change(tenant, action, amr=["pwd"], submitter="proposer@example.org")
            if (await _answer(ask, Question.ACCESS, question)).allowed:
                yield Problem(check="lifecycle", location=action, message="is allowed without a second factor")
        question = _change(tenant, "policy_guard.policy.activate", amr=["pwd", "otp"], submitter=_ADMINISTRATOR)
        if (await _answer(ask, Question.ACCESS, question)).allowed:
            message = "is allowed to the proposer"
            yield Problem(check="lifecycle", location="policy_guard.policy.activate", message=message)


_ADMINISTRATOR = "administrator@example.org"


def _change(tenant: str, action: str, *, amr: list[str], submitter: str) -> dict[str, Any]:
    return {
        "time": _NOW,
        "principal": {
            "subject": _ADMINISTRATOR,
            "kind": "person",
            "tenant": tenant,
            "roles": [ADMINISTRATOR],
            "amr": amr,
            "auth_time": _NOW,
            "acknowledged_use_policy": None,
        },
        "workload": {"spiffe_id": "spiffe://bastide.local/client/cli"},
        "action": action,
        "method": {"full_name": "/bastide.policy_guard.v1.PolicyService/Change", "mfa": True},
        "resource": {"type": "revision", "name": "revisions/candidate", "submitters": [submitter]},
    }


async def _answer(ask: Ask, question: Question, document: Mapping[str, Any]) -> PolicyResult:
    return await ask(question, document, deadline=asyncio.get_running_loop().time() + _ASK_TIMEOUT)

"""The two engines answer alike, or the bundle is not loaded: `tests/vectors/policy/engines.yaml`, on both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import regorus
import yaml

from services.policy_guard import agreement, lint
from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.result import Question
from shared.errors import Error, GuardUnavailable
from tests.unit.policy_guard.policy.conftest import VECTORS, make_engine, soon

DOCUMENT: dict[str, Any] = yaml.safe_load((VECTORS / "engines.yaml").read_text())
ANSWERS = dict(DOCUMENT["same"] + DOCUMENT["differ"])
SERVED = [
    *((expression, "SAME") for expression, _ in DOCUMENT["same"]),
    *((expression, "UNDEFINED") for expression in DOCUMENT["undefined"]),
    *((expression, "ERROR") for expression in DOCUMENT["errors"]),
]
EMPTY = """package bastide.{name}

decision := {{"effect": "DENY", "reasons": [{{"code": code, "message": "-", "public": true}}], "obligations": {{}},
    "limits": [], "revision": data.bastide.revision}}

default code := "UNDEFINED"
"""


def bundle(expressions: list[str]) -> Bundle:
    """Return a bundle whose access decision has the code of the expression that `input.number` names."""
    modules = {f"bastide/{name}/{name}.rego": EMPTY.format(name=name) for name in ("access", "inference", "identity")}
    modules["bastide/access/access.rego"] += "".join(map(rules, range(len(expressions)), expressions))
    return Bundle(modules=modules, data={"bastide": {}, "schemas": DOCUMENT["schemas"]})


def rules(number: int, expression: str) -> str:
    statement = expression.startswith(("every ", "not "))
    body = f"{expression}\n\ty := true" if statement else f"y := {expression}"
    # `null` itself would be refused by OPA's type checker where it knows better.
    answer = json.dumps(ANSWERS[expression]) if expression in ANSWERS else "input.nul"
    return "".join(
        f'\ncode := "{name}" if {{\n\tinput.number == {number}\n\t{body}\n\ty {operator} {answer}\n}}\n'
        for name, operator in (("SAME", "=="), ("OTHER", "!="))
    )


async def code(engine: PolicyEngine, number: int) -> str:
    with engine.hold() as held:
        asked = {**DOCUMENT["input"], "number": number}
        return (await held.evaluate(Question.ACCESS, asked, deadline=soon())).reasons[0].code


@pytest_asyncio.fixture(params=["opa", "embedded"], loop_scope="module", scope="module")
async def serving(request: pytest.FixtureRequest) -> AsyncIterator[PolicyEngine]:
    """An engine that serves every expression."""
    engine = make_engine(request.param)
    try:
        await engine.load(bundle([expression for expression, _ in SERVED]))
        yield engine
    finally:
        await engine.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_both_engines_answer_alike(serving: PolicyEngine) -> None:
    answers = []
    for number, (expression, _) in enumerate(SERVED):
        try:
            answers.append((expression, await code(serving, number)))
        except GuardUnavailable:
            answers.append((expression, "ERROR"))
    assert [given for given in answers if given not in SERVED] == []


@pytest.mark.parametrize(("kind", "answer"), [("opa", "SAME"), ("embedded", "OTHER")])
@pytest.mark.parametrize("expression", [expression for expression, _ in DOCUMENT["differ"]])
async def test_what_is_known_to_differ_still_does(kind: str, answer: str, expression: str) -> None:
    """It MUST move to `same` when it no longer does, and nothing else may join it."""
    engine = make_engine(kind)
    try:
        await engine.load(bundle([expression]))
        assert await code(engine, 0) == answer
    finally:
        await engine.close()


@pytest.mark.parametrize("expression", DOCUMENT["refused"])
def test_what_the_engines_may_answer_differently_is_refused(expression: str) -> None:
    interpreter = regorus.Engine()
    source = bundle([expression]).modules["bastide/access/access.rego"]
    try:
        interpreter.add_policy("bastide/access/access.rego", source)
    except RuntimeError:
        return  # nothing that Rego's grammar has
    problems = lint.check(json.loads(interpreter.get_ast_as_json()), {"schemas": DOCUMENT["schemas"]})
    assert {problem.check for problem in problems} & {"builtins", "lint"}


@pytest.mark.parametrize("kind", ["opa", "embedded"])
@pytest.mark.parametrize("expression", DOCUMENT["mistyped"])
async def test_what_can_never_be_computed_never_decides(kind: str, expression: str) -> None:
    engine = make_engine(kind)
    try:
        try:
            await engine.load(bundle([expression]))
        except Error:
            return
        with pytest.raises(GuardUnavailable):
            await code(engine, 0)
    finally:
        await engine.close()


@pytest.mark.parametrize("kind", ["opa", "embedded"])
async def test_a_refused_expression_fails_the_load_of_either_engine(kind: str) -> None:
    engine = make_engine(kind)
    try:
        with pytest.raises(BundleError, match="sprintf"):
            await engine.load(bundle(['sprintf("%v", [1])']))
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "format": "email"}, "format"),
        ({"properties": {"a": {"items": {"$ref": "#/x"}}}}, "ref"),
        ({"additionalProperties": {"pattern": "\\d"}}, "pattern"),
        ({"patternProperties": {"a": {}}}, "patternProperties"),
        ({"items": [{}]}, "object"),
    ],
)
def test_a_schema_uses_what_both_engines_read_alike(schema: dict[str, Any], words: str) -> None:
    (problem,) = lint.check([], {"schemas": {"access": schema}})
    assert problem.check == "schema"
    assert words in problem.message


def schema_problems(pattern: str) -> list[str]:
    return list(agreement.of_schema({"pattern": pattern}))


@pytest.mark.parametrize(
    "pattern",
    ["^[a-z0-9][a-z0-9-]*$", "^spiffe://", r"^[a-z_]*\.[a-z]+$", "a(?:b|c)+d?", "x{2,3}", "é+", "[^a]", "(a(b))", ""],
)
def test_patterns_that_both_engines_read_alike_are_taken(pattern: str) -> None:
    assert schema_problems(pattern) == []


@pytest.mark.parametrize(
    "pattern",
    [r"\d", r"\w", r"\bx", r"\pL", r"\x41", "(?i)a", "(?P<n>a)", "(?=a)", "a{1001}", "a{2,1}", "(a{100}){100}", "a{,3}",
     "[[:alpha:]]", "[a&&b]", "[a--b]", r"[\d]", "[]a]", "[z-a]", "[a-Z]", "a**", "a++", "x{3}{2}", "*a", "^*", "a|*",
     "(", "a)", "a{", ")" * 5000 + "[", "[a-" * 3000, "a?" * 9000 + "{"],
    ids=lambda pattern: pattern[:12],
)  # fmt: skip
def test_other_patterns_are_refused(pattern: str) -> None:
    assert schema_problems(pattern) != []

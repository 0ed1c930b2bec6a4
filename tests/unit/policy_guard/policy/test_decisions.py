"""The vectors, and every malformed form of what they allow, on both engines."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest
import pytest_asyncio

from services.policy_guard.engine import PolicyEngine
from services.policy_guard.result import Effect, Question
from services.policy_guard.validation import malformed
from shared.inspection.patterns import KINDS
from tests.unit.policy_guard.policy.conftest import DEFAULT, make_engine, merged, soon, vectors

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTIONS = {"access": Question.ACCESS, "inference": Question.INFERENCE, "identity": Question.IDENTITY}
CASES = [(name, case) for name in QUESTIONS for case in vectors(name)]
ALLOWED = [(name, case) for name, case in CASES if case["effect"] == "ALLOW"]
PROTOS = Path(__file__).parents[4] / "protos" / "bastide"


def named(cases: list[tuple[str, dict]]) -> list:
    return [pytest.param(name, case, id=f"{name}: {case['name']}") for name, case in cases]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(default_kind: str) -> AsyncIterator[PolicyEngine]:
    engine = make_engine(default_kind)
    try:
        await engine.load(DEFAULT)
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize(("name", "case"), named(CASES))
async def test_vector(loaded: PolicyEngine, name: str, case: dict) -> None:
    result = await loaded.evaluate(QUESTIONS[name], case["input"], revision=DEFAULT.revision, deadline=soon())
    assert (result.effect, sorted(reason.code for reason in result.reasons)) == (case["effect"], case["reasons"])
    assert result.revision == DEFAULT.revision
    for key, value in case.get("obligations", {}).items():
        found = getattr(result.obligations, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
    if "limits" in case:
        limits = [
            {"scope": limit.scope, "unit": limit.unit, "limit": limit.limit, "window_seconds": limit.window_seconds}
            for limit in result.limits
        ]
        assert sorted(limits, key=str) == sorted(case["limits"], key=str)


@pytest.mark.parametrize(("name", "case"), named(ALLOWED))
async def test_every_malformed_form_of_an_allowed_question_is_denied(
    loaded: PolicyEngine, name: str, case: dict
) -> None:
    forms = list(malformed(case["input"], DEFAULT.data["schemas"][name]))
    assert len(forms) > 5
    for change, document in forms:
        result = await loaded.evaluate(QUESTIONS[name], document, revision=DEFAULT.revision, deadline=soon())
        assert result.effect is Effect.DENY, change
        assert result.obligations is None
        assert not result.limits


@pytest.mark.parametrize("document", [{}, {"time": True}, {"principal": None}, {"": {}}, {"time": 1e308}])
async def test_nonsense_is_denied(loaded: PolicyEngine, document: dict) -> None:
    for question in Question:
        result = await loaded.evaluate(question, document, revision=DEFAULT.revision, deadline=soon())
        assert [reason.code for reason in result.reasons] == ["INPUT_MALFORMED"]


async def test_each_role_may_do_what_the_action_table_says_and_nothing_else(loaded: PolicyEngine) -> None:
    base = vectors("access")[0]["input"]
    resource = {"tenant": "default", "owner": "grace@example.org", "submitters": ["grace@example.org"]}
    for action, entry in DEFAULT.data["bastide"]["actions"].items():
        for role in DEFAULT.data["bastide"]["roles"]:
            document = merged(base, {"action": action, "principal": {"roles": [role]}, "resource": resource})
            result = await loaded.evaluate(Question.ACCESS, document, revision=DEFAULT.revision, deadline=soon())
            expected = action != "model_server.inference.generate" and bool({role, "*"} & set(entry["roles"]))
            assert result.allowed == expected, (action, role)


@pytest.mark.parametrize(("name", "case"), named(CASES))
async def test_vectors_keep_to_the_input_schema_unless_malformed(name: str, case: dict) -> None:
    validator = jsonschema.Draft7Validator(DEFAULT.data["schemas"][name])
    other_action = case["name"] == "another action is malformed"
    assert validator.is_valid(case["input"]) != other_action


async def test_every_action_that_a_contract_names_is_in_the_table() -> None:
    text = " ".join(
        line.strip().removeprefix("//").strip()
        for path in sorted(PROTOS.glob("*/v1/*.proto"))
        for line in path.read_text().splitlines()
    )
    named_actions = set(re.findall(r"policy `([a-z_]+\.[a-z_]+\.[a-z_]+)`", text))
    assert len(named_actions) > 20
    assert named_actions - set(DEFAULT.data["bastide"]["actions"]) == set()


async def test_shared_parts_of_the_input_schemas_are_the_same() -> None:
    access, inference = (DEFAULT.data["schemas"][name]["properties"] for name in ("access", "inference"))
    for part in ("time", "principal", "workload", "method"):
        assert access[part] == inference[part]


async def test_every_kind_that_detectors_report_has_an_action_or_is_judged() -> None:
    content = DEFAULT.data["bastide"]["content"]
    known = {kind for kinds in content["kinds"].values() for kind in kinds}
    assert set(KINDS) - known == {"TOPIC"}
    assert "TOPIC" in content["input"]["categories"]

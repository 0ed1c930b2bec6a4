import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy_guard import result
from services.policy_guard.result import ContentAction, Effect, InferenceObligations, Question, Registration
from shared.errors import GuardUnavailable

REVISION = "sha256:1"
REASON = {"code": "ALLOWED", "message": "Yes.", "public": True}
OBLIGATIONS = {
    "input_actions": {"PERSONAL_IBAN": "TOKENISE"},
    "output_actions": {},
    "release": "STREAMED",
    "max_new_tokens": 10,
    "disclosure": "",
    "retain_text": False,
    "restore_surrogates": True,
}
LIMIT = {"scope": "TENANT", "unit": "TOKENS", "limit": 5, "window_seconds": 60}
INFERENCE = {
    "effect": "ALLOW",
    "reasons": [REASON],
    "obligations": OBLIGATIONS,
    "limits": [LIMIT],
    "revision": REVISION,
}
ACCESS = {**INFERENCE, "obligations": {}, "limits": []}
DENY = {**ACCESS, "effect": "DENY"}


def spoiled(value: dict, path: str, new: Any) -> dict:
    value = copy.deepcopy(value)
    *parents, name = path.split(".")
    part: Any = value
    for step in parents:
        part = part[int(step) if step.isdigit() else step]
    part[name] = new
    return value


def test_well_formed_answers_are_results() -> None:
    allowed = result.parse(Question.INFERENCE, INFERENCE, revision=REVISION)
    assert allowed.allowed
    assert isinstance(allowed.obligations, InferenceObligations)
    assert allowed.obligations.input_actions == {"PERSONAL_IBAN": ContentAction.TOKENISE}
    assert allowed.limits[0].limit == 5
    assert result.parse(Question.ACCESS, ACCESS, revision=REVISION).obligations is None
    denied = result.parse(Question.INFERENCE, DENY, revision=REVISION)
    assert denied.effect is Effect.DENY
    assert not denied.allowed
    token = {**ACCESS, "obligations": {"tenant": "default", "roles": ["developer"]}}
    assert result.parse(Question.IDENTITY, token, revision=REVISION).obligations == Registration(
        tenant="default", roles=("developer",)
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "<undefined>",
        "ALLOW",
        [],
        [INFERENCE],
        {},
        {"result": INFERENCE},
        *[{key: item for key, item in INFERENCE.items() if key != gone} for gone in INFERENCE],
        {**INFERENCE, "extra": 1},
        {**INFERENCE, "revision": "sha256:2"},
        {**INFERENCE, "revision": None},
        {**INFERENCE, "effect": "allow"},
        {**INFERENCE, "effect": True},
        {**INFERENCE, "effect": ["ALLOW", "DENY"]},
        {**INFERENCE, "reasons": []},
        {**INFERENCE, "reasons": [REASON] * 33},
        {**INFERENCE, "obligations": {}},
        {**INFERENCE, "limits": [LIMIT] * 17},
        {**INFERENCE, "effect": "DENY"},
        {**DENY, "limits": [LIMIT]},
        spoiled(INFERENCE, "reasons.0.code", "lower"),
        spoiled(INFERENCE, "reasons.0.public", "yes"),
        spoiled(INFERENCE, "reasons.0.public", 1),
        spoiled(INFERENCE, "reasons.0.extra", 1),
        spoiled(INFERENCE, "obligations.release", "EVENTUALLY"),
        spoiled(INFERENCE, "obligations.retain_text", 0),
        spoiled(INFERENCE, "obligations.max_new_tokens", 0),
        spoiled(INFERENCE, "obligations.max_new_tokens", 1.5),
        spoiled(INFERENCE, "obligations.max_new_tokens", "10"),
        spoiled(INFERENCE, "obligations.input_actions", {"PERSONAL_IBAN": "IGNORE"}),
        spoiled(INFERENCE, "obligations.input_actions", {"iban": "PASS"}),
        spoiled(INFERENCE, "obligations.input_actions", {f"K{n}": "PASS" for n in range(129)}),
        spoiled(INFERENCE, "obligations.more", 1),
        spoiled(INFERENCE, "limits.0.limit", -1),
        spoiled(INFERENCE, "limits.0.scope", "PLANET"),
        spoiled(INFERENCE, "limits.0.window_seconds", 10**9),
    ],
)
def test_anything_else_is_no_answer(value: object) -> None:
    with pytest.raises(GuardUnavailable):
        result.parse(Question.INFERENCE, value, revision=REVISION)


def test_an_answer_to_another_question_is_no_answer() -> None:
    with pytest.raises(GuardUnavailable):
        result.parse(Question.ACCESS, INFERENCE, revision=REVISION)
    with pytest.raises(GuardUnavailable):
        result.parse(Question.IDENTITY, ACCESS, revision=REVISION)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(INFERENCE)), json_values), st.sampled_from(list(Question)))
def test_arbitrary_values_never_become_an_allow(value: dict, question: Question) -> None:
    try:
        parsed = result.parse(question, {**DENY, **value}, revision=REVISION)
    except GuardUnavailable:
        return
    assert not parsed.allowed

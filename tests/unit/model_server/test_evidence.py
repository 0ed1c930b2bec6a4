from __future__ import annotations

import pytest

from bastide.model_server.v1 import inference_pb2
from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2
from services.model_server.evidence import MAX_KEPT_BYTES, Course, TooLongToKeep
from shared.transparency.commitment import verify_commitment


def course(prompt: str) -> Course:
    message = content_pb2.Message(role=content_pb2.ROLE_USER, content=prompt)
    return Course(wanted=inference_pb2.InferenceCall(messages=[message]), prompt_findings=[])


def test_the_prompt_is_committed_to_as_canonical_json() -> None:
    begun = course("é")
    begun.begin(keep=False)
    verify_commitment(begun.prompt.digest, '[{"content":"é","role":"user"}]'.encode(), begun.prompt.salt)


def test_a_prompt_that_is_too_long_to_keep_is_refused_before_anything_is_recorded() -> None:
    with pytest.raises(TooLongToKeep):
        course("x" * MAX_KEPT_BYTES).begin(keep=True)
    course("x" * MAX_KEPT_BYTES).begin(keep=False)


def test_an_answer_that_is_too_long_to_keep_ends_before_its_excess_is_released() -> None:
    begun = course("x")
    begun.begin(keep=True)
    begun.release(guard_pb2.Released(text="é" * (MAX_KEPT_BYTES // 2 - 20)))
    with pytest.raises(TooLongToKeep):
        begun.release(guard_pb2.Released(text="é" * 20))
    assert "".join(begun.released) == "é" * (MAX_KEPT_BYTES // 2 - 20)

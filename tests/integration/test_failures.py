"""The failure table as a matrix: what fails x how x when x unary or stream.

Every cell checks what the caller sees, that nothing further is released, and what is recorded; the `stage` fixture
then takes the fault back and waits until calls are answered again. Cells that make no sense are left out:

- OPA and the embedded interpreter are asked once, before the first byte: mid-stream their faults must not matter.
- A unary call releases nothing before its end, so "nothing further" is "nothing" for it.
- Slow peers within their deadline are the ordinary case; here slow is later than that.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from bastide.audit.v1 import audit_pb2
from bastide.policy_guard.v1 import guard_pb2
from tests.fakes import interposer, policy_engines, remote_model
from tests.fakes.interposer import Fault
from tests.fakes.policy_engines import Mode
from tests.fakes.scripted_backend import GOOD
from tests.integration.stage import DISCLOSURE, GENERATION_SECONDS, Outcome, Stage, question, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("stage")]

HOW = ("unary", "stream")
FIRST, LAST = "The first part of it. ", "The LAST part."
ANSWER = DISCLOSURE + "".join(map(str, GOOD))


def cells(*axes: Iterable[Any], quick: Callable[..., bool]) -> list[Any]:
    """Return the product of `axes` as parameters; all but the `quick` ones are marked slow."""
    return [
        pytest.param(*cell, marks=() if quick(*cell) else pytest.mark.slow, id="-".join(map(str, map(_name, cell))))
        for cell in itertools.product(*axes)
    ]


def _name(value: Any) -> Any:
    return getattr(value, "value", value)


def refused(outcome: Outcome, reason: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
    """Check the status that the caller sees, and that it repeats nothing of anybody's."""
    assert (outcome.code, outcome.reason) == (code, reason), outcome
    assert outcome.end is None
    for text in (interposer.FOREIGN_TEXT, policy_engines.FOREIGN_TEXT, "Error parsing", "Traceback"):
        assert text not in f"{outcome.details} {outcome.metadata}"


# -- policy engines: asked once, before the first byte --

ENGINE_FAULTS = ("dead", "hung", Mode.SLOW, Mode.GARBAGE, Mode.ERROR, *policy_engines.FALSE)


@pytest_asyncio.fixture(
    scope="session", loop_scope="session", params=["embedded", pytest.param("opa", marks=pytest.mark.slow)]
)
async def engine(request: pytest.FixtureRequest, standing_stage: Stage) -> AsyncIterator[str]:
    """The policy engine that the guard runs on."""
    if request.param == "embedded":
        yield "embedded"
        return
    if standing_stage.real_opa is None:
        pytest.skip("there is no opa binary")
    await standing_stage.use("opa")
    yield "opa"
    await standing_stage.use("embedded")


async def engine_fails(stage: Stage, engine: str, fault: str | Mode) -> None:
    if isinstance(fault, Mode):
        stage.engines.set(fault)
    elif fault == "hung":
        assert stage.engines.signal(engine, signal.SIGSTOP)
    else:
        stage.engines.set(Mode.ABSENT)
        assert stage.engines.signal(engine, signal.SIGKILL)


@pytest.mark.parametrize(
    ("fault", "how"),
    cells(ENGINE_FAULTS, HOW, quick=lambda fault, how: how == "stream" and fault in ("dead", "hung", Mode.UNDEFINED)),
)
async def test_policy_engine_fault_refuses_the_call(stage: Stage, engine: str, fault: str | Mode, how: str) -> None:
    asked = len(stage.backend.asked)
    await engine_fails(stage, engine, fault)
    outcome = await stage.ask(how)
    refused(outcome, "GUARD_UNAVAILABLE")
    assert outcome.text == ""
    assert len(stage.backend.asked) == asked
    await stage.reset()
    await stage.recorded(outcome.call_id, "REFUSED")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dead", "hung"])
async def test_policy_engine_fault_in_mid_stream_does_not_matter(stage: Stage, engine: str, fault: str) -> None:
    gate = asyncio.Event()
    stage.backend.says(FIRST, gate, LAST)
    before = stage.guard.passed["released"]
    asking = asyncio.create_task(stage.ask("stream"))
    await until(lambda: stage.guard.passed["released"] > before, "the first text is released")
    await engine_fails(stage, engine, fault)
    gate.set()
    outcome = await asking
    assert outcome.text == DISCLOSURE + FIRST + LAST
    await stage.reset()
    await stage.recorded(outcome.call_id, "AUTHORISED", "COMPLETED")


# -- the guard --


def _answer(**step: Any) -> Callable[[bytes], bytes]:
    return lambda _: guard_pb2.GuardInferenceResponse(**step).SerializeToString()


def _unsigned(answer: bytes) -> bytes:
    message = guard_pb2.GuardInferenceResponse.FromString(answer)
    message.decided.decision.ClearField("signature")
    return message.SerializeToString()


def _no_verdict(answer: bytes) -> bytes:
    message = guard_pb2.GuardInferenceResponse.FromString(answer)
    message.closed.ClearField("verdict")
    return message.SerializeToString()


FALSE_ANSWERS = {
    "decided": _unsigned,
    "reserved": _answer(reserved=guard_pb2.Reserved(max_new_tokens=1_000_000)),
    "released": _answer(reserved=guard_pb2.Reserved(max_new_tokens=1)),
    "closed": _no_verdict,
}


@pytest.mark.parametrize(
    ("step", "fault", "how"),
    cells(("decided", "reserved"), Fault, HOW, quick=lambda step, fault, how: step == "decided" and how == "stream"),
)
async def test_guard_fault_before_the_first_byte_refuses_the_call(
    stage: Stage, step: str, fault: Fault, how: str
) -> None:
    asked = len(stage.backend.asked)
    stage.guard.fail(step, fault, FALSE_ANSWERS[step])
    outcome = await stage.ask(how)
    refused(outcome, "GUARD_UNAVAILABLE")
    assert outcome.text == ""
    assert len(stage.backend.asked) == asked
    await stage.recorded(outcome.call_id, "REFUSED")


@pytest.mark.parametrize(
    ("step", "fault", "how"),
    cells(
        ("released", "closed"),
        Fault,
        HOW,
        quick=lambda step, fault, how: how == "stream" and (step == "released" or fault is Fault.FALSE),
    ),
)
async def test_guard_fault_in_mid_stream_ends_the_stream(stage: Stage, step: str, fault: Fault, how: str) -> None:
    gate, end = asyncio.Event(), asyncio.Event()
    stage.backend.says(FIRST, gate, LAST, end)
    if step == "closed":
        end.set()  # or the last text would be inspected before the end
    before = stage.guard.passed["released"]
    asking = asyncio.create_task(stage.ask(how))
    await until(lambda: stage.guard.passed["released"] > before, "the first text is released")
    stage.guard.fail(step, fault, FALSE_ANSWERS[step])
    gate.set()
    outcome = await asking
    refused(outcome, "GUARD_UNAVAILABLE")
    if how == "unary":
        assert outcome.text == ""
    else:
        assert outcome.text.startswith(DISCLOSURE + "The first part")
        assert (DISCLOSURE + FIRST + LAST).startswith(outcome.text)
        assert step == "closed" or "LAST" not in outcome.text
    await until(lambda: stage.backend.running == 0, "generation stops")
    await stage.recorded(outcome.call_id, "AUTHORISED", "CUT")


# -- the audit log --


def _unproven(answer: bytes) -> bytes:
    message = audit_pb2.AppendRecordsResponse.FromString(answer)
    for item in message.appended:
        item.ClearField("proof")
    return message.SerializeToString()


# Whether the record stands in the log although nobody was told.
TAKEN = (Fault.SLOW, Fault.GARBAGE, Fault.FALSE)


@pytest.mark.parametrize(
    ("purpose", "fault", "how"),
    cells(
        ("internal-assistant", "weather"),
        Fault,
        HOW,
        quick=lambda purpose, fault, how: how == "stream" and fault in (Fault.DEAD, Fault.GARBAGE),
    ),
)
async def test_audit_fault_before_the_first_byte_refuses_allowed_and_denied_calls(
    stage: Stage, purpose: str, fault: Fault, how: str
) -> None:
    asked = len(stage.backend.asked)
    stage.audit.fail("", fault, _unproven)
    outcome = await stage.ask(how, question(purpose=purpose))
    refused(outcome, "AUDIT_UNAVAILABLE")
    assert outcome.text == ""
    assert len(stage.backend.asked) == asked
    await stage.reset()
    ends = ("DENIED",) if purpose == "weather" else ("AUTHORISED", "REFUSED")
    await stage.recorded(outcome.call_id, *(ends if fault in TAKEN else ()))


@pytest.mark.parametrize(
    ("fault", "how"), cells(Fault, HOW, quick=lambda fault, how: how == "stream" and fault is not Fault.HUNG)
)
async def test_audit_fault_in_mid_stream_costs_the_receipt_and_never_the_record(
    stage: Stage, fault: Fault, how: str
) -> None:
    stage.audit.fail("COMPLETED", fault, _unproven)
    outcome = await stage.ask(how, question("Tell me about Xylophones"))
    refused(outcome, "AUDIT_UNAVAILABLE")
    assert outcome.text == ("" if how == "unary" else ANSWER)
    (waiting,) = stage.outbox
    sealed = waiting.read_bytes()
    for plain in (outcome.call_id, "COMPLETED", "models/tiny", "uma@example.org", "Xylophones", "first part"):
        assert plain.encode() not in sealed
    await stage.reset()
    await stage.recorded(outcome.call_id, "AUTHORISED", "COMPLETED")


# -- the backend: a real OpenAI client before a double of the remote server --

SAID = "Paris is the capital of France, as everyone knows. "


def _parts(fault: Fault, late: asyncio.Event) -> tuple[object, ...]:
    return {
        Fault.DEAD: (None,),
        Fault.HUNG: (asyncio.Event(),),
        Fault.SLOW: (late, remote_model.chunk("LATE"), remote_model.chunk("", finish="stop"), remote_model.usage()),
        Fault.GARBAGE: ('{"choices": [',),
        Fault.ERROR: ({"error": {"message": interposer.FOREIGN_TEXT, "code": 500}},),
        Fault.FALSE: (remote_model.chunk("LATE", model="another-model"),),
    }[fault]


@pytest.mark.parametrize(
    ("when", "fault", "how"),
    cells(
        ("before", "mid"),
        Fault,
        HOW,
        quick=lambda when, fault, how: when == "mid" and how == "stream" and fault not in (Fault.SLOW, Fault.HUNG),
    ),
)
async def test_backend_fault_ends_the_call(stage: Stage, when: str, fault: Fault, how: str) -> None:
    late = asyncio.Event()
    asyncio.get_running_loop().call_later(GENERATION_SECONDS + 1, late.set)
    stage.remote.events = ((remote_model.chunk(SAID),) if when == "mid" else ()) + _parts(fault, late)
    outcome = await stage.ask(how, question(model="remote"))
    if fault in (Fault.HUNG, Fault.SLOW):
        refused(outcome, "DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED)
    else:
        refused(outcome, "BACKEND_UNAVAILABLE")
    if how == "stream":
        assert (DISCLOSURE + SAID).startswith(outcome.text)
        assert when == "before" or "Paris" in outcome.text
    else:
        assert outcome.text == ""
    await stage.recorded(outcome.call_id, "AUTHORISED", "FAILED")
    stage.remote.events = remote_model.GOOD
    whole = await stage.well(question(model="remote"))
    assert whole.text == DISCLOSURE + "".join(remote_model.TEXT)

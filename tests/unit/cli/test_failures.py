"""What a failed call tells, and what a terminal is never told."""

from __future__ import annotations

import json
import sys
import unicodedata

import grpc
import pytest

from bastide.types.v1 import decision_pb2
from shared.cli.failures import CallFailed, explain
from shared.cli.render import Output, printable
from shared.errors import Error, GuardUnavailable, ResourceExhausted
from shared.rpc.call import Denied, Judgement
from shared.rpc.status import DETAILS_KEY, render


def failed(error: Error) -> CallFailed:
    status = render(error, call_id="call-1")
    trailers = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    code = next(item for item in grpc.StatusCode if item.value[0] == status.code)
    rpc = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=status.message)
    return CallFailed("Generate", "model-server", "127.0.0.1:8443", rpc)


def test_a_denial_shows_public_reasons_and_where_the_evidence_is() -> None:
    decision = decision_pb2.Decision(
        decision_id="d-1",
        reasons=[
            decision_pb2.Reason(code="PURPOSE_NOT_APPROVED", message="The purpose is not approved.", public=True),
            decision_pb2.Reason(code="HIDDEN", message="For the record only.", public=False),
        ],
    )
    judgement = Judgement(
        decision=decision, signed=decision_pb2.SignedDecision(), opening=decision_pb2.DecisionOpening()
    )
    shown = explain(failed(Denied(judgement)))
    assert shown is not None
    assert shown.title == "Generate refused: PERMISSION_DENIED"
    text = "\n".join(shown.lines)
    assert text.count("The purpose is not approved.") == 1
    assert "PURPOSE_NOT_APPROVED" in text
    assert "bastide audit receipt get --decision d-1" in text
    assert "HIDDEN" not in text
    assert shown.exit_code == 1


def test_a_missing_guard_is_unavailable() -> None:
    shown = explain(failed(GuardUnavailable("the guard does not answer")))
    assert shown is not None
    assert shown.exit_code == 3
    assert shown.document["reason"] == "GUARD_UNAVAILABLE"


def test_a_retry_delay_is_told() -> None:
    shown = explain(failed(ResourceExhausted("the budget is used up", retry_after=12.5)))
    assert shown is not None
    assert shown.document["retry_after_seconds"] == 12.5
    assert any("12.5 s" in line for line in shown.lines)


def test_an_answer_that_does_not_come_is_unavailable() -> None:
    shown = explain(TimeoutError())
    assert shown is not None
    assert (shown.title, shown.exit_code) == ("no answer in time", 3)
    assert shown.document["reason"] == "DEADLINE_EXCEEDED"


def test_what_nobody_foresaw_is_not_explained_away() -> None:
    assert explain(KeyError("x")) is None


@pytest.mark.parametrize("hidden", ["\x1b[2J", "\x9b2J", "\u202e", "\x07", "\r", "\u200b"])
def test_text_from_the_network_cannot_steer_a_terminal(hidden: str) -> None:
    shown = printable(f"a{hidden}b\n\tc")
    assert "\x1b" not in shown
    assert hidden not in shown
    assert shown.endswith("b\n\tc")


STEERING = [
    chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in {"Cc", "Cf", "Zl", "Zp"}
]


def test_json_for_programs_steers_no_terminal_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    said = {"a": "".join(STEERING) + "Gruß, \U0001f600"}
    Output(as_json=True).emit(said)
    (line,) = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert not set(STEERING) & set(line)
    assert "Gruß, \U0001f600" in line
    assert json.loads(line) == said


def test_no_value_poses_as_a_line_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "x\n\nThe receipt verifies\x1b[2J"
    output = Output(as_json=False)
    output.facts([(forged, forged), ("next", "fact")])
    output.table("a", "b", rows=[(forged, forged)], empty="")
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("The receipt")]
    assert "\x1b" not in "".join(lines)

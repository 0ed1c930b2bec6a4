"""What a writer's record becomes, and what a reader gets back of it."""

from __future__ import annotations

import dataclasses

import pytest

from bastide.audit.v1 import record_pb2
from bastide.types.v1 import decision_pb2, principal_pb2
from services.audit.errors import RecordConflict
from services.audit.log import Log
from services.audit.people import People
from services.audit.rendering import to_message
from services.audit.service import Recorder
from shared.errors import InvalidArgument
from shared.records.store import Records
from tests.unit.audit.test_people import Aead

WRITER = "spiffe://bastide.local/model-server"
ALICE = principal_pb2.Principal(subject="alice@acme.example", tenant="acme")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    log: Log
    people: People
    recorder: Recorder

    async def take(self, record: record_pb2.Record) -> int:
        (appended,) = await self.recorder.take(WRITER, [record])
        return appended.index


@pytest.fixture
def audit(log: Log, records: Records) -> Audit:
    aead = Aead()
    people = People(records, aead, aead, bytes(32))
    return Audit(log=log, people=people, recorder=Recorder(log, people))


def refusal(**members: object) -> record_pb2.Record:
    values = {"record_id": "r1", "kind": record_pb2.RECORD_KIND_REFUSED, "call_id": "c1", "method": "/a.B/C"} | members
    return record_pb2.Record(**values)  # type: ignore[arg-type]


async def test_an_entry_tells_how_the_call_ended(audit: Audit) -> None:
    refused = await audit.take(refusal(status_code=7, reason="MFA_REQUIRED"))
    done = await audit.take(refusal(record_id="r2", kind=record_pb2.RECORD_KIND_COMPLETED))
    entries = [to_message(await audit.log.reader.get(index)) for index in (refused, done)]
    assert [(entry.status_code, entry.reason) for entry in entries] == [(7, "MFA_REQUIRED"), (0, "OK")]


def decided(*, retain_text: bool) -> decision_pb2.SignedDecision:
    obligations = decision_pb2.Obligations(retain_text=retain_text)
    decision = decision_pb2.Decision(decision_id="d1", obligations=obligations)
    return decision_pb2.SignedDecision(decision=decision.SerializeToString())


async def test_text_is_kept_only_where_the_decision_says_so(audit: Audit) -> None:
    for decision in (None, decided(retain_text=False)):
        with pytest.raises(InvalidArgument) as refused:
            await audit.take(refusal(principal=ALICE, sealed_text=b"a prompt", decision=decision))
        assert refused.value.metadata["field"] == "records.sealed_text"
    index = await audit.take(refusal(principal=ALICE, sealed_text=b"a prompt", decision=decided(retain_text=True)))
    assert await audit.people.unseal(index, "text") == b"a prompt"


@pytest.mark.parametrize("part", ["sealed_text", "opening"])
async def test_a_record_id_used_for_other_sealed_content_is_refused(audit: Audit, part: str) -> None:
    def kept(content: bytes) -> record_pb2.Record:
        value = content if part == "sealed_text" else decision_pb2.DecisionOpening(policy_input=content)
        return refusal(principal=ALICE, decision=decided(retain_text=True), **{part: value})

    first = await audit.take(kept(b"one"))
    assert await audit.take(kept(b"one")) == first
    for other in (kept(b"two"), refusal(principal=ALICE, decision=decided(retain_text=True))):
        with pytest.raises(RecordConflict):
            await audit.take(other)


@pytest.mark.parametrize(
    "part", [{"sealed_text": b"a prompt"}, {"opening": decision_pb2.DecisionOpening(salt=bytes(32))}]
)
async def test_what_would_be_sealed_for_nobody_is_refused(audit: Audit, part: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await audit.take(refusal(decision=decided(retain_text=True), **part))
    assert refused.value.metadata["field"] == "records.principal"
    assert (await audit.log.reader.head()).size == 0

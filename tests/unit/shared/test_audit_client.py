"""What a writer is left with when the log's word does not come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from shared.audit import AuditClient, record_of
from shared.errors import AuditUnavailable
from shared.keys import FileKeyProvider
from shared.outbox import USE, Outbox
from shared.rpc.layers import Refusals
from shared.transparency.note import Signer, Verifier
from tests.fakes.acknowledgements import LOG, acknowledged


class SlowAudit(audit_pb2_grpc.AuditServiceServicer):
    """Takes every record, and acknowledges once it may, by `answer`."""

    def __init__(self, answer: Callable[[str], audit_pb2.Appended] = acknowledged) -> None:
        self._answer = answer
        self.taken: dict[str, record_pb2.Record] = {}
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def AppendRecords(  # type: ignore[override]  # the stubs know the synchronous servicer
        self, request: audit_pb2.AppendRecordsRequest, context: object
    ) -> audit_pb2.AppendRecordsResponse:
        self.taken |= {record.record_id: record for record in request.records}
        self.asked.set()
        await self.may_answer.wait()
        return audit_pb2.AppendRecordsResponse(appended=[self._answer(record.record_id) for record in request.records])


class Plain:
    """A channel to a server of this test."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def get(self) -> grpc.aio.Channel:
        return self._channel


@asynccontextmanager
async def serving(
    audit: SlowAudit, box: Outbox, *, timeout: float, log_key: Verifier | None = None
) -> AsyncIterator[AuditClient]:
    server = grpc.aio.server()
    audit_pb2_grpc.add_AuditServiceServicer_to_server(audit, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield AuditClient(Plain(channel), box, timeout=timeout, log_key=log_key)  # type: ignore[arg-type]
    await server.stop(None)


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    (tmp_path / "outbox").mkdir(mode=0o700)
    return Outbox(tmp_path / "outbox", FileKeyProvider.create(tmp_path / "keys.json", [USE]))


@pytest.mark.parametrize(
    "lie",
    [
        lambda record_id: acknowledged(record_id, leaf=b"{}"),
        lambda record_id: acknowledged(record_id, proof="a proof"),
        lambda record_id: acknowledged(record_id, proof=""),
        lambda record_id: acknowledged(record_id, index=1),
        lambda _: acknowledged("another record"),
        lambda record_id: acknowledged(record_id, signer=Signer(LOG.name, bytes(32))),
    ],
    ids=["leaf", "proof", "unproven", "index", "another-record", "another-key"],
)
async def test_what_does_not_show_the_record_in_the_log_is_no_acknowledgement(
    box: Outbox, lie: Callable[[str], audit_pb2.Appended]
) -> None:
    audit = SlowAudit(lie)
    audit.may_answer.set()
    record = record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="c", method="-")
    async with serving(audit, box, timeout=5.0, log_key=LOG.verifier) as client:
        with pytest.raises(AuditUnavailable):
            await client.append([record])
        with pytest.raises(AuditUnavailable):
            await client.conclude(record)
        with pytest.raises(AuditUnavailable):
            await client.deliver()
    assert len(await box.waiting(2)) == 1


@pytest.mark.parametrize("log_key", [None, LOG.verifier], ids=["without-key", "with-key"])
async def test_an_acknowledgement_shows_the_record_in_the_log(box: Outbox, log_key: Verifier | None) -> None:
    audit = SlowAudit()
    audit.may_answer.set()
    record = record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="c", method="-")
    async with serving(audit, box, timeout=5.0, log_key=log_key) as client:
        (appended,) = await client.append([record])
    assert json.loads(appended.leaf) == {"record_id": record.record_id}


async def test_an_end_whose_task_is_cancelled_waits_in_the_outbox(box: Outbox) -> None:
    audit = SlowAudit()
    record = record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="c", method="-")
    async with serving(audit, box, timeout=30.0) as client:
        ending = asyncio.create_task(client.conclude(record))
        await audit.asked.wait()
        ending.cancel()
        await asyncio.wait([ending])
        assert ending.cancelled()
        (name,) = await box.waiting(2)
        assert await box.read(name) == record
        audit.may_answer.set()
        await client.deliver()
        assert await box.waiting(2) == []


async def test_refusals_whose_acknowledgement_was_lost_are_not_counted_twice(box: Outbox) -> None:
    audit = SlowAudit()
    async with serving(audit, box, timeout=0.2) as client:
        refusals = Refusals(client)
        for _ in range(3):
            refusals.add("/a.B/C", "UNAUTHENTICATED")
        with pytest.raises(AuditUnavailable):
            await refusals.flush()
        refusals.add("/a.B/C", "UNAUTHENTICATED")
        audit.may_answer.set()
        await refusals.flush()
        await refusals.flush()
    assert [record.count for record in audit.taken.values()] == [3, 1]

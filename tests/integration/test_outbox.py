"""What has happened and could not be recorded waits, and nothing that waits holds up the rest."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from bastide.audit.v1 import record_pb2
from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc
from shared import outbox
from shared.audit import AuditClient, record_of
from shared.errors import AuditUnavailable
from shared.keys import FileKeyProvider
from shared.outbox import Outbox, OutboxFull
from shared.rpc.channel import Channel
from tests.fakes.interposer import Fault
from tests.integration.stage import PATIENCE_SECONDS, Outcome, Stage, explain, until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def record() -> record_pb2.Record:
    return record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="outbox-test", method="-", action="test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir(mode=0o700)
    return tmp_path / "outbox"


@pytest.fixture
def keys(stage: Stage, tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider(Path(shutil.copy2(stage.home / "model-server" / "keys.json", tmp_path)))


def client(stage: Stage, box: Outbox) -> AuditClient:
    """The model server's own client, past what stands before the audit service."""
    settings = stage.suite.settings("model-server")
    peer = settings.audit.model_copy(update={"address": f"127.0.0.1:{stage.suite.grpc['audit']}"})
    return AuditClient(Channel(peer, settings.server.tls, service="audit"), box, timeout=5.0)


def suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


async def test_a_record_that_is_refused_for_good_is_set_aside_and_the_rest_delivered(
    stage: Stage, folder: Path, keys: FileKeyProvider
) -> None:
    box = Outbox(folder, keys)
    audit = client(stage, box)
    taken, good = record(), record()
    await audit.append([taken])
    conflicting = record_pb2.Record.FromString(taken.SerializeToString())
    conflicting.action = "something else"
    for item in (conflicting, good):
        await box.put(item)
    await audit.deliver()
    assert suffixes(folder) == [".aside"]
    (first,) = await audit.append([good])  # known already: the same place again
    again = record()
    await box.put(again)
    await audit.deliver()
    (second,) = await audit.append([again])
    assert second.index > first.index
    assert suffixes(folder) == [".aside"]


async def test_a_record_whose_bytes_were_changed_is_set_aside_and_the_rest_delivered(
    stage: Stage, folder: Path, keys: FileKeyProvider
) -> None:
    box = Outbox(folder, keys)
    await box.put(record())
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    await box.put(record())
    await client(stage, box).deliver()
    assert suffixes(folder) == [".aside"]
    assert outbox.RECORDS.labels("aside")._value.get() == 1


async def test_a_record_moved_to_another_name_is_not_believed(
    stage: Stage, folder: Path, keys: FileKeyProvider
) -> None:
    box = Outbox(folder, keys)
    await box.put(record())
    (path,) = folder.iterdir()
    path.rename(path.with_name("0" * 20 + "-other.sealed"))
    await client(stage, Outbox(folder, keys)).deliver()
    assert suffixes(folder) == [".aside"]


async def test_records_of_a_process_that_died_are_delivered_by_the_next(
    stage: Stage, folder: Path, keys: FileKeyProvider
) -> None:
    left = record()
    await Outbox(folder, keys).put(left)
    audit = client(stage, Outbox(folder, keys))
    await audit.deliver()
    assert suffixes(folder) == []
    (appended,) = await audit.append([left])
    assert appended.proof


async def test_nothing_new_begins_while_the_outbox_is_full(
    stage: Stage, folder: Path, keys: FileKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_RECORDS", 1)
    box = Outbox(folder, keys)
    audit = client(stage, box)
    await box.put(record())
    with pytest.raises(OutboxFull):
        await audit.append([record()])
    await audit.deliver()
    await audit.append([record()])


@pytest.mark.parametrize("service", ["policy-guard", "model-server"])
async def test_a_set_up_gives_every_writer_the_key_to_its_outbox(stage: Stage, service: str, folder: Path) -> None:
    box = Outbox(folder, FileKeyProvider(stage.home / service / "keys.json"))
    await box.put(record())
    (name,) = await box.waiting(9)
    assert (await box.read(name)).action == "test"


async def test_records_wait_in_order_while_audit_is_away(stage: Stage, folder: Path, keys: FileKeyProvider) -> None:
    box = Outbox(folder, keys)
    settings = stage.suite.settings("model-server")
    nowhere = settings.audit.model_copy(update={"address": "127.0.0.1:9"})
    audit = AuditClient(Channel(nowhere, settings.server.tls, service="audit"), box, timeout=0.5)
    for _ in range(2):
        with pytest.raises(AuditUnavailable):
            await audit.conclude(record())
    with pytest.raises(AuditUnavailable):
        await audit.deliver()
    assert suffixes(folder) == [".sealed", ".sealed"]


async def test_a_change_whose_end_could_not_be_recorded_is_recorded_when_audit_is_back(stage: Stage) -> None:
    stage.audit.fail("CHANGED", Fault.ERROR)
    stub = catalog_pb2_grpc.CatalogServiceStub(stage.suite.channel("model-server"))
    declared = catalog_pb2.Declared(backend="fake", remote_model="other", revision="2", license="Apache-2.0")
    outcome = Outcome()
    try:
        await stub.DeclareModel(
            catalog_pb2.DeclareModelRequest(model_id="late", declared=declared, context_length=4096),
            metadata=stage.manager.metadata,
            timeout=PATIENCE_SECONDS,
        )
    except grpc.aio.AioRpcError as error:
        explain(error, outcome)
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    assert len(stage.outbox) == 1
    await stage.audit.revive()
    await until(lambda: not stage.outbox, "the outbox is delivered")
    await stage.recorded(outcome.call_id, "CHANGE", "SYSTEM", "CHANGED")

"""Appending: what an acknowledgement means, what is refused, and what a fault does."""

from __future__ import annotations

import asyncio
import functools
import json
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from sqlalchemy import text

from services.audit.entry import MAX_LEAF_BYTES, Sealed
from services.audit.errors import LogBusy, LogCorrupt, RecordConflict, WrongLog
from services.audit.log import Limits, Log
from services.audit.migrations import SCRIPTS
from services.audit.store import swap_head
from shared.errors import AuditUnavailable, InvalidArgument
from shared.records.store import Records
from shared.transparency.checkpoint import verify_checkpoint
from shared.transparency.merkle import verify_consistency
from shared.transparency.note import Signer
from tests.stores import Stores
from tests.unit.audit.conftest import SIGNER, Clock, entry, open_log


async def execute(records: Records, statement: str, **values: object) -> None:
    async with records.write() as connection:
        await connection.execute(text(statement), values)


async def test_an_acknowledged_entry_is_in_the_tree_under_a_signed_checkpoint(log: Log, clock: Clock) -> None:
    before = await log.reader.head()
    appended = await log.append(entry(1, kind="completed", call_id="c1", tenant="acme"), within=10)
    checkpoint = appended.proof.verify(appended.leaf, SIGNER.verifier)
    assert (before.size, checkpoint.size, appended.index) == (0, 1, 0)
    leaf = json.loads(appended.leaf)
    assert leaf == {
        "record": {"data": {"n": 1}, "fields": {"call_id": "c1", "kind": "completed", "tenant": "acme"}},
        "record_id": "record-1",
        "time": "2026-11-23T12:00:00.000000Z",
        "version": 1,
        "writer": "model_server",
    }
    assert rfc8785.dumps(leaf) == appended.leaf
    assert (await log.reader.head()).checkpoint == appended.checkpoint


async def test_concurrent_entries_share_commits_and_each_proof_verifies(log: Log) -> None:
    appended = await asyncio.gather(*(log.append(entry(n), within=30) for n in range(600)))
    assert sorted(a.index for a in appended) == list(range(600))
    for one in appended:
        one.proof.verify(one.leaf, SIGNER.verifier)
    assert len({a.checkpoint for a in appended}) < 60


async def test_entries_survive_a_restart_and_the_tree_goes_on(url: str, clock: Clock) -> None:
    async with open_log(url, clock) as log:
        first = await log.append_all([entry(n) for n in range(256)], within=10)
        await log.append_all([entry(n) for n in range(256, 300)], within=10)
    async with open_log(url, clock) as log:
        last = await log.append(entry(300), within=10)
        old = verify_checkpoint(first[-1].checkpoint, SIGNER.verifier)
        new = last.proof.verify(last.leaf, SIGNER.verifier)
        assert (old.size, new.size) == (256, 301)
        proof = await log.reader.consistency(old.size, new.size)
        verify_consistency(old.size, old.root, new.size, new.root, proof)


async def test_a_repeated_record_gets_its_first_place_again(log: Log, clock: Clock) -> None:
    first = await log.append(entry(1), within=10)
    await log.append(entry(2), within=10)
    clock.advance(60)
    again = await log.append(entry(1), within=10)
    assert (again.index, again.leaf) == (first.index, first.leaf)
    assert again.proof.verify(again.leaf, SIGNER.verifier).size == 2
    assert (await log.reader.head()).size == 2


async def test_a_record_repeated_within_one_batch_is_logged_once(log: Log, clock: Clock) -> None:
    async def late() -> object:
        clock.advance(1)
        return await log.append(entry(1), within=10)

    one, two = await asyncio.gather(log.append(entry(1), within=10), late())
    assert one == two
    assert (await log.reader.head()).size == 1


@pytest.mark.parametrize("changed", [{"data": {"n": 2}}, {"outcome": "other"}, {"kind": "completed"}])
async def test_a_record_id_used_for_something_else_is_refused(log: Log, changed: dict[str, object]) -> None:
    await log.append(entry(1), within=10)
    with pytest.raises(RecordConflict):
        await log.append(entry(1, **changed), within=10)
    assert (await log.append(entry(1, writer="policy_guard", **changed), within=10)).index == 1


async def test_a_group_is_logged_whole_and_in_order_or_not_at_all(log: Log) -> None:
    await log.append(entry(5), within=10)
    group = [entry(4), entry(5, data={}), entry(6)]
    bad, good = await asyncio.gather(
        log.append_all(group, within=10),
        log.append_all([entry(9), entry(5), entry(7)], within=10),
        return_exceptions=True,
    )
    assert isinstance(bad, RecordConflict)
    assert bad.metadata == {"record_id": "record-5"}
    assert isinstance(good, tuple)
    assert [a.index for a in good] == [1, 0, 2]
    for one in good:
        one.proof.verify(one.leaf, SIGNER.verifier)
    assert (await log.reader.head()).size == 3


async def test_a_cancelled_waiter_loses_neither_its_entry_nor_its_neighbours(log: Log) -> None:
    waiting = [asyncio.create_task(log.append(entry(n), within=10)) for n in range(20)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    kept = await asyncio.gather(*waiting[1::2])
    for one in kept:
        one.proof.verify(one.leaf, SIGNER.verifier)
    for n in range(20):
        again = await log.append(entry(n), within=10)
        again.proof.verify(again.leaf, SIGNER.verifier)
    assert (await log.reader.head()).size == 20


async def test_a_waiter_past_its_deadline_is_unavailable(log: Log) -> None:
    with pytest.raises(AuditUnavailable):
        await log.append(entry(1), within=0)
    assert (await log.append(entry(1), within=10)).index == 0


async def test_a_full_queue_refuses_instead_of_growing(url: str, clock: Clock) -> None:
    async with open_log(url, clock, Limits(queued_groups=3)) as log:
        outcomes = await asyncio.gather(*(log.append(entry(n), within=10) for n in range(5)), return_exceptions=True)
        assert [isinstance(o, LogBusy) for o in outcomes] == [False, False, False, True, True]
    big = Sealed(name="text", pseudonym="p", ciphertext=bytes(1000), tag=bytes(32))
    async with open_log(url, clock, Limits(queued_bytes=2500)) as log:
        outcomes = await asyncio.gather(
            *(log.append(entry(n, sealed=(big,)), within=10) for n in range(10, 14)), return_exceptions=True
        )
        assert [isinstance(o, LogBusy) for o in outcomes] == [False, False, True, True]


async def test_leaving_the_log_writes_what_waits_and_refuses_what_comes(url: str, clock: Clock) -> None:
    async with open_log(url, clock) as log:
        waiting = [asyncio.create_task(log.append(entry(n), within=10)) for n in range(50)]
        await asyncio.sleep(0)
    assert sorted([(await task).index for task in waiting]) == list(range(50))
    with pytest.raises(AuditUnavailable):
        await log.append(entry(51), within=10)


async def test_a_failing_store_fails_its_batch_and_the_next_starts_from_what_is_durable(
    log: Log, records: Records
) -> None:
    await log.append(entry(0), within=10)
    await execute(records, "ALTER TABLE leases RENAME TO hidden")
    leased = entry(1, call_id="c", lease_expires=Clock().now)
    outcomes = await asyncio.gather(
        log.append(leased, within=10), log.append(entry(2), within=10), return_exceptions=True
    )
    assert [type(o) for o in outcomes] == [AuditUnavailable] * 2
    assert (await log.reader.head()).size == 1
    await execute(records, "ALTER TABLE hidden RENAME TO leases")
    appended = await log.append(entry(2), within=10)
    assert appended.proof.verify(appended.leaf, SIGNER.verifier).size == 2


@pytest.mark.parametrize("other", [0, 2], ids=["behind", "another-tree"])
async def test_a_store_that_goes_back_under_a_running_log_is_not_extended(
    url: str, records: Records, clock: Clock, other: int
) -> None:
    async with open_log(url, clock) as log:
        await log.append_all([entry(n) for n in range(3)], within=10)
        async with records.read() as connection:
            head = (await connection.execute(text("SELECT size, root, checkpoint FROM head"))).one()._asdict()
            tile = await connection.scalar(text("SELECT hashes FROM hash_tiles"))
        signed = verify_checkpoint((await log.append(entry(3), within=10)).checkpoint, SIGNER.verifier)
        await execute(records, "DELETE FROM entries WHERE entry_index = 3")
        await execute(records, "UPDATE head SET size = :size, root = :root, checkpoint = :checkpoint", **head)
        await execute(records, "UPDATE hash_tiles SET hashes = :tile", tile=tile)
        if other:
            # Another process saw nothing of entry 3 and went on from the store as it is.
            async with open_log(url, clock) as fresh:
                await fresh.append_all([entry(n) for n in range(10, 10 + other)], within=10)
        with pytest.raises(AuditUnavailable) as refused:
            await log.append(entry(20), within=10)
        assert isinstance(refused.value.__cause__, LogCorrupt)
        assert log.fault == "LOG_CORRUPT"
        assert (await log.reader.head()).size == 3 + other
        assert signed.size == 4


async def test_two_replicas_on_postgresql_never_fork_the_tree(postgresql_stores: Stores, clock: Clock) -> None:
    url = postgresql_stores.new(SCRIPTS)
    limits = Limits(batch_entries=7)
    async with open_log(url, clock, limits) as one, open_log(url, clock, limits) as two:
        appended = await asyncio.gather(
            *((one if n % 2 else two).append(entry(n), within=30) for n in range(300)),
            *((two if n % 2 else one).append(entry(n), within=30) for n in range(0, 300, 5)),
        )
        assert {a.index for a in appended} == set(range(300))
        checkpoints = [a.proof.verify(a.leaf, SIGNER.verifier) for a in appended]
        assert len({(c.size, c.root) for c in checkpoints}) == len({c.size for c in checkpoints})
        final = verify_checkpoint((await one.reader.head()).checkpoint, SIGNER.verifier)
        for c in {c.size: c for c in checkpoints}.values():
            proof = await two.reader.consistency(c.size, final.size)
            verify_consistency(c.size, c.root, final.size, final.root, proof)


async def test_two_replicas_may_begin_the_log_at_once(url: str, clock: Clock) -> None:
    async with Records(url) as first, Records(url) as second:
        one, two = Log(first, SIGNER, clock=clock), Log(second, SIGNER, clock=clock)
        await asyncio.gather(one.__aenter__(), two.__aenter__())
        assert await one.reader.head() == await two.reader.head()
        await asyncio.gather(one.__aexit__(None, None, None), two.__aexit__(None, None, None))


async def test_a_store_of_another_log_is_refused(url: str, records: Records, clock: Clock) -> None:
    async with open_log(url, clock):
        pass
    for other in (Signer("log.example/audit", bytes(32)), Signer("other.example", bytes(range(32)))):
        with pytest.raises(WrongLog):
            await Log(records, other, clock=clock).__aenter__()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE head SET size = size - 1",
        "DELETE FROM hash_tiles WHERE level = 0 AND number = 1",
        "DELETE FROM hash_tiles WHERE level = 1",
    ],
)
async def test_a_damaged_store_is_refused_at_start(url: str, records: Records, clock: Clock, damage: str) -> None:
    async with open_log(url, clock) as log:
        await log.append_all([entry(n) for n in range(256)], within=10)
        await log.append_all([entry(n) for n in range(256, 300)], within=10)
    await execute(records, damage)
    with pytest.raises(LogCorrupt):
        await Log(records, SIGNER, clock=clock).__aenter__()


@pytest.mark.parametrize("other", [{"size": 0}, {"root": bytes(32)}])
async def test_a_head_that_another_writer_moved_is_not_replaced(
    log: Log, records: Records, other: dict[str, Any]
) -> None:
    await log.append(entry(0), within=10)
    before = await log.reader.head()

    async def swap() -> None:
        async with records.write() as connection:
            await swap_head(connection, replace(before, **other), replace(before, size=2))

    with pytest.raises(LogCorrupt):
        await swap()
    assert await log.reader.head() == before


async def test_an_altered_entry_is_never_returned(log: Log, records: Records) -> None:
    await log.append(entry(0), within=10)
    await execute(records, "UPDATE entries SET leaf = :leaf", leaf=b"{}")
    with pytest.raises(LogCorrupt):
        await log.reader.get(0)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"data": {"a": float("nan")}}, "data"),
        ({"data": {"a": 9007199254740993}}, "data"),
        ({"data": {"a": b"bytes"}}, "data"),
        ({"data": {"a": "\ud800"}}, "data"),
        ({"data": {"a": functools.reduce(lambda inner, _: [inner], range(8000), [])}}, "data"),
        ({"data": {"a": "x" * MAX_LEAF_BYTES}}, "data"),
        ({"data": {"a": "x" * (MAX_LEAF_BYTES - 20)}}, "data"),
        ({"writer": ""}, "writer"),
        ({"record_id": "a" * 256}, "record_id"),
        ({"kind": ""}, "kind"),
        ({"tenant": "a\x00b"}, "tenant"),
        ({"model": "\ud800"}, "model"),
        ({"lease_expires": Clock().now}, "lease_expires"),
        ({"lease_expires": Clock().now.replace(tzinfo=None), "call_id": "c"}, "lease_expires"),
        ({"sealed": (Sealed(name="a b", pseudonym="p", ciphertext=b"", tag=b""),)}, "sealed"),
        ({"sealed": (Sealed(name="a", pseudonym="p", ciphertext=b"", tag=b""),) * 2}, "sealed"),
        ({"sealed": (Sealed(name="a", pseudonym="p", ciphertext=bytes(2**21), tag=b""),)}, "sealed"),
    ],
)
async def test_an_entry_over_a_limit_is_refused_before_it_reaches_the_queue(
    changed: dict[str, object], field: str, log_unopened: Log
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await log_unopened.append(entry(1, **changed), within=10)
    assert caught.value.field == field


@pytest.fixture
def log_unopened(tmp_path: object) -> Log:
    # Never entered: an entry that got past validation would be refused as `AuditUnavailable` instead.
    return Log(Records(f"sqlite:///{tmp_path}/never.db"), SIGNER, clock=Clock())


async def test_an_empty_or_oversized_group_is_refused(log_unopened: Log) -> None:
    for group in ([], [entry(n) for n in range(257)]):
        with pytest.raises(InvalidArgument):
            await log_unopened.append_all(group, within=10)

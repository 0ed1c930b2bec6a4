"""A call that was opened is closed, by its end or by audit: once, and over restarts."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from sqlalchemy import text

from services.audit.entry import END_KINDS, Entry
from services.audit.leases import Leases
from services.audit.log import Log
from services.audit.search import Filter
from shared.records.store import Records
from tests.unit.audit.conftest import SIGNER, Clock, entry, open_log


def authorised(number: int, clock: Clock, call_id: str = "call", **members: object) -> Entry:
    lease = clock.now + timedelta(seconds=60)
    return entry(number, kind="authorised", call_id=call_id, lease_expires=lease, **members)


async def interruptions(log: Log) -> list[dict[str, object]]:
    page = await log.reader.search(Filter(kinds=frozenset({"interrupted"})), page_size=500, descending=False)
    return [json.loads(record.leaf)["record"] for record in page.records]


async def test_a_lapsed_call_is_closed_once_naming_what_opened_it(log: Log, records: Records, clock: Clock) -> None:
    leases = Leases(records, log)
    opened = await log.append(authorised(1, clock, tenant="acme", principal="p", model="m", method="/x"), within=10)
    assert json.loads(opened.leaf)["lease_expires"] == "2026-11-23T12:01:00.000000Z"
    clock.advance(59)
    assert await leases.close_lapsed() == 0
    clock.advance(1)
    assert await leases.close_lapsed() == 1
    assert await leases.close_lapsed() == 0
    (record,) = await interruptions(log)
    assert record == {
        "data": {
            "authorised_index": 0,
            "authorised_leaf_hash": opened.leaf_hash.hex(),
            "authorised_record_id": "record-1",
            "lease_expired": "2026-11-23T12:01:00.000000Z",
            "writer": "model_server",
        },
        "fields": {
            "call_id": "call",
            "kind": "interrupted",
            "method": "/x",
            "model": "m",
            "outcome": "interrupted",
            "principal": "p",
            "tenant": "acme",
        },
    }
    assert (await log.reader.get(1)).writer == "audit"


@pytest.mark.parametrize("kind", sorted(END_KINDS - {"interrupted"}))
async def test_an_end_by_the_same_writer_closes_the_lease(log: Log, records: Records, clock: Clock, kind: str) -> None:
    await log.append(authorised(1, clock), within=10)
    await log.append(entry(2, kind=kind, call_id="call"), within=10)
    clock.advance(61)
    assert await Leases(records, log).close_lapsed() == 0


async def test_what_is_no_end_of_this_call_leaves_the_lease(log: Log, records: Records, clock: Clock) -> None:
    await log.append(authorised(1, clock), within=10)
    await log.append(entry(2, kind="completed", call_id="another"), within=10)
    await log.append(entry(3, kind="completed", call_id="call", writer="policy_guard"), within=10)
    await log.append(entry(4, kind="access", call_id="call"), within=10)
    clock.advance(61)
    assert await Leases(records, log).close_lapsed() == 1


async def test_opening_and_ending_in_one_batch_leaves_no_lease(log: Log, records: Records, clock: Clock) -> None:
    await log.append_all([authorised(1, clock), entry(2, kind="completed", call_id="call")], within=10)
    await log.append_all([entry(3, kind="completed", call_id="next"), authorised(4, clock, call_id="next")], within=10)
    clock.advance(61)
    assert await Leases(records, log).close_lapsed() == 1
    assert [record["data"]["authorised_record_id"] for record in await interruptions(log)] == ["record-4"]  # type: ignore[index]


async def test_a_late_end_is_recorded_after_the_interruption(log: Log, records: Records, clock: Clock) -> None:
    await log.append(authorised(1, clock), within=10)
    clock.advance(61)
    leases = Leases(records, log)
    assert await leases.close_lapsed() == 1
    late = await log.append(entry(2, kind="completed", call_id="call"), within=10)
    assert late.index == 2
    assert await leases.close_lapsed() == 0


async def test_an_end_that_arrives_with_the_interruption_wins_or_follows_but_never_doubles(
    log: Log, records: Records, clock: Clock
) -> None:
    for n in range(10):
        await log.append(authorised(n, clock, call_id=f"call-{n}"), within=10)
    clock.advance(61)
    closed, *_ = await asyncio.gather(
        Leases(records, log).close_lapsed(),
        *(log.append(entry(100 + n, kind="completed", call_id=f"call-{n}"), within=10) for n in range(10)),
    )
    found = await interruptions(log)
    assert len(found) == closed
    for record in found:
        call = record["fields"]["call_id"]  # type: ignore[index]
        newest = await log.reader.newest(Filter(call_id=call))
        assert newest.fields["kind"] == "completed"


async def test_leases_outlive_a_restart(url: str, clock: Clock) -> None:
    async with open_log(url, clock) as log:
        await log.append(authorised(1, clock), within=10)
    clock.advance(3600)
    async with Records(url) as records, Log(records, SIGNER, clock=clock) as log:
        assert await Leases(records, log).close_lapsed() == 1


async def test_a_retried_authorisation_is_the_same_record_and_opens_no_second_lease(
    log: Log, records: Records, clock: Clock
) -> None:
    first = await log.append(authorised(1, clock), within=10)
    clock.advance(5)
    again = await log.append(authorised(1, clock), within=10)
    assert (first.index, first.leaf) == (again.index, again.leaf)
    await log.append(entry(2, kind="completed", call_id="call"), within=10)
    await log.append(authorised(1, clock), within=10)
    clock.advance(100)
    assert await Leases(records, log).close_lapsed() == 0


async def test_replicas_that_close_at_once_close_once(url: str, clock: Clock) -> None:
    async with (
        Records(url) as a,
        Records(url) as b,
        Log(a, SIGNER, clock=clock) as one,
        Log(b, SIGNER, clock=clock) as two,
    ):
        for n in range(20):
            await one.append(authorised(n, clock, call_id=f"call-{n}"), within=10)
        clock.advance(61)
        await asyncio.gather(Leases(a, one).close_lapsed(), Leases(b, two).close_lapsed())
        assert len(await interruptions(one)) == 20
        async with a.read() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM leases"))).scalar_one() == 0

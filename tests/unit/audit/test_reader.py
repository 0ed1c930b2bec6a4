"""Searching, paging, tailing and proving."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from services.audit import reader
from services.audit.errors import LogCorrupt
from services.audit.log import Log
from services.audit.migrations import SCRIPTS
from services.audit.search import Filter, decode_page_token, encode_page_token
from shared.errors import InvalidArgument, NotFound
from shared.records.store import Records
from shared.transparency.merkle import verify_inclusion
from shared.transparency.tiles import TileId
from tests.stores import Stores
from tests.unit.audit.conftest import SIGNER, Clock, entry, open_log

TENANTS = ("acme", "globex")


async def fill(log: Log, clock: Clock, count: int) -> None:
    for n in range(count):
        await log.append(
            entry(
                n,
                kind="denied" if n % 5 == 0 else "access",
                call_id=f"call-{n // 2}",
                decision_id=f"decision-{n}",
                tenant=TENANTS[n % 2],
                principal=f"person-{n % 3}",
                model="",
                method="/m",
                outcome="OK",
            ),
            within=10,
        )
        clock.advance(1)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), list(range(20))),
        (Filter(tenant="acme"), list(range(0, 20, 2))),
        (Filter(kinds=frozenset({"denied"})), [0, 5, 10, 15]),
        (Filter(kinds=frozenset({"denied", "access"}), tenant="globex", principal="person-1"), [1, 7, 13, 19]),
        (Filter(call_id="call-3"), [6, 7]),
        (Filter(decision_id="decision-4"), [4]),
        (Filter(record_id="record-9", writer="model_server"), [9]),
        (Filter(writer="policy_guard"), []),
        (Filter(method="/m", outcome="OK", tenant="acme", kinds=frozenset({"denied"})), [0, 10]),
        (Filter(model="none"), []),
    ],
)
async def test_a_search_finds_what_matches_in_either_order(
    log: Log, clock: Clock, wanted: Filter, expected: list[int]
) -> None:
    await fill(log, clock, 20)
    for descending in (False, True):
        found: list[int] = []
        token = ""
        while True:
            page = await log.reader.search(wanted, page_size=3, page_token=token, descending=descending)
            found += [record.index for record in page.records]
            token = page.next_page_token
            if not token:
                break
            assert len(page.records) == 3
        assert found == (expected[::-1] if descending else expected)


@pytest.mark.parametrize("member", ["writer", "call_id", "decision_id", "tenant", "method"])
def test_a_search_for_what_no_entry_can_hold_is_refused(member: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Filter(**{member: "a\0"})  # type: ignore[arg-type]
    assert refused.value.metadata["field"] == member


async def test_times_bound_a_search(log: Log, clock: Clock) -> None:
    start = clock.now
    await fill(log, clock, 5)
    since = (await log.reader.get(2)).time
    assert (since - start).total_seconds() == 2
    page = await log.reader.search(Filter(since=since), page_size=10, descending=False)
    assert [record.index for record in page.records] == [2, 3, 4]
    page = await log.reader.search(Filter(until=since), page_size=10, descending=False)
    assert [record.index for record in page.records] == [0, 1]


async def test_what_is_appended_meanwhile_moves_no_page(log: Log, clock: Clock) -> None:
    await fill(log, clock, 6)
    first = await log.reader.search(Filter(), page_size=3)
    await log.append(entry(100), within=10)
    second = await log.reader.search(Filter(), page_size=3, page_token=first.next_page_token)
    assert [r.index for r in (*first.records, *second.records)] == [5, 4, 3, 2, 1, 0]
    assert second.next_page_token == ""


async def test_a_page_ends_before_it_is_too_large_for_one_message(log: Log) -> None:
    for first in range(0, 500, 250):
        await log.append_all([entry(n, data={"text": "x" * 15_000}) for n in range(first, first + 250)], within=10)
    found: list[int] = []
    token = "start"
    while token:
        page = await log.reader.search(Filter(), page_size=500, page_token="" if token == "start" else token)
        assert sum(len(record.leaf) for record in page.records) <= 3 * 1024 * 1024
        found += [record.index for record in page.records]
        token = page.next_page_token
    assert found == list(range(500))[::-1]


@pytest.mark.parametrize("wanted", [Filter(method="/a.B/Rare"), Filter(tenant="nobody"), Filter(call_id="c7")])
@pytest.mark.parametrize("descending", [True, False])
async def test_a_page_looks_at_so_many_entries_and_the_next_goes_on(
    log: Log, monkeypatch: pytest.MonkeyPatch, wanted: Filter, descending: bool
) -> None:
    monkeypatch.setattr(reader, "MAX_SCANNED", 10)
    rare = {7: "/a.B/Rare", 20: "/a.B/Rare", 21: "/a.B/Rare", 39: "/a.B/Rare"}
    for size in (0, 1, 10, 40):
        start = (await log.reader.head()).size
        if size > start:
            added = [entry(n, method=rare.get(n, "/a.B/C"), call_id=f"c{n}") for n in range(start, size)]
            await log.append_all(added, within=10)
        found: list[int] = []
        page = await log.reader.search(wanted, page_size=2, descending=descending)
        pages = 1
        found += [record.index for record in page.records]
        while page.next_page_token:
            page = await log.reader.search(wanted, page_size=2, page_token=page.next_page_token, descending=descending)
            pages += 1
            found += [record.index for record in page.records]
        expected = [n for n in range(size) if (n in rare if wanted.method else n == 7 and bool(wanted.call_id))]
        assert found == (expected[::-1] if descending else expected)
    assert pages == (1 if wanted.call_id else 4)


async def test_a_tail_goes_through_a_long_backlog(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_SCANNED", 10)
    await log.append_all([entry(n, tenant="acme" if n in {3, 25, 39} else "other") for n in range(40)], within=10)
    async with aclosing(log.reader.tail(0, Filter(tenant="acme"))) as tail, asyncio.timeout(10):
        assert [(await anext(tail)).index for _ in range(3)] == [3, 25, 39]


async def test_a_page_token_belongs_to_its_search(log: Log, clock: Clock) -> None:
    await fill(log, clock, 6)
    token = (await log.reader.search(Filter(tenant="acme"), page_size=1)).next_page_token
    for wanted, descending in ((Filter(tenant="globex"), True), (Filter(tenant="acme"), False), (Filter(), True)):
        with pytest.raises(InvalidArgument) as caught:
            await log.reader.search(wanted, page_size=1, page_token=token, descending=descending)
        assert caught.value.field == "page_token"
    for size in (0, 501):
        with pytest.raises(InvalidArgument):
            await log.reader.search(Filter(), page_size=size)


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda b: b.hex()))
def test_arbitrary_page_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_page_token(token, b"0123456789abcdef")


@given(st.integers(0, 2**63 - 1))
def test_a_page_token_round_trips(index: int) -> None:
    digest = Filter().digest(descending=True)
    assert decode_page_token(encode_page_token(index, digest), digest) == index


async def test_an_entry_is_found_by_index_and_by_its_newest_match(log: Log, clock: Clock) -> None:
    await fill(log, clock, 4)
    record = await log.reader.get(3)
    assert (record.index, record.record_id, record.fields["call_id"]) == (3, "record-3", "call-1")
    assert "model" not in record.fields
    assert await log.reader.newest(Filter(call_id="call-1")) == record
    for missing in (log.reader.get(4), log.reader.get(-1), log.reader.newest(Filter(call_id="none"))):
        with pytest.raises(NotFound):
            await missing


async def test_every_entry_has_a_proof_in_every_tree_that_holds_it(log: Log) -> None:
    appended = []
    for start in range(0, 300, 60):
        appended += await log.append_all([entry(n) for n in range(start, start + 60)], within=10)
    sizes = {a.proof.verify(a.leaf, SIGNER.verifier).size: a.proof.verify(a.leaf, SIGNER.verifier) for a in appended}
    assert sorted(sizes) == [60, 120, 180, 240, 300]
    for index in (0, 59, 60, 200, 255, 256, 299):
        for size, checkpoint in sizes.items():
            if index < size:
                path = await log.reader.inclusion(index, size)
                verify_inclusion(appended[index].leaf_hash, index, size, path, checkpoint.root)
    proof = await log.reader.prove(await log.reader.get(7))
    assert proof.verify(appended[7].leaf, SIGNER.verifier).size == 300


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3), (0, 4)])
async def test_a_proof_beyond_the_log_is_refused(log: Log, index: int, size: int) -> None:
    await log.append_all([entry(n) for n in range(3)], within=10)
    with pytest.raises(InvalidArgument):
        await log.reader.inclusion(index, size)
    for first, second in ((2, 1), (-1, 2), (1, 4)):
        with pytest.raises(InvalidArgument):
            await log.reader.consistency(first, second)


async def test_a_tile_has_the_width_of_the_signed_tree(log: Log) -> None:
    appended = await log.append_all([entry(n) for n in range(256)], within=10)
    appended += await log.append_all([entry(n) for n in range(256, 260)], within=10)
    assert await log.reader.tile(TileId(0, 1)) == b"".join(a.leaf_hash for a in appended[256:])
    assert len(await log.reader.tile(TileId(0, 0))) == 8192
    assert len(await log.reader.tile(TileId(1, 0))) == 32
    for missing in (TileId(0, 2), TileId(1, 1), TileId(2, 0)):
        with pytest.raises(NotFound):
            await log.reader.tile(missing)


async def test_a_proof_that_would_not_verify_is_never_given(log: Log, records: Records) -> None:
    await log.append_all([entry(n) for n in range(3)], within=10)
    record = await log.reader.get(1)
    async with records.write() as connection:
        await connection.execute(text("UPDATE hash_tiles SET hashes = :h"), {"h": bytes(96)})
    with pytest.raises(LogCorrupt):
        await log.reader.prove(record)


async def test_a_tail_gives_what_is_there_and_then_what_comes(log: Log, clock: Clock) -> None:
    await fill(log, clock, 3)
    seen: list[int] = []

    async def follow() -> None:
        async with aclosing(log.reader.tail(1)) as tail:
            async for record in tail:
                seen.append(record.index)
                if len(seen) == 302:
                    return

    following = asyncio.create_task(follow())
    await log.append_all([entry(n) for n in range(100, 250)], within=10)
    await log.append_all([entry(n) for n in range(250, 400)], within=10)
    await asyncio.wait_for(following, 20)
    assert seen == list(range(1, 303))


async def test_a_filtered_tail_skips_what_does_not_match(log: Log, clock: Clock) -> None:
    await fill(log, clock, 12)
    async with aclosing(log.reader.tail(0, Filter(kinds=frozenset({"denied"})))) as tail:
        seen = [(await anext(tail)).index for _ in range(3)]
        waiting = asyncio.ensure_future(anext(tail))
        await log.append_all([entry(50), entry(51, kind="denied")], within=10)
        seen.append((await asyncio.wait_for(waiting, 20)).index)
    assert seen == [0, 5, 10, 13]


async def test_a_tail_sees_another_replicas_entries(postgresql_stores: Stores, clock: Clock) -> None:
    url = postgresql_stores.new(SCRIPTS)
    async with (
        open_log(url, clock) as one,
        Records(url) as records,
        Log(records, SIGNER, clock=clock, poll_seconds=0.01) as two,
        aclosing(two.reader.tail(0)) as tail,
    ):
        waiting = asyncio.ensure_future(anext(tail))
        await one.append(entry(1), within=10)
        assert (await asyncio.wait_for(waiting, 20)).record_id == "record-1"

"""What a scrape tells about the log is what the log is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.log import Log
from services.audit.publisher import Publisher
from shared.errors import FailedPrecondition
from shared.records.store import Records
from tests.metrics import scraped, series
from tests.unit.audit.conftest import SIGNER, Clock, entry


class Gated(Records):
    """A record store whose writes wait for `go`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        self.asked.set()
        await self.go.wait()
        async with super().write() as connection:
            yield connection


def appended(kind: str) -> float:
    return series("bastide_log_appended_total").get(frozenset({("kind", kind)}), 0.0)


async def test_the_queue_is_shown_while_appends_wait_for_the_writer(url: str, clock: Clock) -> None:
    async with Gated(url) as records:
        records.go.set()
        async with Log(records, SIGNER, clock=clock) as log:
            records.go.clear()
            records.asked.clear()
            tasks = [asyncio.create_task(log.append(entry(0), within=10))]
            await records.asked.wait()
            assert scraped("bastide_log_queued_groups") == 0
            waiting = [entry(1), entry(2, data={"text": "x" * 4000})]
            tasks += [asyncio.create_task(log.append(item, within=10)) for item in waiting]
            await asyncio.sleep(0)
            assert scraped("bastide_log_queued_groups") == 2
            queued_bytes = scraped("bastide_log_queued_bytes")
            records.go.set()
            placed = await asyncio.gather(*tasks)
            assert queued_bytes == sum(len(item.leaf) for item in placed[1:])
            assert scraped("bastide_log_queued_groups") == scraped("bastide_log_queued_bytes") == 0


async def test_entries_are_counted_by_kind_once_however_often_they_are_sent(log: Log) -> None:
    before = {kind: appended(kind) for kind in ("authorised", "denied")}
    group = [entry(n, kind="authorised") for n in range(3)]
    await log.append_all([*group, entry(9, kind="denied")], within=10)
    await log.append_all(group, within=10)
    assert {kind: appended(kind) - before[kind] for kind in before} == {"authorised": 3, "denied": 1}
    assert scraped("bastide_log_entries") == 4


async def test_the_time_of_publishing_moves_when_the_directory_is_up_to_date_and_only_then(
    log: Log, records: Records, tmp_path: Path
) -> None:
    publisher = Publisher(records, log.reader, SIGNER.verifier, tmp_path / "published")
    times = []
    for number in (0, None):  # something new, then nothing
        if number is not None:
            await log.append(entry(number), within=10)
        before = time.time()
        await publisher.publish()
        times.append(scraped("bastide_log_published_timestamp_seconds"))
        assert before <= times[-1] <= time.time()
        assert scraped("bastide_log_published_entries") == 1
    await log.append(entry(1), within=10)
    (tmp_path / "published" / "checkpoint").unlink()
    (tmp_path / "published" / "checkpoint").mkdir()
    with pytest.raises(FailedPrecondition):
        await publisher.publish()
    assert scraped("bastide_log_published_timestamp_seconds") == times[-1]
    assert scraped("bastide_log_published_entries") == 1

"""How much waits in the outbox, and for how long, as a scrape shows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bastide.audit.v1 import record_pb2
from shared.audit import record_of
from shared.keys import FileKeyProvider
from shared.outbox import USE, Outbox
from tests.metrics import scraped

SECOND = 1_000_000_000


class Clock:
    """Nanoseconds since 1970 that stand still until told."""

    def __init__(self) -> None:
        self.now = 1_795_000_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: int) -> None:
        self.now += seconds * SECOND


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir(mode=0o700)
    return tmp_path / "outbox"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider.create(tmp_path / "keys.json", [USE])


@pytest.fixture
def box(folder: Path, keys: FileKeyProvider, clock: Clock) -> Outbox:
    return Outbox(folder, keys, clock=clock)


def record() -> record_pb2.Record:
    return record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="outbox-test", method="-", action="test")


def shown() -> tuple[float, float, float]:
    """Return how many wait, how many were set aside, and the oldest one's age in seconds."""
    return (
        scraped("bastide_outbox_records", state="waiting"),
        scraped("bastide_outbox_records", state="aside"),
        scraped("bastide_outbox_oldest_age_seconds"),
    )


async def test_the_oldest_record_that_waits_grows_older_until_it_is_delivered_or_set_aside(
    box: Outbox, clock: Clock
) -> None:
    assert shown() == (0, 0, 0)
    await box.put(record())
    clock.advance(40)
    await box.put(record())
    clock.advance(2)
    assert shown() == (2, 0, 42)
    first, second = await box.waiting(9)
    await box.delete(first)
    assert shown() == (1, 0, 2)
    await box.set_aside(second)
    clock.advance(60)
    assert shown() == (0, 1, 0)


async def test_what_an_earlier_process_left_counts_from_when_it_was_put(
    box: Outbox, folder: Path, keys: FileKeyProvider, clock: Clock
) -> None:
    await box.put(record())
    clock.advance(3600)
    Outbox(folder, keys, clock=clock)
    assert shown() == (1, 0, 3600)


async def test_what_a_person_puts_back_counts_again(box: Outbox, folder: Path, clock: Clock) -> None:
    await box.put(record())
    (name,) = await box.waiting(9)
    await box.set_aside(name)
    clock.advance(5)
    (folder / name).with_suffix(".aside").rename(folder / name)
    (folder / "strange.sealed").touch()
    assert len(await box.waiting(9)) == 2
    assert shown() == (2, 0, 5)


async def test_records_that_come_and_go_at_once_leave_a_true_count(box: Outbox, folder: Path) -> None:
    await asyncio.gather(*(box.put(record()) for _ in range(20)))
    names = await box.waiting(20)
    await asyncio.gather(*map(box.delete, names[:15]), *map(box.set_aside, names[15:17]), box.put(record()))
    assert shown()[:2] == (4, 2)
    assert len(list(folder.glob("*.sealed"))) == 4


def test_its_folder_is_made_for_this_user_alone(tmp_path: Path, keys: FileKeyProvider) -> None:
    Outbox(tmp_path / "new", keys)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileNotFoundError):
        Outbox(tmp_path / "no" / "where", keys)

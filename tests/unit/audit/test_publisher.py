"""The published directory: a foreign verifier and ours agree on it, and it recovers from anything."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from services.audit.errors import LogCorrupt, WrongLog
from services.audit.housekeeping import Housekeeping
from services.audit.leases import Leases
from services.audit.log import Log
from services.audit.migrations import SCRIPTS
from services.audit.publisher import Publisher
from shared.errors import AuditUnavailable, FailedPrecondition
from shared.records.store import Records
from shared.transparency.checkpoint import Checkpoint
from shared.transparency.directory import verify_directory
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.note import Signer, Verifier
from tests import tools
from tests.stores import Stores
from tests.unit.audit.conftest import SIGNER, Clock, entry

VKEY = SIGNER.verifier.vkey


async def fill(log: Log, start: int, end: int) -> None:
    for first in range(start, end, 250):
        await log.append_all([entry(n) for n in range(first, min(first + 250, end))], within=10)


@pytest.fixture
def publisher(log: Log, records: Records, tmp_path: Path) -> Publisher:
    return Publisher(records, log.reader, SIGNER.verifier, tmp_path / "published")


def accepted_by_fsck(directory: Path, checkpoint: Checkpoint) -> bool:
    """Whether the foreign verifier says that it recomputed this very tree. Its exit status is 0 even when it fails,
    and with one worker it hangs on some failures."""
    program = tools.need("tlog-fsck")
    key = directory.parent / "key.pub"
    key.write_text(VKEY)
    command = [program, "-N=8", "-ui=false", f"--storage_url=file://{directory}/", f"--public_key={key}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    accepted = f"Successfully fsck'd log with size {checkpoint.size} and root" in result.stderr
    assert accepted == ("fsck failed" not in result.stderr), result.stderr
    return accepted and checkpoint.root.hex() in result.stderr


@pytest.mark.parametrize("size", [1, 256, 700])
async def test_a_foreign_verifier_accepts_the_directory_and_refuses_a_changed_one(
    log: Log, publisher: Publisher, tmp_path: Path, size: int
) -> None:
    await fill(log, 0, size // 2)
    await publisher.publish()
    await fill(log, size // 2, size)
    published = await publisher.publish()
    assert published is not None
    assert published.size == size
    directory = tmp_path / "published"
    assert accepted_by_fsck(directory, published)
    bundle = next(p for p in sorted((directory / "tile/entries").rglob("*")) if p.is_file())
    bundle.write_bytes(bundle.read_bytes().replace(b'"n":0', b'"n":9', 1))
    assert not accepted_by_fsck(directory, published)


async def test_our_verifier_recomputes_the_directory_from_its_entries(
    log: Log, publisher: Publisher, tmp_path: Path
) -> None:
    directory = tmp_path / "published"
    await publisher.publish()
    assert verify_directory(directory, VKEY).checkpoint.size == 0
    entries: dict[int, bytes] = {}
    for start, end in ((0, 1), (1, 255), (255, 256), (256, 257), (257, 530)):
        await fill(log, start, end)
        published = await publisher.publish()
        found = verify_directory(directory, VKEY, entries.__setitem__)
        assert found.checkpoint == published
        assert found.checkpoint.size == end
    assert (found.tiles, found.bundles) == (4, 3)
    assert [entries[n] for n in range(530)] == [(await log.reader.get(n)).leaf for n in range(530)]


async def test_full_tiles_replace_their_partial_ones(log: Log, publisher: Publisher, tmp_path: Path) -> None:
    await fill(log, 0, 100)
    await publisher.publish()
    await fill(log, 100, 300)
    await publisher.publish()
    files = {str(p.relative_to(tmp_path / "published")) for p in (tmp_path / "published").rglob("*") if p.is_file()}
    assert files == {
        ".lock",
        "checkpoint",
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/44",
    }


async def test_a_half_written_publication_is_completed(log: Log, publisher: Publisher, tmp_path: Path) -> None:
    directory = tmp_path / "published"
    await fill(log, 0, 300)
    await publisher.publish()
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    await fill(log, 300, 600)
    await publisher.publish()
    # What a kill between the tiles and the checkpoint leaves: new tiles, a torn temporary file, the old checkpoint.
    for path, data in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (directory / "tile/0/002.p").joinpath("88").unlink()
    (directory / "tile/0/.001.new").write_bytes(b"torn")
    assert verify_directory(directory, VKEY).checkpoint.size == 300
    await publisher.publish()
    checkpoint = verify_directory(directory, VKEY).checkpoint
    assert checkpoint.size == 600
    assert accepted_by_fsck(directory, checkpoint)


async def test_a_store_rolled_back_behind_its_publication_is_refused(
    log: Log, publisher: Publisher, records: Records, clock: Clock, tmp_path: Path, stores: Stores
) -> None:
    await fill(log, 0, 10)
    await publisher.publish()
    async with Records(stores.new(SCRIPTS)) as restored, Log(restored, SIGNER, clock=clock) as other:
        behind = Publisher(restored, other.reader, SIGNER.verifier, tmp_path / "published")
        with pytest.raises(LogCorrupt, match="ahead"):
            await behind.publish()
        await other.append_all([entry(n, tenant="fork") for n in range(20)], within=10)
        with pytest.raises(LogCorrupt, match="prefix"):
            await behind.publish()


async def test_a_directory_of_another_log_is_refused(
    log: Log, publisher: Publisher, records: Records, tmp_path: Path
) -> None:
    await publisher.publish()
    other = Publisher(records, log.reader, Signer("other.example", bytes(32)).verifier, tmp_path / "published")
    with pytest.raises(WrongLog):
        await other.publish()


async def test_a_store_that_lost_entries_publishes_no_checkpoint(
    log: Log, publisher: Publisher, records: Records, tmp_path: Path
) -> None:
    await fill(log, 0, 10)
    async with records.write() as connection:
        await connection.execute(text("DELETE FROM entries WHERE entry_index = 5"))
    with pytest.raises(LogCorrupt):
        await publisher.publish()
    assert not (tmp_path / "published/checkpoint").exists()


async def test_a_directory_that_cannot_be_written_is_reported(log: Log, records: Records, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition):
        await Publisher(records, log.reader, SIGNER.verifier, tmp_path / "file/below").publish()


async def test_housekeeping_publishes_the_last_entries_when_it_ends(
    log: Log, publisher: Publisher, records: Records, clock: Clock, tmp_path: Path
) -> None:
    keeping = Housekeeping(log, publisher, Leases(records, log), publish_seconds=0.01, lease_seconds=0.01)
    async with keeping:
        assert verify_directory(tmp_path / "published", VKEY).checkpoint.size == 0
        await fill(log, 0, 5)
    assert verify_directory(tmp_path / "published", VKEY).checkpoint.size == 5
    assert keeping.faults == {}


async def test_what_is_being_written_when_housekeeping_ends_is_written_first(
    log: Log, publisher: Publisher, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, writing, may_go_on = os.fsync, threading.Event(), threading.Event()

    def slow(file: int) -> None:
        writing.set()
        may_go_on.wait(30)
        fsync(file)

    async with Housekeeping(log, publisher, Leases(records, log), publish_seconds=0.01, lease_seconds=60) as keeping:
        monkeypatch.setattr("services.audit.publisher.os.fsync", slow)
        await fill(log, 0, 5)
        await asyncio.to_thread(writing.wait, 30)
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
    assert keeping.faults == {}
    assert verify_directory(tmp_path / "published", VKEY).checkpoint.size == 5


def _flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("target", "damage", "message"),
    [
        ("tile/entries/000", "flip", "tile/0/000: hash 255 is not that of the entries"),
        ("tile/entries/001.p/44", "cut", "tile/entries/001.p/44: the entry bundle has a torn entry or too many"),
        ("tile/entries/001.p/44", "remove", "tile/entries/001.p/44: missing or unreadable"),
        ("tile/0/000", "flip", "tile/0/000: hash 255 is not that of the entries"),
        ("tile/0/000", "cut", "tile/0/000: has 8191 bytes, not 8192"),
        ("tile/0/001.p/44", "flip", "tile/0/001.p/44: hash 43 is not that of the entries"),
        ("tile/1/000.p/1", "flip", "tile/1/000.p/1: hash 0 is not that of the entries"),
        ("tile/1/000.p/1", "remove", "tile/1/000.p/1: missing or unreadable"),
        ("checkpoint", "cut", "checkpoint: a note is a text, an empty line and signatures"),
        ("checkpoint", "remove", "checkpoint: missing or unreadable"),
        ("tile/0/000.p/7", "forge", "tile/0/000.p/7: disagrees with the tree that followed it"),
        ("tile/entries/001.p/3", "forge", "tile/entries/001.p/3: disagrees with the tree that followed it"),
    ],
)
async def test_the_first_thing_that_is_wrong_is_named(
    log: Log, publisher: Publisher, tmp_path: Path, target: str, damage: str, message: str
) -> None:
    await fill(log, 0, 300)
    await publisher.publish()
    directory = tmp_path / "published"
    path = directory / target
    if damage == "flip":
        _flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0" * 32)
    with pytest.raises((Malformed, Unverified)) as caught:
        verify_directory(directory, VKEY)
    assert caught.value.message == message


async def test_a_log_that_grows_while_it_is_verified_verifies(log: Log, publisher: Publisher, tmp_path: Path) -> None:
    directory, loop = tmp_path / "published", asyncio.get_running_loop()
    await fill(log, 0, 300)
    await publisher.publish()

    async def grow() -> None:
        await fill(log, 300, 600)
        await publisher.publish()

    def meanwhile(index: int, _leaf: bytes) -> None:
        if index == 100:
            asyncio.run_coroutine_threadsafe(grow(), loop).result(30)

    found = await asyncio.to_thread(verify_directory, directory, VKEY, meanwhile)
    assert not (directory / "tile/entries/001.p").exists()
    assert (found.checkpoint.size, found.bundles) == (300, 2)
    _flip(directory / "tile/0/001", 43 * 32)
    old = SIGNER.sign(found.checkpoint.text)
    (directory / "checkpoint").write_text(old)
    with pytest.raises(Unverified, match="tile/0/001: hash 43 is not"):
        verify_directory(directory, VKEY)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 300])
async def test_a_log_extends_a_checkpoint_that_was_kept_or_is_refused(
    log: Log, publisher: Publisher, tmp_path: Path, size: int
) -> None:
    await fill(log, 0, size)
    kept = await publisher.publish()
    await fill(log, size, 300)
    shown = await publisher.publish()
    assert kept is not None
    assert shown is not None
    directory = tmp_path / "published"
    assert verify_directory(directory, VKEY, kept=kept).checkpoint.size == 300
    rewritten = Checkpoint(origin=kept.origin, size=size, root=bytes(32))
    with pytest.raises(Unverified, match=f"the first {size} entries are not those of the kept checkpoint"):
        verify_directory(directory, VKEY, kept=rewritten)
    longer = Checkpoint(origin=kept.origin, size=301, root=shown.root)
    with pytest.raises(Unverified, match="fewer than the 301 of the kept one"):
        verify_directory(directory, VKEY, kept=longer)


async def test_a_directory_signed_by_another_key_is_refused(log: Log, publisher: Publisher, tmp_path: Path) -> None:
    await fill(log, 0, 3)
    await publisher.publish()
    impostor = Verifier(name=SIGNER.name, public=Signer(SIGNER.name, bytes(32)).verifier.public)
    with pytest.raises(Unverified, match="checkpoint: no known key"):
        verify_directory(tmp_path / "published", impostor.vkey)


async def test_a_checkpoint_over_other_entries_is_refused(log: Log, publisher: Publisher, tmp_path: Path) -> None:
    await fill(log, 0, 3)
    published = await publisher.publish()
    assert published is not None
    text_ = published.text.splitlines()
    text_[2] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    (tmp_path / "published/checkpoint").write_text(SIGNER.sign("\n".join(text_) + "\n"))
    with pytest.raises(Unverified, match="its root is not that of the entries"):
        verify_directory(tmp_path / "published", VKEY)


async def test_nothing_is_appended_to_a_store_that_is_not_the_published_one(
    log: Log, publisher: Publisher, records: Records, tmp_path: Path
) -> None:
    keeping = Housekeeping(log, publisher, Leases(records, log), publish_seconds=0.001, lease_seconds=60)
    note = tmp_path / "published/checkpoint"
    async with asyncio.timeout(30), keeping:
        shown = note.read_text()
        ahead = Checkpoint(origin=SIGNER.name, size=9, root=bytes(32))
        note.write_text(SIGNER.sign(ahead.text))
        while not log.fault:
            await asyncio.sleep(0)
        with pytest.raises(AuditUnavailable, match="not the one that was published"):
            await log.append(entry(0), within=10)
        note.write_text(shown)
        while log.fault:
            await asyncio.sleep(0)
        await log.append(entry(0), within=10)


async def test_housekeeping_reports_what_fails_and_goes_on(
    log: Log, publisher: Publisher, records: Records, tmp_path: Path
) -> None:
    keeping = Housekeeping(log, publisher, Leases(records, log), publish_seconds=0.001, lease_seconds=0.001)
    async with keeping, asyncio.timeout(30):
        async with records.write() as connection:
            await connection.execute(text("ALTER TABLE leases RENAME TO hidden"))
        while keeping.faults != {"leases": "RECORDS_UNAVAILABLE"}:
            await asyncio.sleep(0)
        async with records.write() as connection:
            await connection.execute(text("ALTER TABLE hidden RENAME TO leases"))
        while keeping.faults:
            await asyncio.sleep(0)

"""What a write leaves behind: whole objects on the disk, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from shared.keys import FileKeyProvider
from shared.objects import ObjectStore, StoreUnavailable
from tests.unit.shared.objects.conftest import CONTENT, FAR_AHEAD, LONG_AGO, files, put


@pytest.mark.parametrize("fault", [ValueError("source"), OSError("source"), FileNotFoundError("source")])
def test_failing_source_leaves_nothing_and_keeps_its_error(store: ObjectStore, url: str, fault: Exception) -> None:
    def source() -> Iterator[bytes]:
        yield CONTENT
        raise fault

    with pytest.raises(type(fault), match="source"):
        store.write("one", source(), purpose="p")
    assert files(url) == {}


def test_full_disk_is_unavailable_and_leaves_nothing(
    store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "no space left on a path that callers may not see")

    target = (os, "fsync") if url.startswith("file") else (type(fsspec.filesystem("memory")), "mv")
    monkeypatch.setattr(*target, full)
    with pytest.raises(StoreUnavailable) as refusal:
        store.write("one", [CONTENT], purpose="p")
    assert "path" not in refusal.value.message
    assert files(url) == {}


def test_fault_after_the_object_is_in_place_takes_it_away_again(
    store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(5, "I/O error")

    filesystem = fsspec.url_to_fs(url)[0]
    if url.startswith("file"):
        monkeypatch.setattr("shared.objects.store.fsync_directory", broken)
    else:  # a move there is a copy and a removal

        def copy_only(self: object, source: str, target: str) -> None:
            filesystem.cp_file(source, target)
            broken()

        monkeypatch.setattr(type(filesystem), "mv", copy_only)
    with pytest.raises(StoreUnavailable):
        store.write("one", [CONTENT], purpose="p")
    assert files(url) == {}


def test_fault_while_looking_is_not_taken_for_absence(
    store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise PermissionError("denied")

    filesystem = LocalFileSystem if url.startswith("file") else type(fsspec.filesystem("memory"))
    monkeypatch.setattr(filesystem, "info", broken)
    with pytest.raises(StoreUnavailable):
        store.write("one", [CONTENT], purpose="p")


def test_sweep_removes_old_temporaries_only(store: ObjectStore, url: str) -> None:
    ref = store.write("a/b/one", [CONTENT], purpose="p")
    leftovers = [".partial-" + "0" * 32, "a/.partial-" + "1" * 32, "a/b/.partial-" + "f" * 32]
    for name in leftovers:
        put(url, name, b"ciphertext")
    put(url, "a/.keep", b"not ours")
    assert store.sweep(before=LONG_AGO) == 0
    assert set(leftovers) < set(files(url))
    assert store.sweep(before=FAR_AHEAD) == 3
    assert set(files(url)) == {"a/b/one", "a/.keep"}
    assert store.read_bytes(ref, purpose="p", limit=1 << 20) == CONTENT


def test_sweep_of_an_empty_store_does_nothing(store: ObjectStore) -> None:
    assert store.sweep(before=FAR_AHEAD) == 0


def test_sweep_spares_a_write_under_way(store: ObjectStore) -> None:
    started = datetime.now(UTC)

    def source() -> Iterator[bytes]:
        yield CONTENT
        assert store.sweep(before=started - timedelta(minutes=1)) == 0
        yield CONTENT

    ref = store.write("one", source(), purpose="p")
    assert ref.size == 2 * len(CONTENT)


def test_local_root_is_private(tmp_path: Path, keys: FileKeyProvider) -> None:
    ObjectStore(f"file://{tmp_path}/objects", keys)
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("root", ["absent/objects", "keys.json", "keys.json/objects"])
def test_root_that_cannot_be_a_directory_is_unavailable(tmp_path: Path, keys: FileKeyProvider, root: str) -> None:
    with pytest.raises(StoreUnavailable):
        ObjectStore(f"file://{tmp_path}/{root}", keys)


def test_object_and_every_new_directory_are_fsynced_before_write_returns(
    tmp_path: Path, keys: FileKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    root = tmp_path / "objects"
    ObjectStore(f"file://{root}", keys).write("a/b/one", [CONTENT], purpose="p")
    assert synced[0] == str(tmp_path)
    assert synced[1].startswith(f"{root}/a/b/.partial-")
    assert synced[2:] == [f"{root}/a/b", f"{root}/a", str(root)]


WRITER = """
import sys, time
from pathlib import Path
from shared.keys import FileKeyProvider
from shared.objects import ObjectStore

def source():
    for _ in range(20):
        yield bytes(65536)
    print("half way", flush=True)
    sys.stdin.read()  # until killed

store = ObjectStore(sys.argv[1], FileKeyProvider(Path(sys.argv[2])))
store.write("a/one", source(), purpose="p")
"""


def test_writer_killed_half_way_leaves_no_object_and_sweep_cleans_up(tmp_path: Path, keys: FileKeyProvider) -> None:
    url = f"file://{tmp_path}/objects"
    arguments = [sys.executable, "-c", WRITER, url, str(tmp_path / "keys.json")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"half way\n"
        finally:
            writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=10) == -signal.SIGKILL
    [leftover] = files(url)
    assert leftover.startswith("a/.partial-")
    store = ObjectStore(url, keys)
    ref = store.write("a/one", [CONTENT], purpose="p")
    assert store.sweep(before=FAR_AHEAD) == 1
    assert store.read_bytes(ref, purpose="p", limit=1 << 20) == CONTENT
    assert list(files(url)) == ["a/one"]

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import errors
from shared.keys import FileKeyProvider, KeyDestroyed
from shared.objects import ArtifactRef, ObjectStore, StoreUnavailable

CONTENT = b"a secret plaintext, to be found nowhere " * 5000  # several chunks
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider.create(tmp_path / "keys.json", ["objects"])


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/objects"
        return
    root = f"memory:///{uuid.uuid4().hex}"
    yield root
    fsspec.url_to_fs(root)[0].rm(root, recursive=True)


@pytest.fixture
def store(url: str, keys: FileKeyProvider) -> ObjectStore:
    return ObjectStore(url, keys)


def files(url: str) -> dict[str, bytes]:
    """Everything under the root: path in it -> bytes."""
    filesystem, root = fsspec.url_to_fs(url)
    return {path.removeprefix(root + "/"): filesystem.cat_file(path) for path in filesystem.find(root)}


def put(url: str, name: str, content: bytes) -> None:
    filesystem, root = fsspec.url_to_fs(url)
    filesystem.pipe_file(f"{root}/{name}", content)


def test_object_comes_back_and_its_reference_says_what_it_is(
    store: ObjectStore, keys: FileKeyProvider, url: str
) -> None:
    ref = store.write("models/one/weights", [CONTENT[:7], b"", CONTENT[7:]], purpose="weights")
    assert ref == ArtifactRef(
        uri=f"{url}/models/one/weights",
        digest="sha256:" + hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        key_id=keys.current_key_id("objects"),
    )
    assert b"".join(store.read(ref, purpose="weights")) == CONTENT
    assert store.read_bytes(ref, purpose="weights", limit=len(CONTENT)) == CONTENT


@given(pieces=st.lists(st.binary(max_size=100_000), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_any_content_comes_back(store: ObjectStore, pieces: list[bytes]) -> None:
    ref = store.write(f"x/{uuid.uuid4().hex}", pieces, purpose="p")
    assert store.read_bytes(ref, purpose="p", limit=1 << 20) == b"".join(pieces)


def test_only_ciphertext_is_stored(store: ObjectStore, url: str) -> None:
    store.write("one", [CONTENT], purpose="weights")
    stored = files(url)
    assert list(stored) == ["one"]
    assert CONTENT[:20] not in stored["one"]


def test_existing_object_is_never_overwritten(store: ObjectStore, url: str) -> None:
    ref = store.write("a/one", [CONTENT], purpose="weights")
    before = files(url)
    for name in ("a/one", "a", "a/one/two", "a/one/two/three"):
        with pytest.raises(errors.AlreadyExists):
            store.write(name, [b"other"], purpose="weights")
    assert files(url) == before
    assert store.read_bytes(ref, purpose="weights", limit=1 << 20) == CONTENT


def test_name_taken_while_writing_is_refused(store: ObjectStore, url: str) -> None:
    def race() -> Iterator[bytes]:
        yield b"loser"
        store.write("one", [b"winner"], purpose="p")

    with pytest.raises(errors.AlreadyExists):
        store.write("one", race(), purpose="p")
    assert list(files(url)) == ["one"]


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "../a", ".partial-0", "-a", "a b", "a\n", "a\\b"),
        *("ä", "a\0", "~", "*", "a:b", "%2e%2e", "x" * 129, "/".join("abcdefghi")),
    ],
)
def test_name_that_is_not_plain_is_refused(store: ObjectStore, url: str, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        store.write(name, [b""], purpose="p")
    ref = store.write("good", [b""], purpose="p")
    outside = replace(ref, uri=f"{url}/{name}")
    for call in (
        lambda: list(store.read(outside, purpose="p")),
        lambda: store.data_key(outside, purpose="p"),
        lambda: store.delete(outside),
    ):
        with pytest.raises(errors.InvalidArgument):
            call()
    assert list(files(url)) == ["good"]


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "memory://other/one", "s3://bucket/one", "one", "file://", "memory://"]
)
def test_uri_outside_the_store_is_refused(store: ObjectStore, uri: str) -> None:
    ref = store.write("one", [b""], purpose="p")
    with pytest.raises(errors.InvalidArgument):
        list(store.read(replace(ref, uri=uri), purpose="p"))


@pytest.mark.parametrize(
    "change",
    [
        lambda ref: replace(ref, digest="sha256:" + "0" * 64),
        lambda ref: replace(ref, size=ref.size - 1),
        lambda ref: replace(ref, size=ref.size + 1),
        lambda ref: replace(ref, key_id="objects-other"),
    ],
)
def test_reference_that_does_not_fit_is_refused(
    store: ObjectStore, change: Callable[[ArtifactRef], ArtifactRef]
) -> None:
    ref = store.write("one", [CONTENT], purpose="p")
    with pytest.raises(errors.DataLoss):
        list(store.read(change(ref), purpose="p"))


def test_read_stops_as_soon_as_the_object_is_larger_than_its_reference(store: ObjectStore) -> None:
    ref = store.write("one", [CONTENT], purpose="p")
    with pytest.raises(errors.DataLoss):
        next(store.read(replace(ref, size=1), purpose="p"))


def test_another_purpose_is_refused(store: ObjectStore) -> None:
    ref = store.write("one", [CONTENT], purpose="weights")
    with pytest.raises(errors.DataLoss):
        next(store.read(ref, purpose="dataset"))
    with pytest.raises(errors.DataLoss):
        store.data_key(ref, purpose="dataset")


def test_swapped_truncated_and_extended_objects_are_refused(store: ObjectStore, url: str) -> None:
    one = store.write("one", [CONTENT], purpose="p")
    store.write("two", [CONTENT], purpose="p")
    stored = files(url)
    chunk = 64 * 1024 + 16
    head = len(stored["one"]) - len(stored["one"]) // chunk * chunk
    for content in (
        stored["two"],
        stored["one"][:-1],
        stored["one"][:chunk],
        stored["one"] + b"\0",
        b"",
        b"\0" * head,
    ):
        put(url, "one", content)
        with pytest.raises(errors.DataLoss):
            list(store.read(one, purpose="p"))


def test_data_key_opens_its_own_object_and_no_other(store: ObjectStore, url: str, tmp_path: Path) -> None:
    one = store.write("one", [CONTENT], purpose="p")
    two = store.write("two", [CONTENT], purpose="p")
    given = store.data_key(one, purpose="p")
    reader = ObjectStore(url, FileKeyProvider.create(tmp_path / "reader.json", ["objects"]))
    assert reader.read_bytes(one, purpose="p", limit=1 << 20, data_key=given) == CONTENT
    with pytest.raises(errors.DataLoss):
        list(reader.read(two, purpose="p", data_key=given))
    with pytest.raises(errors.DataLoss):
        list(reader.read(one, purpose="other", data_key=given))
    with pytest.raises(errors.DataLoss):
        list(reader.read(one, purpose="p"))


def test_object_is_unreadable_once_its_key_is_destroyed(store: ObjectStore, keys: FileKeyProvider) -> None:
    ref = store.write("one", [CONTENT], purpose="p")
    keys.rotate("objects")
    assert store.read_bytes(ref, purpose="p", limit=1 << 20) == CONTENT
    keys.destroy("objects", ref.key_id)
    with pytest.raises(KeyDestroyed):
        list(store.read(ref, purpose="p"))


def test_reading_more_than_the_limit_is_refused(store: ObjectStore) -> None:
    ref = store.write("one", [CONTENT], purpose="p")
    with pytest.raises(errors.InvalidArgument):
        store.read_bytes(ref, purpose="p", limit=len(CONTENT) - 1)
    with pytest.raises(errors.DataLoss):
        store.read_bytes(replace(ref, size=10), purpose="p", limit=10)


def test_deleted_object_is_not_found_and_its_name_is_free(store: ObjectStore, url: str) -> None:
    ref = store.write("a/one", [CONTENT], purpose="p")
    store.delete(ref)
    assert files(url) == {}
    with pytest.raises(errors.NotFound):
        list(store.read(ref, purpose="p"))
    with pytest.raises(errors.NotFound):
        store.delete(ref)
    store.write("a/one", [CONTENT], purpose="p")


def test_directory_and_child_of_an_object_are_not_found(store: ObjectStore, url: str) -> None:
    ref = store.write("a/one", [CONTENT], purpose="p")
    below = ["a/one/two"] if url.startswith("file") else []  # fsspec's memory filesystem says "exists"
    for name in ["a", *below]:
        with pytest.raises(errors.NotFound):
            list(store.read(replace(ref, uri=f"{url}/{name}"), purpose="p"))


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


@pytest.mark.parametrize(
    "change",
    [
        {"uri": ""},
        {"uri": "x" * 2049},
        {"digest": "0" * 64},
        {"digest": "sha256:" + "A" * 64},
        {"digest": "sha256:" + "0" * 63},
        {"digest": "sha256:" + "0" * 64 + "\n"},
        {"size": -1},
        {"size": 1 << 63},
        {"key_id": ""},
        {"key_id": "a b"},
    ],
)
def test_malformed_reference_is_refused(change: dict[str, object]) -> None:
    good = {"uri": "file:///one", "digest": "sha256:" + "0" * 64, "size": 0, "key_id": "objects-1"}
    assert ArtifactRef(**good).size == 0
    with pytest.raises(errors.InvalidArgument) as refusal:
        ArtifactRef(**{**good, **change})
    assert refusal.value.field in change

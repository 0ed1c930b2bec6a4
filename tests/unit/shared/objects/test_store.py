from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import errors
from shared.keys import FileKeyProvider, KeyDestroyed
from shared.objects import ArtifactRef, ObjectStore
from tests.unit.shared.objects.conftest import CONTENT, files, put


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

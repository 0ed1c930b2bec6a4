from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from shared import errors
from shared.keys import FileKeyProvider, KeyDestroyed, KeyFileRefused, UnknownUse, WrappedKey

DATA_KEY = bytes(range(32))
CONTEXT = b"weights models/one"


def file_of(keys: FileKeyProvider, tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_data_key_comes_back(keys: FileKeyProvider) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    assert wrapped.key_id == keys.current_key_id("objects")
    assert DATA_KEY not in wrapped.ciphertext
    assert keys.unwrap("objects", wrapped, context=CONTEXT) == DATA_KEY


def test_other_use_context_or_key_does_not_unwrap(keys: FileKeyProvider, tmp_path: Path) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    other = FileKeyProvider.create(tmp_path / "other.json", ["objects"])
    keys.rotate("objects")
    relabelled = WrappedKey(key_id=keys.current_key_id("objects"), ciphertext=wrapped.ciphertext)
    for provider, use, presented, context in [
        (keys, "sealed", wrapped, CONTEXT),
        (keys, "objects", wrapped, CONTEXT + b"!"),
        (keys, "objects", relabelled, CONTEXT),
        (other, "objects", wrapped, CONTEXT),
    ]:
        with pytest.raises(errors.DataLoss):
            provider.unwrap(use, presented, context=context)


def test_every_altered_or_truncated_wrap_is_refused(keys: FileKeyProvider) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    whole = wrapped.ciphertext
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for ciphertext in [*flipped, *(whole[:i] for i in range(len(whole))), whole + b"\0"]:
        with pytest.raises(errors.DataLoss):
            keys.unwrap("objects", WrappedKey(key_id=wrapped.key_id, ciphertext=ciphertext), context=CONTEXT)


def test_each_use_has_its_own_key(keys: FileKeyProvider, tmp_path: Path) -> None:
    uses = json.loads(file_of(keys, tmp_path).read_text())["uses"]
    materials = [material for use in uses.values() for material in use["keys"].values()]
    assert len(set(materials)) == len(uses) == 2


def test_unknown_use_is_refused(keys: FileKeyProvider) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    for call in (
        lambda: keys.wrap("weights", DATA_KEY, context=CONTEXT),
        lambda: keys.unwrap("weights", wrapped, context=CONTEXT),
        lambda: keys.current_key_id("weights"),
        lambda: keys.rotate("weights"),
        lambda: keys.destroy("weights", wrapped.key_id),
    ):
        with pytest.raises(UnknownUse):
            call()


def test_rotation_through_a_link_changes_the_file_that_it_leads_to(tmp_path: Path) -> None:
    FileKeyProvider.create(tmp_path / "real.json", ["objects"])
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    new = FileKeyProvider(tmp_path / "link.json").rotate("objects")
    assert (tmp_path / "link.json").is_symlink()
    assert FileKeyProvider(tmp_path / "real.json").current_key_id("objects") == new


def test_old_key_unwraps_after_rotation_and_rewrap_moves_to_the_new_one(keys: FileKeyProvider) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    new = keys.rotate("objects")
    assert keys.current_key_id("objects") == new != wrapped.key_id
    assert keys.unwrap("objects", wrapped, context=CONTEXT) == DATA_KEY
    moved = keys.rewrap("objects", wrapped, context=CONTEXT)
    assert moved.key_id == new
    keys.destroy("objects", wrapped.key_id)
    assert keys.unwrap("objects", moved, context=CONTEXT) == DATA_KEY


def test_destroyed_key_is_gone_from_the_file_and_named_as_such(keys: FileKeyProvider, tmp_path: Path) -> None:
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    path = file_of(keys, tmp_path)
    material = json.loads(path.read_text())["uses"]["objects"]["keys"][wrapped.key_id]
    keys.rotate("objects")
    assert material in path.read_text()
    keys.destroy("objects", wrapped.key_id)
    assert all(material not in file.read_text() for file in tmp_path.iterdir())
    with pytest.raises(KeyDestroyed):
        keys.unwrap("objects", wrapped, context=CONTEXT)
    with pytest.raises(KeyDestroyed):
        keys.rewrap("objects", wrapped, context=CONTEXT)


def test_current_or_unknown_key_cannot_be_destroyed(keys: FileKeyProvider) -> None:
    with pytest.raises(errors.FailedPrecondition):
        keys.destroy("objects", keys.current_key_id("objects"))
    with pytest.raises(errors.NotFound):
        keys.destroy("objects", keys.current_key_id("sealed"))


def test_change_by_another_process_holds_at_once(keys: FileKeyProvider, tmp_path: Path) -> None:
    other = FileKeyProvider(file_of(keys, tmp_path))
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    new = other.rotate("objects")
    assert keys.current_key_id("objects") == new
    other.destroy("objects", wrapped.key_id)
    with pytest.raises(KeyDestroyed):
        keys.unwrap("objects", wrapped, context=CONTEXT)


def test_concurrent_change_is_refused_rather_than_lost(keys: FileKeyProvider, tmp_path: Path) -> None:
    before = file_of(keys, tmp_path).read_bytes()
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with pytest.raises(errors.Aborted):
            keys.rotate("objects")
    finally:
        os.close(holder)
    assert file_of(keys, tmp_path).read_bytes() == before
    keys.rotate("objects")


def test_file_is_private_and_never_replaced_by_create(keys: FileKeyProvider, tmp_path: Path) -> None:
    path = file_of(keys, tmp_path)
    assert path.stat().st_mode & 0o7777 == 0o600
    before = path.read_bytes()
    with pytest.raises(errors.AlreadyExists):
        FileKeyProvider.create(path, ["objects"])
    assert path.read_bytes() == before
    keys.rotate("objects")
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o700, 0o666])
def test_wider_file_is_refused_at_opening_and_in_use(keys: FileKeyProvider, tmp_path: Path, mode: int) -> None:
    path = file_of(keys, tmp_path)
    path.chmod(mode)
    with pytest.raises(KeyFileRefused):
        FileKeyProvider(path)
    with pytest.raises(KeyFileRefused):
        keys.wrap("objects", DATA_KEY, context=CONTEXT)


def test_file_of_another_user_is_refused(
    keys: FileKeyProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(file_of(keys, tmp_path), 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(KeyFileRefused, match="another user"):
        FileKeyProvider(file_of(keys, tmp_path))


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "absent", tmp_path / "absent" / "keys.json"):
        with pytest.raises(KeyFileRefused):
            FileKeyProvider(path)


@pytest.mark.parametrize("path", ["absent/keys.json", "file/keys.json"])
def test_file_is_not_created_where_there_is_no_directory(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileRefused):
        FileKeyProvider.create(tmp_path / path, ["objects"])


@pytest.mark.parametrize("use", ["", "Objects", "a b", "../x", "x" * 33, "objects\n"])
def test_use_has_a_plain_name(tmp_path: Path, use: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        FileKeyProvider.create(tmp_path / "keys.json", [use])
    assert list(tmp_path.iterdir()) == []


GOOD = {"current": "a-1", "keys": {"a-1": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="}}


@pytest.mark.parametrize(
    "content",
    [
        {"version": 2, "uses": {"a": GOOD}},
        {"version": 1, "uses": {"a": GOOD}, "extra": 1},
        {"version": 1, "uses": {"a": {**GOOD, "extra": 1}}},
        {"version": 1, "uses": {"a": {**GOOD, "current": "a-2"}}},
        {"version": 1, "uses": {"a": {**GOOD, "keys": {"a-1": None}}}},
        {"version": 1, "uses": {"a": {**GOOD, "keys": {"a-1": "QUJD"}}}},
        {"version": 1, "uses": {"a": {**GOOD, "keys": {"a-1": "?" * 44}}}},
        {"version": 1, "uses": {"A": GOOD}},
        [],
    ],
)
def test_malformed_file_is_refused_without_showing_it(tmp_path: Path, content: object) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    with pytest.raises(KeyFileRefused) as refusal:
        FileKeyProvider(path)
    assert refusal.value.message == "keys.json is not a key file"
    assert refusal.value.__suppress_context__


def test_good_file_of_the_malformed_ones_opens(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"version": 1, "uses": {"a": GOOD}}))
    path.chmod(0o600)
    assert FileKeyProvider(path).current_key_id("a") == "a-1"


def test_oversize_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b" " * ((1 << 20) + 1))
    path.chmod(0o600)
    with pytest.raises(KeyFileRefused, match="too large"):
        FileKeyProvider(path)


def test_change_after_a_crash_between_link_and_unlink_keeps_the_file(keys: FileKeyProvider, tmp_path: Path) -> None:
    path = file_of(keys, tmp_path)
    wrapped = keys.wrap("objects", DATA_KEY, context=CONTEXT)
    (tmp_path / ".keys.json.new").hardlink_to(path)  # what such a crash leaves
    keys.rotate("objects")
    assert keys.unwrap("objects", wrapped, context=CONTEXT) == DATA_KEY
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


def test_failed_write_leaves_the_old_keys(
    keys: FileKeyProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file_of(keys, tmp_path).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileRefused):
        keys.rotate("objects")
    assert file_of(keys, tmp_path).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_only_data_keys_are_wrapped(keys: FileKeyProvider, size: int) -> None:
    with pytest.raises(errors.InvalidArgument):
        keys.wrap("objects", bytes(size), context=CONTEXT)

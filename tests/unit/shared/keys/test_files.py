"""Files that must outlive a crash: their bytes first, then their name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.keys import files


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Collect what is made durable, and the names that its directory then held."""
    found: list[tuple[str, list[str]]] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        folder = path if path.is_dir() else path.parent
        found.append((str(path), sorted(entry.name for entry in folder.iterdir())))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return found


def replaced(path: Path, content: bytes) -> None:
    with files.locked(path.parent):
        files.replace(path, content)


@pytest.mark.parametrize("write", [files.create, replaced])
def test_a_file_and_then_its_name_are_durable_before_the_write_returns(
    tmp_path: Path, synced: list[tuple[str, list[str]]], write: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "keys.json"
    write(path, b"content")
    assert path.read_bytes() == b"content"
    assert synced == [(f"{tmp_path}/.keys.json.new", [".keys.json.new"]), (str(tmp_path), ["keys.json"])]

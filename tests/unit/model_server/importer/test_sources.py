"""Files of a model that change while they are imported: what is imported is what was hashed, or nothing is."""

from __future__ import annotations

import hashlib
import os
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from services.model_server import importer, sources
from services.model_server.architectures import UnsupportedModel
from services.model_server.checkpoint import Checkpoint, read_checkpoint
from services.model_server.importer import ImportedModel, import_model
from shared import errors
from tests.fakes.tiny_model import MemoryObjects, build_tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_model(tmp_path / "root" / "model")


def run(path: Path) -> ImportedModel:
    return import_model(
        path, writer=MemoryObjects(), prefix="p", name="test:tiny", version="1", declared_license="Apache-2.0"
    )


def change_in_place(model: Path) -> None:
    """Change the weights and put their size and time of modification back."""
    file = model / WEIGHTS
    before = file.stat()
    tensors = safetensors.torch.load(file.read_bytes())
    tensors["model.norm.weight"].add_(0.5)
    with file.open("r+b") as stream:
        stream.write(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def truncate(model: Path) -> None:
    os.truncate(model / WEIGHTS, 4096)


def remove(model: Path) -> None:
    (model / WEIGHTS).unlink()


def link_outside(model: Path) -> None:
    outside = model.parent / "outside.safetensors"
    (model / WEIGHTS).rename(outside)
    (model / WEIGHTS).symlink_to(outside)


CHANGES = [change_in_place, truncate, remove, link_outside]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_the_files_are_read_is_refused(
    model: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = False

    def sha256(data: bytes = b"") -> object:
        nonlocal changed
        if not changed:
            changed = True
            change(model)
        return hashlib.sha256(data)

    monkeypatch.setattr(sources, "hashlib", types.SimpleNamespace(sha256=sha256))
    with pytest.raises(UnsupportedModel, match=r"changed|cannot be read|plain file"):
        run(model)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_files_were_read_reaches_nothing(
    model: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = run(model)

    def parse_late(files: dict[str, Path]) -> Checkpoint:
        change(model)
        return read_checkpoint(files)

    monkeypatch.setattr(importer, "read_checkpoint", parse_late)
    imported = run(model)
    assert (imported.source, imported.weights_digest) == (clean.source, clean.weights_digest)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open_after_an_import(model: Path) -> None:
    run(model)
    before = open_files()
    run(model)
    truncate(model)
    with pytest.raises(UnsupportedModel):
        run(model)
    assert open_files() == before


def test_a_model_that_is_itself_a_link_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "file.gguf").symlink_to(model / WEIGHTS)
    for name in ("link", "file.gguf"):
        with pytest.raises((errors.NotFound, UnsupportedModel)):
            run(tmp_path / name)


def test_a_file_whose_name_is_not_utf8_is_refused(model: Path) -> None:
    Path(os.fsdecode(os.fsencode(model) + b"/README-caf\xe9.md")).write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match="UTF-8"):
        run(model)


def test_a_link_that_leads_nowhere_is_refused_by_name(model: Path) -> None:
    (model / "NOTICE").symlink_to(model / "absent")
    with pytest.raises(UnsupportedModel, match="NOTICE"):
        run(model)

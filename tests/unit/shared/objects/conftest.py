"""An object store over each kind of filesystem."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from shared.keys import FileKeyProvider
from shared.objects import ObjectStore

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

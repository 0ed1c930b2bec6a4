from __future__ import annotations

from pathlib import Path

import pytest

from shared.keys import FileKeyProvider


@pytest.fixture
def keys(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider.create(tmp_path / "keys.json", ["objects", "sealed"])

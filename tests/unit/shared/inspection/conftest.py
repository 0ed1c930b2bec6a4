from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_collection_within_a_scan() -> Iterator[None]:
    """Collecting what a whole session of tests left behind takes longer than the scan that it would be charged to."""
    gc.disable()
    yield
    gc.enable()

"""The suite that all contract tests of one run share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.world import World, opened


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One suite for all cells."""
    async with opened(tmp_path_factory.mktemp("contract")) as world:
        yield world

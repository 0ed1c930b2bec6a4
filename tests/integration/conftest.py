"""One stage for all failure tests: starting the services takes longer than most of them."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.integration.stage import Stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing_stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The services on stage, for the whole session."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with Stage(tmp_path_factory.mktemp("stage")).running(monkeypatch) as stage:
            # As a service does after its start: walking what earlier tests left would be charged to some scan.
            gc.collect()
            gc.freeze()
            await stage.well()
            yield stage
            gc.unfreeze()


@pytest_asyncio.fixture(loop_scope="session")
async def stage(standing_stage: Stage) -> AsyncIterator[Stage]:
    """The stage, well at first, and well again when the test has ended."""
    yield standing_stage
    await standing_stage.reset()

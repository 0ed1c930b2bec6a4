from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest

from services.policy_guard.migrations import SCRIPTS
from shared.records.store import Records
from tests.stores import Stores, postgresql_stores, sqlite_stores, stores
from tests.unit.policy_guard.clock import Clock

__all__ = ["postgresql_stores", "sqlite_stores", "stores"]


@pytest.fixture
def clock() -> Clock:
    return Clock(dt.datetime(2026, 11, 2, 9, 0, 10, tzinfo=dt.UTC))


@pytest.fixture
def url(stores: Stores) -> str:
    return stores.new(SCRIPTS)


@pytest.fixture
async def records(url: str) -> AsyncIterator[Records]:
    async with Records(url) as opened:
        yield opened

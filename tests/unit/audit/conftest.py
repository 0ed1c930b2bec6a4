from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from services.audit.entry import Entry
from services.audit.log import Limits, Log
from services.audit.migrations import SCRIPTS
from shared.records.store import Records
from shared.transparency.note import Signer
from tests.stores import Stores, postgresql_stores, sqlite_stores, stores

__all__ = ["postgresql_stores", "sqlite_stores", "stores"]

SIGNER = Signer("log.example/audit", bytes(range(32)))


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def entry(number: int, **members: object) -> Entry:
    values: dict[str, object] = {
        "writer": "model_server",
        "record_id": f"record-{number}",
        "kind": "access",
        "data": {"n": number},
    }
    return Entry(**(values | members))  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(stores: Stores) -> str:
    """A database at the audit service's schema, SQLite and PostgreSQL in turn."""
    return stores.new(SCRIPTS)


@pytest.fixture
async def records(url: str) -> AsyncIterator[Records]:
    async with Records(url) as opened:
        yield opened


@pytest.fixture
async def log(records: Records, clock: Clock) -> AsyncIterator[Log]:
    async with Log(records, SIGNER, clock=clock) as opened:
        yield opened


@asynccontextmanager
async def open_log(url: str, clock: Clock, limits: Limits | None = None) -> AsyncIterator[Log]:
    async with Records(url) as records, Log(records, SIGNER, clock=clock, limits=limits) as log:
        yield log

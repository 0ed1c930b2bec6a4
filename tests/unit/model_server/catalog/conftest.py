from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest

from services.model_server.catalog import Arm, Catalog, DeclaredModel, Evidence, Manifest, Release
from services.model_server.migrations import SCRIPTS
from shared.records.store import Records
from tests.stores import Stores, postgresql_stores, sqlite_stores, stores

__all__ = ["postgresql_stores", "sqlite_stores", "stores"]

EVIDENCE = Evidence(statement=b"statement", log_leaf=b"leaf", log_proof="proof")


NOW = dt.datetime(2026, 11, 23, 12, 0, tzinfo=dt.UTC)


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(stores: Stores) -> str:
    return stores.new(SCRIPTS)


@pytest.fixture
async def records(database: str) -> AsyncIterator[Records]:
    async with Records(database) as opened:
        yield opened


@pytest.fixture
def catalog(records: Records, clock: Clock) -> Catalog:
    return Catalog(records, clock=clock)


def manifest(number: int, model: str = "m") -> Manifest:
    declared = DeclaredModel(
        backend="fake", remote_model="r", revision=str(number), license="Apache-2.0", max_context=4096
    )
    return Manifest(
        model=model, number=number, classification="PUBLIC", permitted_purposes=(), imported=None, declared=declared
    )


async def published(catalog: Catalog, *numbers: int, model: str = "m") -> None:
    for number in numbers:
        await catalog.publish(manifest(number, model), EVIDENCE, submitter="mia", description="d")


async def released(
    catalog: Catalog,
    generation: int,
    *arms: tuple[int, int],
    request_id: str = "",
    previous: int | None = None,
    model: str = "m",
) -> Release:
    """Put versions, by number and weight, in force."""
    release = Release(
        model=model,
        generation=generation,
        arms=tuple(Arm(version=f"models/{model}/versions/{number}", weight=weight) for number, weight in arms),
        previous=previous,
        releaser="raj",
        created_at=NOW,
        evidence=EVIDENCE,
    )
    await catalog.put_in_force(release, request_id=request_id or str(generation))
    return release

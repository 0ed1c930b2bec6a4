"""The engine follows the store, and a scrape tells which revision it has come to."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.lifecycle import Lifecycle
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.revisions import Revisions
from shared.errors import Aborted, GuardUnavailable
from shared.records.store import Records
from tests.metrics import scraped, series
from tests.stores import Stores, sqlite_stores
from tests.unit.policy_guard.clock import Clock
from tests.unit.policy_guard.policy.conftest import DEFAULT, make_engine, with_data

__all__ = ["sqlite_stores"]

OTHER = with_data({"bastide": {"mfa": {"max_age_seconds": 901}}})
THIRD = with_data({"bastide": {"mfa": {"max_age_seconds": 902}}})


@pytest.fixture
def url(sqlite_stores: Stores) -> str:
    return sqlite_stores.new(SCRIPTS)


@pytest.fixture
async def revisions(url: str) -> AsyncIterator[Revisions]:
    async with Records(url) as records:
        yield Revisions(records, clock=Clock(dt.datetime(2026, 11, 2, tzinfo=dt.UTC)))


@pytest.fixture
async def embedded() -> AsyncIterator[PolicyEngine]:
    engine = make_engine("embedded")
    yield engine
    await engine.close()


@pytest.fixture
def lifecycle(embedded: PolicyEngine, revisions: Revisions) -> Lifecycle:
    return Lifecycle(embedded, revisions, loaded=lambda _: None, administrator_tenants=frozenset({"default"}))


async def put_in_force(revisions: Revisions, bundle: Bundle) -> None:
    """Do as another replica would."""
    active = await revisions.active()
    await revisions.propose(bundle.revision, bundle.archive(), proposer="ada", note="")
    await revisions.activate(bundle.revision, activator="bo", expected=None if active is None else active.digest)


def shown() -> tuple[dict[frozenset[tuple[str, str]], float], float]:
    return series("bastide_policy_info"), scraped("bastide_policy_generation")


def of(bundle: Bundle) -> dict[frozenset[tuple[str, str]], float]:
    return {frozenset({("revision", bundle.revision)}): 1.0}


async def test_the_revision_in_force_is_shown_alone_with_its_number_and_when_it_was_loaded(
    lifecycle: Lifecycle, revisions: Revisions, embedded: PolicyEngine
) -> None:
    for number, bundle in enumerate((DEFAULT, OTHER), 1):
        await put_in_force(revisions, bundle)
        before = time.time()
        await lifecycle.follow()
        assert shown() == (of(bundle), number)
        assert embedded.current == bundle.revision
        assert before <= scraped("bastide_policy_loaded_timestamp_seconds") <= time.time()
    loaded = scraped("bastide_policy_loaded_timestamp_seconds")
    await lifecycle.follow()
    await revisions.recover(OTHER.revision, activator="host")
    await lifecycle.follow()
    assert shown() == (of(OTHER), 3)
    assert scraped("bastide_policy_loaded_timestamp_seconds") == loaded
    with pytest.raises(Aborted):
        await lifecycle.rollback(await revisions.active(), judged_by=DEFAULT.revision, activator="bo")
    await lifecycle.rollback(await revisions.active(), judged_by=OTHER.revision, activator="bo")
    assert shown() == (of(DEFAULT), 4)


async def test_a_revision_that_does_not_load_is_not_shown_as_in_force(
    lifecycle: Lifecycle, revisions: Revisions, embedded: PolicyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_in_force(revisions, DEFAULT)
    await lifecycle.follow()

    async def fails(_: Any) -> None:
        raise GuardUnavailable("not today")

    monkeypatch.setattr(embedded, "_start", fails)
    await put_in_force(revisions, OTHER)
    with pytest.raises(GuardUnavailable):
        await lifecycle.follow()
    assert shown() == (of(DEFAULT), 1)


async def test_an_activation_judged_by_a_revision_that_was_replaced_meanwhile_is_refused(
    lifecycle: Lifecycle, revisions: Revisions, embedded: PolicyEngine
) -> None:
    await put_in_force(revisions, DEFAULT)
    await revisions.propose(THIRD.revision, THIRD.archive(), proposer="ada", note="")
    await put_in_force(revisions, OTHER)
    await lifecycle.follow()
    with pytest.raises(Aborted):
        await lifecycle.activate(THIRD.revision, judged_by=DEFAULT.revision, activator="cy")
    assert embedded.current == OTHER.revision
    await lifecycle.activate(THIRD.revision, judged_by=OTHER.revision, activator="cy")
    assert embedded.current == THIRD.revision


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"terms": {"weapons": ["pipe bomb", 5]}}, "bastide/topics/terms/weapons/1: the guard cannot read this"),
    ({"terms": {"weapons": ["x" * 255] * 129}}, "bastide/topics/terms: at most 32768 characters of terms"),
]


@pytest.mark.parametrize(("topics", "problem"), UNREADABLE)
async def test_what_the_guard_cannot_go_by_is_refused_whatever_the_bundles_own_schema_allows(
    topics: dict[str, Any], problem: str, lifecycle: Lifecycle, revisions: Revisions, embedded: PolicyEngine
) -> None:
    bundle = with_data({"bastide": {"topics": topics}})
    data = {**bundle.data, "schemas": {**bundle.data["schemas"], "documents": {}}}
    bundle = Bundle(modules=bundle.modules, data=data)
    assert [item.message for item in (await lifecycle.validate(bundle.archive())).problems] == [problem]
    await put_in_force(revisions, DEFAULT)
    await lifecycle.follow()
    await put_in_force(revisions, bundle)
    with pytest.raises(BundleError):
        await lifecycle.follow()
    assert embedded.current == DEFAULT.revision

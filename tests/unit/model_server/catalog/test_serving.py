"""What is released, whether it can answer, and what is in memory, as a scrape shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.model_server.catalog import BrokenChain, Catalog, Version
from services.model_server.serving import Serving
from services.model_server.tables import models, versions
from shared import errors
from shared.records.store import Records
from tests.fakes.scripted_backend import ScriptedBackend
from tests.metrics import scraped, series
from tests.unit.model_server.catalog.conftest import published, released


class Vouching:
    """Provenance that holds for all but what a test breaks."""

    def __init__(self) -> None:
        self.broken: set[int] = set()

    def check(self, version: Version) -> None:
        if version.manifest.number in self.broken:
            raise BrokenChain("broken for the test")

    def check_release(self, *_: object) -> None:
        """Hold."""


@pytest.fixture
def provenance() -> Vouching:
    return Vouching()


@pytest.fixture
def backends() -> dict[int, ScriptedBackend]:
    return {number: ScriptedBackend() for number in (1, 2, 3)}


@pytest.fixture
async def serving(
    catalog: Catalog, provenance: Any, backends: dict[int, ScriptedBackend], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Serving]:
    monkeypatch.setattr("services.model_server.serving.MAX_STALE_SECONDS", 0.0)
    opened = Serving(catalog, provenance, backend_for=lambda version: backends[version.manifest.number])
    yield opened
    await opened.close()


async def release(catalog: Catalog, *weights: tuple[int, int]) -> None:
    await released(catalog, (await catalog.model("m")).generation + 1, *weights)


def shown(name: str) -> dict[str, float]:
    """Return the values of a metric of the model's arms by arm."""
    return {dict(labels)["arm"]: value for labels, value in series(name).items() if dict(labels)["model"] == "m"}


async def test_each_arm_shows_its_version_and_whether_it_can_answer_now(
    serving: Serving, catalog: Catalog, backends: dict[int, ScriptedBackend]
) -> None:
    await published(catalog, 1, 2, 3)
    await serving.warm()
    assert shown("bastide_release_arm_healthy") == {}
    await release(catalog, (1, 90), (2, 10))
    await serving.warm()
    assert shown("bastide_release_arm_version") == {"0": 1, "1": 2}
    assert shown("bastide_release_arm_healthy") == {"0": 1, "1": 1}
    backends[2].up = False
    assert shown("bastide_release_arm_healthy") == {"0": 1, "1": 0}
    await release(catalog, (3, 100))
    async with serving.lease("m", "uma"):
        await release(catalog, (1, 100))
        await serving.warm()
        assert scraped("bastide_versions_loaded") == 2  # the call under way ends on what it began with
    assert scraped("bastide_versions_loaded") == 1
    assert shown("bastide_release_arm_version") == {"0": 1}
    assert shown("bastide_release_arm_healthy") == {"0": 1}


async def test_a_release_that_cannot_be_loaded_is_shown_as_one_that_cannot_answer(
    serving: Serving, catalog: Catalog, provenance: Vouching
) -> None:
    await published(catalog, 1, 2)
    await release(catalog, (1, 100))
    provenance.broken = {1, 2}
    await serving.warm()
    assert shown("bastide_release_arm_healthy") == {"0": 0}
    provenance.broken = {2}
    await serving.warm()
    assert shown("bastide_release_arm_healthy") == {"0": 1}
    await release(catalog, (2, 100))
    await serving.warm()
    assert shown("bastide_release_arm_healthy") == {"0": 0}
    provenance.broken = set()
    await serving.warm()
    assert shown("bastide_release_arm_version") == {"0": 2}
    assert shown("bastide_release_arm_healthy") == {"0": 1}


class Gated(ScriptedBackend):
    """A backend that loads when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0
        self.closed = 0
        self.starting = asyncio.Event()
        self.gate = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        self.starting.set()
        await self.gate.wait()

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def gated(backends: dict[int, ScriptedBackend]) -> Gated:
    """Version 2 loads slowly."""
    backends[2] = Gated()
    return backends[2]


async def generation(serving: Serving) -> int:
    async with serving.lease("m", "uma") as served:
        return served.generation


async def test_no_call_starts_on_what_was_replaced_while_it_loaded(
    serving: Serving, catalog: Catalog, gated: Gated
) -> None:
    await published(catalog, 1, 2, 3)
    await release(catalog, (2, 100))
    calling = asyncio.create_task(generation(serving))
    await gated.starting.wait()
    await release(catalog, (3, 100))
    gated.gate.set()
    assert await calling == 2
    assert (gated.starts, gated.closed) == (1, 1)
    assert scraped("bastide_versions_loaded") == 1


async def test_callers_who_leave_while_a_version_loads_start_no_other_load(
    serving: Serving, catalog: Catalog, gated: Gated
) -> None:
    await published(catalog, 2)
    await release(catalog, (2, 100))
    for _ in range(5):
        calling = asyncio.create_task(generation(serving))
        await gated.starting.wait()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
    calling = asyncio.create_task(generation(serving))
    async with asyncio.timeout(10):
        while not serving._loaded["models/m/versions/2"].users:
            await asyncio.sleep(0)
    gated.gate.set()
    assert await calling == 1
    assert gated.starts == 1


async def test_a_load_that_nobody_waits_for_any_more_leaves_nothing_in_memory(
    serving: Serving, catalog: Catalog, gated: Gated
) -> None:
    await published(catalog, 2)
    await release(catalog, (2, 100))
    calling = asyncio.create_task(generation(serving))
    await gated.starting.wait()
    loading = serving._loaded["models/m/versions/2"].loading
    calling.cancel()
    gated.gate.set()
    await loading
    assert gated.closed == 1
    assert scraped("bastide_versions_loaded") == 0


async def test_a_load_that_fails_is_tried_again_by_the_next_caller(
    serving: Serving, catalog: Catalog, backends: dict[int, ScriptedBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(catalog, 1)
    await release(catalog, (1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedBackend, "start", _fails)
        with pytest.raises(errors.BackendUnavailable):
            await generation(serving)
    assert await generation(serving) == 1


async def _fails(_self: ScriptedBackend) -> None:
    raise errors.BackendUnavailable("not now")


async def test_what_was_prepared_and_not_released_is_unloaded(serving: Serving, catalog: Catalog) -> None:
    await published(catalog, 1, 2)
    await release(catalog, (1, 100))
    await serving.warm()
    async with serving.prepared(await catalog.version("models/m/versions/2")):
        assert scraped("bastide_versions_loaded") == 2
    assert scraped("bastide_versions_loaded") == 1
    async with serving.prepared(await catalog.version("models/m/versions/2")):
        await release(catalog, (2, 100))
        await serving.warm()
    assert await generation(serving) == 2


@pytest.mark.parametrize("manifest", [b"{}", b"{", b"\xff", b"[]"])
async def test_a_malformed_row_is_a_broken_chain_and_keeps_no_other_model_from_being_served(
    serving: Serving, catalog: Catalog, records: Records, manifest: bytes
) -> None:
    for model in ("a", "m"):
        await published(catalog, 1, model=model)
        await released(catalog, 1, (1, 100), model=model)
    async with records.write() as connection:
        await connection.execute(versions.update().where(versions.c.model == "a").values(manifest=manifest))
    await serving.warm()
    assert list(serving.failing) == ["models/a"]
    assert await generation(serving) == 1
    with pytest.raises(BrokenChain):
        async with serving.lease("a", "uma"):
            pass


async def test_a_catalogue_that_was_set_back_is_refused_after_a_restart_too(
    serving: Serving, catalog: Catalog, records: Records
) -> None:
    await published(catalog, 1, 2)
    await release(catalog, (1, 100))
    await release(catalog, (2, 100))
    async with records.write() as connection:
        await connection.execute(models.update().values(generation=1))
    with pytest.raises(BrokenChain, match="went back"):
        await generation(serving)


async def test_a_server_that_ended_shows_no_release(serving: Serving, catalog: Catalog) -> None:
    await published(catalog, 1)
    await release(catalog, (1, 100))
    await serving.warm()
    await serving.close()
    assert shown("bastide_release_arm_healthy") == shown("bastide_release_arm_version") == {}
    assert scraped("bastide_versions_loaded") == 0

"""What is released, whether it can answer, and what is in memory, as a scrape shows them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.model_server.catalog import Catalog, Version
from services.model_server.provenance import BrokenChain
from services.model_server.serving import Serving
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


async def test_a_server_that_ended_shows_no_release(serving: Serving, catalog: Catalog) -> None:
    await published(catalog, 1)
    await release(catalog, (1, 100))
    await serving.warm()
    await serving.close()
    assert shown("bastide_release_arm_healthy") == shown("bastide_release_arm_version") == {}
    assert scraped("bastide_versions_loaded") == 0

"""The catalogue on both stores: versions appear whole, releases one at a time."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.model_server.catalog import Arm, Catalog, Release, check_arms
from shared.errors import Aborted, FailedPrecondition, NotFound
from tests.unit.model_server.catalog.conftest import EVIDENCE, manifest, published, released


async def test_versions_are_listed_newest_first_and_read_back_as_published(catalog: Catalog) -> None:
    await published(catalog, 1, 2, 3)
    assert await catalog.next_number("m") == 4
    assert [item.manifest.number for item in await catalog.versions("m", before=3, limit=5)] == [2, 1]
    version = await catalog.version("models/m/versions/2")
    assert (version.manifest, version.evidence, version.submitter) == (manifest(2), EVIDENCE, "mia")
    assert [item.name for item in await catalog.models(after="", limit=5)] == ["m"]
    assert (await catalog.model("m")).generation == 0


async def test_a_number_is_given_once(catalog: Catalog) -> None:
    await published(catalog, 1)
    with pytest.raises(Aborted):
        await published(catalog, 1)
    assert len(await catalog.versions("m", before=10, limit=5)) == 1


async def test_what_fails_together_with_a_version_keeps_it_from_being_published(catalog: Catalog) -> None:
    async def refuse(_: AsyncConnection) -> None:
        raise Aborted("not yours")

    with pytest.raises(Aborted):
        await catalog.publish(manifest(1), EVIDENCE, submitter="mia", description="", together_with=refuse)
    with pytest.raises(NotFound):
        await catalog.model("m")


async def test_a_release_is_the_next_generation_and_the_one_in_force(catalog: Catalog) -> None:
    await published(catalog, 1, 2)
    with pytest.raises(NotFound):
        await catalog.release("m")
    first = await released(catalog, 1, (1, 100))
    second = await released(catalog, 2, (1, 90), (2, 10), previous=1)
    assert await catalog.release("m") == second
    assert (await catalog.model("m")).generation == 2
    assert await catalog.releases("m", before=99, limit=5) == [second, first]


async def test_a_release_is_found_by_who_asked_for_it_and_how(catalog: Catalog) -> None:
    await published(catalog, 1, 2)
    first = await released(catalog, 1, (1, 100), request_id="a")
    await released(catalog, 2, (2, 100), request_id="b")
    assert await catalog.requested_release("m", releaser="raj", request_id="a") == first
    assert await catalog.requested_release("m", releaser="ada", request_id="a") is None
    with pytest.raises(Aborted):
        await released(catalog, 3, (1, 100), request_id="a")
    assert (await catalog.release("m")).generation == 2


@pytest.mark.parametrize("generation", [1, 3], ids=["taken", "ahead"])
async def test_a_release_that_does_not_follow_the_one_in_force_is_aborted(catalog: Catalog, generation: int) -> None:
    await published(catalog, 1)
    await released(catalog, 1, (1, 100))
    with pytest.raises(Aborted):
        await released(catalog, generation, (1, 100), request_id="other")
    assert (await catalog.release("m")).generation == 1


async def test_releases_at_the_same_moment_get_one_generation_each(catalog: Catalog) -> None:
    await published(catalog, 1)
    outcomes = await asyncio.gather(
        *(released(catalog, 1, (1, 100), request_id=str(number)) for number in range(8)), return_exceptions=True
    )
    assert len([item for item in outcomes if isinstance(item, Release)]) == 1
    assert len([item for item in outcomes if isinstance(item, Aborted)]) == 7
    assert (await catalog.release("m")).generation == 1


@pytest.mark.parametrize(
    "arms", [[], [(1, 99)], [(1, 50), (2, 51)], [(1, 50), (1, 50)]], ids=["none", "less", "more", "twice"]
)
def test_weights_sum_to_a_hundred_over_different_versions(arms: list[tuple[int, int]]) -> None:
    with pytest.raises(FailedPrecondition):
        check_arms("m", [Arm(version=f"models/m/versions/{number}", weight=weight) for number, weight in arms])


def test_a_release_takes_no_version_of_another_model() -> None:
    check_arms("m", [Arm(version="models/m/versions/1", weight=100)])
    with pytest.raises(FailedPrecondition):
        check_arms("m", [Arm(version="models/other/versions/1", weight=100)])


async def test_a_canary_gets_its_share_and_keeps_its_principals(catalog: Catalog) -> None:
    await published(catalog, 1, 2)
    release = await released(catalog, 1, (1, 90), (2, 10))
    people = [f"person-{number}@example.org" for number in range(2000)]
    canary = [name for name in people if release.arm_for(name).version.endswith("/2")]
    assert 150 < len(canary) < 250
    again = await catalog.release("m")
    assert [name for name in people if again.arm_for(name).version.endswith("/2")] == canary

"""Releases forth and back, and a catalogue that somebody changed behind the server's back."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import rfc8785

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc, inference_pb2_grpc
from bastide.model_server.v1 import inference_pb2 as inference
from services.model_server.serving import MAX_STALE_SECONDS
from shared.keys import SigningKey
from shared.statements import Envelope, sign_bytes
from shared.statements.dsse import decode_base64
from tests.fakes.tiny_model import build_tiny_model
from tests.integration.stage import Outcome, explain, question
from tests.suite import Person, Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "models/tiny"


class World:
    """A suite with three versions of one model and the people who release them."""

    suite: Suite
    approver: Person
    user: Person
    versions: list[str]

    async def prepare(self, folder: Path) -> None:
        build_tiny_model(folder / "models" / "tiny")
        overrides = {
            "policy-guard": {"ENGINE": "embedded"},
            "model-server": {"IMPORT_ROOTS": f'["{folder / "models"}"]'},
        }
        self.suite = Suite(folder / "home", overrides=overrides)
        await self.suite.start()
        ada, _ = await self.suite.bootstrap()
        manager = await self.suite.person(ada, "mia@example.org", "model-manager")
        self.approver = await self.suite.person(ada, "raj@example.org", "release-approver")
        self.user = await self.suite.person(ada, "uma@example.org", "user")
        self.versions = [await self.suite.import_model(manager, "directory:tiny") for _ in range(3)]

    @property
    def catalog(self) -> catalog_pb2_grpc.CatalogServiceAsyncStub:
        return catalog_pb2_grpc.CatalogServiceStub(self.suite.channel("model-server"))

    async def back(self) -> Outcome | str:
        """Roll back; return the version in force then, or the refusal."""
        try:
            answer = await self.catalog.RollbackRelease(
                catalog_pb2.RollbackReleaseRequest(parent=MODEL), metadata=self.approver.metadata, timeout=30
            )
        except grpc.aio.AioRpcError as error:
            outcome = Outcome()
            explain(error, outcome)
            return outcome
        return answer.release.arms[0].version

    async def ask(self) -> Outcome:
        outcome = Outcome()
        stub = inference_pb2_grpc.InferenceServiceStub(self.suite.channel("model-server"))
        call = question()
        call.parameters.max_new_tokens = 4
        try:
            answer = await stub.Generate(inference.GenerateRequest(call=call), metadata=self.user.metadata, timeout=30)
            outcome.end = answer.end
        except grpc.aio.AioRpcError as error:
            explain(error, outcome)
        return outcome

    def change(self, statement: str, *values: object) -> None:
        """Write into the model server's database as its operating system user could."""
        (database,) = (self.suite.home / "model-server").glob("*.db")
        with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            assert connection.execute(statement, values).rowcount == 1

    def row(self, number: int) -> dict[str, Any]:
        """Return what the model server's database holds of a version."""
        (database,) = (self.suite.home / "model-server").glob("*.db")
        with closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            query = "SELECT manifest, statement, log_leaf, log_proof FROM versions WHERE number = ?"
            return dict(connection.execute(query, (number,)).fetchone())

    def overwrite(self, number: int, row: dict[str, Any]) -> None:
        """Write a version's columns over."""
        columns = ", ".join(f"{column} = ?" for column in row)
        self.change(f"UPDATE versions SET {columns} WHERE number = ?", *row.values(), number)

    async def restarted(self) -> None:
        await self.suite.stop("model-server")
        await self.suite.start("model-server")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    world = World()
    try:
        await world.prepare(tmp_path_factory.mktemp("releases"))
        yield world
    finally:
        await world.suite.close()


async def test_rollback_goes_back_step_by_step_and_never_forth(world: World) -> None:
    first, second, third = world.versions
    for version in world.versions:
        await world.suite.release(world.approver, version)
    assert [await world.back(), await world.back()] == [second, first]
    refusal = await world.back()
    assert isinstance(refusal, Outcome)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_EARLIER_RELEASE")
    await world.suite.release(world.approver, third)
    assert await world.back() == first


async def test_release_carries_the_logs_proof_and_a_repeated_request_makes_no_second_one(world: World) -> None:
    request = catalog_pb2.CreateReleaseRequest(
        parent=MODEL,
        arms=[catalog_pb2.ReleaseArm(version=world.versions[1], weight=100)],
        request_id=os.urandom(8).hex(),
    )
    releases = [
        (await world.catalog.CreateRelease(request, metadata=world.approver.metadata, timeout=30)).release
        for _ in range(2)
    ]
    assert releases[0].generation == releases[1].generation
    assert releases[0].statement.log_proof


@pytest.mark.parametrize("number", ["01", "١", "+1", "1 ", "0", "1e0", "99999999999"])
async def test_a_version_has_one_spelling(world: World, number: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.suite.release(world.approver, f"{MODEL}/versions/{number}")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_who_submitted_a_version_is_what_was_signed(world: World) -> None:
    version = world.versions[2]
    world.change("UPDATE versions SET submitter = 'someone@example.org' WHERE number = 3")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.suite.release(world.approver, version)
        outcome = Outcome()
        explain(caught.value, outcome)
        assert (outcome.code, outcome.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN_CHAIN")
    finally:
        world.change("UPDATE versions SET submitter = 'mia@example.org' WHERE number = 3")
    assert await world.suite.release(world.approver, version)


WEIGHTS = '[{"version": "models/tiny/versions/1", "weight": 60}, {"version": "models/tiny/versions/2", "weight": 40}]'
OTHER = '[{"version": "models/tiny/versions/3", "weight": 100}]'
FORGERIES: dict[str, Callable[[World, int], None]] = {
    "weights": lambda world, at: world.change("UPDATE releases SET arms = ? WHERE generation = ?", WEIGHTS, at),
    "version": lambda world, at: world.change("UPDATE releases SET arms = ? WHERE generation = ?", OTHER, at),
    "releaser": lambda world, at: world.change("UPDATE releases SET releaser = 'eve' WHERE generation = ?", at),
    "unlogged": lambda world, at: world.change("UPDATE releases SET log_proof = '' WHERE generation = ?", at),
    "another's proof": lambda world, at: world.change(
        "UPDATE releases SET (log_leaf, log_proof) ="
        " (SELECT log_leaf, log_proof FROM releases WHERE generation = 1) WHERE generation = ?",
        at,
    ),
    "another's statement": lambda world, at: world.change(
        "UPDATE releases SET (statement, log_leaf, log_proof) ="
        " (SELECT statement, log_leaf, log_proof FROM releases WHERE generation = 1) WHERE generation = ?",
        at,
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_release_that_is_not_what_was_signed_and_logged_is_not_served(world: World, forgery: str) -> None:
    catalog = world.catalog
    arms = [
        catalog_pb2.ReleaseArm(version=world.versions[0], weight=40),
        catalog_pb2.ReleaseArm(version=world.versions[1], weight=60),
    ]
    request = catalog_pb2.CreateReleaseRequest(parent=MODEL, arms=arms, request_id=os.urandom(8).hex())
    release = (await catalog.CreateRelease(request, metadata=world.approver.metadata, timeout=30)).release
    await asyncio.sleep(MAX_STALE_SECONDS)
    assert (await world.ask()).code is grpc.StatusCode.OK
    FORGERIES[forgery](world, release.generation)
    await world.restarted()
    refused = await world.ask()
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN_CHAIN"), refused
    await world.suite.release(world.approver, world.versions[0])
    assert (await world.ask()).code is grpc.StatusCode.OK


def _edited(world: World, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> dict[str, bytes]:
    """Return version 3's manifest, changed in the light of version 1's."""
    forged, other = (json.loads(world.row(number)["manifest"]) for number in (3, 1))
    change(forged, other)
    return {"manifest": rfc8785.dumps(forged)}


def _signed_by_the_guard(world: World) -> dict[str, bytes]:
    """Return version 3's statement under a trusted key that is for decisions."""
    statement = Envelope.parse(world.row(3)["statement"])
    key = SigningKey.load(world.suite.settings("policy-guard").decision_key, name="policy-guard/decision")
    signature = sign_bytes(statement.payload_type, decode_base64(statement.payload), key)
    return {"statement": statement.model_copy(update={"signatures": (signature,)}).to_json()}


def _of_version_1(*columns: str) -> Callable[[World], dict[str, Any]]:
    return lambda world: {column: world.row(1)[column] for column in columns}


OTHER_BYTES = "the statement is about other bytes"
UNPROVEN = "the log does not prove the statement"
# What is written over version 3, and what its refusal then says.
VERSION_FORGERIES: dict[str, tuple[Callable[[World], dict[str, Any]], str]] = {
    "digest": (
        lambda world: _edited(world, lambda forged, _: forged.update(permitted_purposes=["recruitment"])),
        OTHER_BYTES,
    ),
    "weights": (
        lambda world: _edited(
            world, lambda forged, other: forged["imported"].update(weights=other["imported"]["weights"])
        ),
        OTHER_BYTES,
    ),
    "another's manifest": (_of_version_1("manifest"), "the manifest is another version's"),
    "another's statement": (_of_version_1("statement", "log_leaf", "log_proof"), OTHER_BYTES),
    "another signer": (_signed_by_the_guard, "signed by a key for another service or kind of statement"),
    "unlogged": (lambda _: {"log_proof": ""}, UNPROVEN),
    "another's proof": (_of_version_1("log_proof"), UNPROVEN),
    "another's leaf": (_of_version_1("log_leaf"), UNPROVEN),
    "another's leaf and proof": (_of_version_1("log_leaf", "log_proof"), "the log's leaf is about another statement"),
}


@pytest.mark.parametrize("forgery", VERSION_FORGERIES)
async def test_version_that_is_not_what_was_signed_and_logged_is_neither_served_nor_released(
    world: World, forgery: str
) -> None:
    forge, why = VERSION_FORGERIES[forgery]
    refusal = f"{world.versions[2]}: {why}"
    release = await world.suite.release(world.approver, world.versions[2])
    true = world.row(3)
    world.overwrite(3, forge(world))
    try:
        await world.restarted()
        served = await world.ask()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.suite.release(world.approver, world.versions[2])
    finally:
        world.overwrite(3, true)
    released = Outcome()
    explain(caught.value, released)
    assert (released.code, released.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN_CHAIN")
    assert released.details == refusal
    assert (served.code, served.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN_CHAIN")
    # The release names the digests of its versions, and is judged before them.
    changed = forgery in ("digest", "weights")
    at = f"{MODEL}/releases/{release.generation}: the statement is about another release"
    assert served.details == (at if changed else refusal)
    assert (await world.ask()).code is grpc.StatusCode.OK


async def test_catalogue_that_goes_back_while_the_server_runs_is_not_followed(world: World) -> None:
    older = await world.suite.release(world.approver, world.versions[0])
    newer = await world.suite.release(world.approver, world.versions[1])
    await asyncio.sleep(MAX_STALE_SECONDS)
    assert (await world.ask()).code is grpc.StatusCode.OK
    world.change("UPDATE models SET generation = ? WHERE name = 'tiny'", older.generation)
    await asyncio.sleep(MAX_STALE_SECONDS)
    refused = await world.ask()
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BROKEN_CHAIN")
    world.change("UPDATE models SET generation = ? WHERE name = 'tiny'", newer.generation)
    assert (await world.ask()).code is grpc.StatusCode.OK

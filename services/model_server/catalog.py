"""The catalogue: models, their immutable versions, and the releases that say which version answers.

A version is published whole, in one transaction, with its signed statement and the log's proof that the statement was
entered; a release is a new generation, made by compare-and-swap. Nothing here decides who may do so: policy does.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pydantic
import rfc8785
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.model_server.importer import ImportedModel
from services.model_server.tables import models, releases, versions
from shared.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from shared.records.store import Records

Clock = Callable[[], dt.datetime]


class BrokenChain(FailedPrecondition):
    """A version's or a release's evidence does not verify; the message names the link."""

    reason = "BROKEN_CHAIN"


class DeclaredModel(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """A model that a configured remote backend says it serves; taken on trust."""

    backend: str
    remote_model: str
    revision: str
    license: str
    max_context: int


class Manifest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Everything that makes a version what it is. Its digest, over canonical JSON (RFC 8785), names the version.

    Exactly one of `imported` (bytes in our store) and `declared` is set.
    """

    model: str
    number: int
    classification: str
    permitted_purposes: tuple[str, ...]
    imported: ImportedModel | None
    declared: DeclaredModel | None

    @property
    def loaded(self) -> bool:
        """Whether this server loads the bytes itself."""
        return self.imported is not None

    def to_json(self) -> bytes:
        """Return the canonical JSON that is digested and signed."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical JSON."""
        return "sha256:" + hashlib.sha256(self.to_json()).hexdigest()

    @property
    def name(self) -> str:
        """Resource name of the version."""
        return f"models/{self.model}/versions/{self.number}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """A signed statement and the proof that the log holds it: DSSE bytes, leaf, C2SP tlog-proof text."""

    statement: bytes
    log_leaf: bytes
    log_proof: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A published version. `submitter` is who brought it in."""

    manifest: Manifest
    submitter: str
    created_at: dt.datetime
    evidence: Evidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model name; `generation` 0 means that nothing is released."""

    name: str
    description: str
    created_at: dt.datetime
    generation: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A version's share of principals, in percent."""

    version: str
    weight: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """What answers under a model's name since `generation`; `previous` is the generation that a rollback puts back."""

    model: str
    generation: int
    arms: tuple[Arm, ...]
    previous: int | None
    releaser: str
    created_at: dt.datetime
    evidence: Evidence

    def arm_for(self, subject: str) -> Arm:
        """Return the arm that serves a principal: sticky by subject within a generation."""
        digest = hashlib.sha256(f"{self.model}\0{self.generation}\0{subject}".encode()).digest()
        point = int.from_bytes(digest[:8]) % 100
        for arm in self.arms:
            point -= arm.weight
            if point < 0:
                return arm
        raise AssertionError("weights sum to 100")


def parse_version_name(name: str) -> tuple[str, int]:
    """Return model and number of `models/<model>/versions/<n>`. Raises InvalidArgument."""
    # One spelling for each version: what is released is looked up by its name.
    found = re.fullmatch(r"models/([^/]+)/versions/([1-9][0-9]{0,8})", name)
    if found is None:
        raise InvalidArgument("a version is models/<model>/versions/<number>", field="name")
    return found[1], int(found[2])


def parse_model_name(name: str) -> str:
    """Return the model of `models/<model>`. Raises InvalidArgument."""
    prefix, _, model = name.partition("/")
    if prefix != "models" or not model or "/" in model:
        raise InvalidArgument("a model is models/<model>", field="name")
    return model


def check_arms(model: str, arms: Sequence[Arm]) -> None:
    """Refuse what makes no release of `model`. Raises FailedPrecondition."""
    if sum(arm.weight for arm in arms) != 100:
        raise FailedPrecondition("weights of a release sum to 100")
    if len({arm.version for arm in arms}) != len(arms):
        raise FailedPrecondition("a release names each version once")
    if any(parse_version_name(arm.version)[0] != model for arm in arms):
        raise FailedPrecondition("a release takes versions of its own model")


class Catalog:
    """Reads and writes the catalogue."""

    def __init__(self, records: Records, *, clock: Clock = lambda: dt.datetime.now(dt.UTC)) -> None:
        """Keep it in `records`."""
        self._records = records
        self._clock = clock

    async def next_number(self, model: str) -> int:
        """Return the number that the next version of `model` would get."""
        async with self._records.read() as connection:
            query = sa.select(sa.func.max(versions.c.number)).where(versions.c.model == model)
            newest = (await connection.execute(query)).scalar()
        return int(newest or 0) + 1

    async def publish(
        self,
        manifest: Manifest,
        evidence: Evidence,
        *,
        submitter: str,
        description: str,
        together_with: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> Version:
        """Make a version visible, whole or not at all. Raises Aborted when its number was taken meanwhile.

        `together_with` runs in the same transaction: what it raises keeps the version from being published.
        """
        now = self._clock()
        try:
            async with self._records.write() as connection:
                if together_with is not None:
                    await together_with(connection)
                found = await connection.execute(sa.select(models.c.name).where(models.c.name == manifest.model))
                if found.first() is None:
                    await connection.execute(
                        models.insert().values(
                            name=manifest.model, description=description, created_at=_micros(now), generation=0
                        )
                    )
                await connection.execute(
                    versions.insert().values(
                        model=manifest.model,
                        number=manifest.number,
                        manifest=manifest.to_json(),
                        submitter=submitter,
                        created_at=_micros(now),
                        statement=evidence.statement,
                        log_leaf=evidence.log_leaf,
                        log_proof=evidence.log_proof,
                    )
                )
        except IntegrityError:
            raise Aborted("another version took this number") from None
        return Version(manifest=manifest, submitter=submitter, created_at=now, evidence=evidence)

    async def model(self, name: str) -> Model:
        """Return a model. Raises NotFound."""
        async with self._records.read() as connection:
            row = (await connection.execute(sa.select(models).where(models.c.name == name))).first()
        if row is None:
            raise NotFound("no such model")
        return _model(row)

    async def models(self, *, after: str, limit: int) -> list[Model]:
        """Return up to `limit` models whose names come after `after`, by name."""
        query = sa.select(models).where(models.c.name > after).order_by(models.c.name).limit(limit)
        async with self._records.read() as connection:
            return [_model(row) for row in await connection.execute(query)]

    async def version(self, name: str) -> Version:
        """Return a version by resource name. Raises NotFound."""
        model, number = parse_version_name(name)
        query = sa.select(versions).where(versions.c.model == model, versions.c.number == number)
        async with self._records.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound("no such version")
        return _version(row)

    async def versions(self, model: str, *, before: int, limit: int) -> list[Version]:
        """Return up to `limit` versions of `model` with numbers below `before`, newest first."""
        query = (
            sa.select(versions)
            .where(versions.c.model == model, versions.c.number < before)
            .order_by(versions.c.number.desc())
            .limit(limit)
        )
        async with self._records.read() as connection:
            return [_version(row) for row in await connection.execute(query)]

    async def release(self, model: str) -> Release:
        """Return the release in force, the newest there is.

        Raises NotFound when there is none, BrokenChain when the catalogue says that an older one is in force.
        """
        query = (
            sa.select(releases, models.c.generation.label("in_force"))
            .join(models, models.c.name == releases.c.model)
            .where(models.c.name == model)
            .order_by(releases.c.generation.desc())
            .limit(1)
        )
        async with self._records.read() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound("no release of this model")
        if row.in_force != row.generation:
            raise BrokenChain(f"models/{model}: the catalogue went back to an older release")
        return _release(row)

    async def releases(self, model: str, *, before: int, limit: int) -> list[Release]:
        """Return up to `limit` releases of `model` with generations below `before`, newest first."""
        query = (
            sa.select(releases)
            .where(releases.c.model == model, releases.c.generation < before)
            .order_by(releases.c.generation.desc())
            .limit(limit)
        )
        async with self._records.read() as connection:
            return [_release(row) for row in await connection.execute(query)]

    async def requested_release(self, model: str, *, releaser: str, request_id: str) -> Release | None:
        """Return the release that this request made already."""
        query = sa.select(releases).where(
            releases.c.model == model, releases.c.releaser == releaser, releases.c.request_id == request_id
        )
        async with self._records.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _release(row)

    async def put_in_force(self, release: Release, *, request_id: str) -> None:
        """Put `release` in force in place of the generation before its own. Raises Aborted when another release won."""
        try:
            async with self._records.write() as connection:
                swapped = await connection.execute(
                    models.update()
                    .where(models.c.name == release.model, models.c.generation == release.generation - 1)
                    .values(generation=release.generation)
                )
                if swapped.rowcount != 1:
                    raise Aborted("another release won")
                await connection.execute(
                    releases.insert().values(
                        model=release.model,
                        generation=release.generation,
                        arms=[dataclasses.asdict(arm) for arm in release.arms],
                        previous=release.previous,
                        releaser=release.releaser,
                        created_at=_micros(release.created_at),
                        statement=release.evidence.statement,
                        log_leaf=release.evidence.log_leaf,
                        log_proof=release.evidence.log_proof,
                        request_id=request_id,
                    )
                )
        except IntegrityError:
            raise Aborted("another release won") from None


def _micros(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _moment(micros: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(micros / 1_000_000, dt.UTC)


def _model(row: Any) -> Model:
    return Model(
        name=row.name, description=row.description, created_at=_moment(row.created_at), generation=row.generation
    )


def _version(row: Any) -> Version:
    name = f"models/{row.model}/versions/{row.number}"
    try:
        manifest = Manifest.model_validate_json(row.manifest)
    except ValueError:
        raise BrokenChain(f"{name}: the manifest is malformed") from None
    if manifest.name != name:
        raise BrokenChain(f"{name}: the manifest is another version's")
    return Version(
        manifest=manifest,
        submitter=row.submitter,
        created_at=_moment(row.created_at),
        evidence=Evidence(statement=row.statement, log_leaf=row.log_leaf, log_proof=row.log_proof),
    )


def _release(row: Any) -> Release:
    try:
        arms = tuple(Arm(**arm) for arm in row.arms)
        check_arms(row.model, arms)
    except (TypeError, FailedPrecondition, InvalidArgument):
        raise BrokenChain(f"models/{row.model}/releases/{row.generation}: the release is malformed") from None
    return Release(
        model=row.model,
        generation=row.generation,
        arms=arms,
        previous=row.previous,
        releaser=row.releaser,
        created_at=_moment(row.created_at),
        evidence=Evidence(statement=row.statement, log_leaf=row.log_leaf, log_proof=row.log_proof),
    )

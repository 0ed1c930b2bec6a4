"""Policy revisions: proposed once, activated by compare-and-swap, rolled back one by one; nothing is ever deleted.

History is append-only. Each activation links to where a rollback of it leads, so that rolling back twice goes two
steps back, never forth to what was just taken out of force.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.pages import decode_page_token, encode_page_token, page_size
from services.policy_guard.tables import activations, revisions
from services.policy_guard.upsert import insert_missing
from shared.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from shared.records.store import Records

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class NoEarlierRevision(FailedPrecondition):
    """No other revision was active before."""

    reason = "NO_EARLIER_REVISION"


class State(enum.StrEnum):
    """Whether a revision is in force."""

    PROPOSED = "PROPOSED"
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"


class Kind(enum.StrEnum):
    """How a revision came into force."""

    ACTIVATION = "ACTIVATION"
    ROLLBACK = "ROLLBACK"
    RECOVERY = "RECOVERY"
    """Offline on the guard's host, without a decision."""


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One step of the history. `number` counts from 1; the highest is in force."""

    number: int
    digest: str
    previous: int | None
    """Number of the step that a rollback of this one goes back to."""
    kind: Kind
    activator: str
    activated_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A bundle that was proposed; `activation` is its last one, None if it never was in force."""

    digest: str
    state: State
    proposer: str
    note: str
    proposed_at: dt.datetime
    activation: Activation | None


@dataclass(frozen=True, kw_only=True)
class RevisionPage:
    """Revisions, newest first; the token is empty on the last page."""

    revisions: tuple[Revision, ...]
    next_page_token: str


class Revisions:
    """The record of policy. Everything raises `RecordsUnavailable` when the store does not answer."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep revisions in `records`."""
        self._records = records
        self._clock = clock

    async def propose(self, digest: str, bundle: bytes, *, proposer: str, note: str) -> Revision:
        """Keep `bundle` under `digest`, which MUST be its own, or return the revision that is kept under it.

        Raises `InvalidArgument` for what is no digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise InvalidArgument("a digest is sha256: and 64 hexadecimal digits", field="digest")
        row = {
            "digest": digest,
            "bundle": bundle,
            "proposer": proposer,
            "note": note,
            "proposed_at": self._clock(),
        }
        async with self._records.write() as connection:
            await insert_missing(connection, revisions, [row])
            return await _read(connection, digest)

    async def get(self, digest: str) -> Revision:
        """Return a revision. Raises `NotFound`."""
        async with self._records.read() as connection:
            return await _read(connection, digest)

    async def bundle(self, digest: str) -> bytes:
        """Return a revision's bundle. Raises `NotFound`."""
        async with self._records.read() as connection:
            await _read(connection, digest)
            found = await connection.execute(select(revisions.c.bundle).where(revisions.c.digest == digest))
            bundle: bytes = found.scalar_one()
        return bundle

    async def list(self, *, requested: int = 0, page_token: str = "") -> RevisionPage:
        """Return up to `requested` revisions (0: the default) after the page that `page_token` ended.

        Raises `InvalidArgument`.
        """
        size = page_size(requested)
        query = _select().order_by(revisions.c.proposed_at.desc(), revisions.c.digest.desc()).limit(size + 1)
        if page_token:
            last = decode_page_token(page_token, _DIGEST)
            at = select(revisions.c.proposed_at).where(revisions.c.digest == last).scalar_subquery()
            query = query.where(tuple_(revisions.c.proposed_at, revisions.c.digest) < tuple_(at, last))
        async with self._records.read() as connection:
            found = [_to_revision(row) for row in await connection.execute(query)]
        more = len(found) > size
        token = encode_page_token(found[size - 1].digest) if more else ""
        return RevisionPage(revisions=tuple(found[:size]), next_page_token=token)

    async def active(self) -> Activation | None:
        """Return what is in force; None before the first activation."""
        async with self._records.read() as connection:
            return await _last(connection)

    async def recoveries(self) -> tuple[Activation, ...]:
        """Return every offline activation, oldest first, so that a server can see each one recorded."""
        query = select(activations).where(activations.c.kind == Kind.RECOVERY).order_by(activations.c.number)
        async with self._records.read() as connection:
            return tuple(_to_activation(row) for row in await connection.execute(query))

    async def activate(self, digest: str, *, activator: str, expected: str | None) -> Activation:
        """Put a revision in force in place of `expected`, the revision that judged this (None: there was none).

        Returns the standing activation if it is in force already. Raises `NotFound`, or `Aborted` when another
        revision than `expected` is in force: then callers MUST have it judged again.
        """
        async with self._history() as (connection, current):
            if current is not None and current.digest == digest:
                return current
            _check(current, expected)
            return await self._append(
                connection, current, Kind.ACTIVATION, digest, activator, previous=_number(current)
            )

    async def before(self, activation: Activation) -> Activation | None:
        """Return what a rollback of `activation` puts back, if anything was before."""
        if activation.previous is None:
            return None
        query = select(activations).where(activations.c.number == activation.previous)
        async with self._records.read() as connection:
            return _to_activation((await connection.execute(query)).one())

    async def rollback(self, *, activator: str, expected: str) -> Activation:
        """Put in force again what was before `expected`. Raises `NoEarlierRevision`, and `Aborted` as `activate`."""
        async with self._history() as (connection, current):
            _check(current, expected)
            if current is None or current.previous is None:
                raise NoEarlierRevision("no other revision was active before")
            query = select(activations).where(activations.c.number == current.previous)
            target = _to_activation((await connection.execute(query)).one())
            return await self._append(
                connection, current, Kind.ROLLBACK, target.digest, activator, previous=target.previous
            )

    async def recover(self, digest: str, *, activator: str) -> Activation:
        """Put a revision in force whatever is, and mark it so. Only for the operator on the guard's host.

        Raises `NotFound`, or `Aborted` when another activation won.
        """
        async with self._history() as (connection, current):
            again = current is not None and current.digest == digest
            previous = current.previous if current is not None and again else _number(current)
            return await self._append(connection, current, Kind.RECOVERY, digest, activator, previous=previous)

    @asynccontextmanager
    async def _history(self) -> AsyncIterator[tuple[AsyncConnection, Activation | None]]:
        try:
            async with self._records.write() as connection:
                yield connection, await _last(connection)
        except IntegrityError:
            # Two writers saw the same last step, and one of them has taken the next number.
            raise Aborted("another revision was activated meanwhile") from None

    async def _append(
        self,
        connection: AsyncConnection,
        current: Activation | None,
        kind: Kind,
        digest: str,
        activator: str,
        *,
        previous: int | None,
    ) -> Activation:
        await _read(connection, digest)
        row = {
            "number": (_number(current) or 0) + 1,
            "digest": digest,
            "previous": previous,
            "kind": kind.value,
            "activator": activator,
            "activated_at": self._clock(),
        }
        result = await connection.execute(insert(activations).values(row).returning(activations))
        return _to_activation(result.one())


def _check(current: Activation | None, expected: str | None) -> None:
    if (None if current is None else current.digest) != expected:
        raise Aborted("another revision was activated meanwhile")


def _number(activation: Activation | None) -> int | None:
    return None if activation is None else activation.number


async def _last(connection: AsyncConnection) -> Activation | None:
    query = select(activations).order_by(activations.c.number.desc()).limit(1)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _to_activation(row)


def _select() -> Select[Any]:
    newest = select(activations.c.digest, func.max(activations.c.number).label("number"))
    last = newest.group_by(activations.c.digest).subquery()
    in_force = select(func.max(activations.c.number)).scalar_subquery()
    # The bundle is left out: up to megabytes that a list does not need.
    proposed = [column for column in revisions.c if column is not revisions.c.bundle]
    return (
        select(*proposed, *(column.label(f"activation_{column.name}") for column in activations.c))
        .add_columns((activations.c.number == in_force).label("active"))
        .select_from(revisions)
        .outerjoin(last, last.c.digest == revisions.c.digest)
        .outerjoin(activations, activations.c.number == last.c.number)
    )


async def _read(connection: AsyncConnection, digest: str) -> Revision:
    row = None
    if _DIGEST.fullmatch(digest):
        row = (await connection.execute(_select().where(revisions.c.digest == digest))).one_or_none()
    if row is None:
        raise NotFound("no such revision")
    return _to_revision(row)


def _to_activation(row: Row[Any], prefix: str = "") -> Activation:
    fields = {name: getattr(row, prefix + name) for name in activations.c.keys()}  # noqa: SIM118 - columns are keyed
    return Activation(**{**fields, "kind": Kind(fields["kind"])})


def _to_revision(row: Row[Any]) -> Revision:
    state = State.PROPOSED
    if row.activation_number is not None:
        state = State.ACTIVE if row.active else State.RETIRED
    return Revision(
        digest=row.digest,
        state=state,
        proposer=row.proposer,
        note=row.note,
        proposed_at=row.proposed_at,
        activation=None if state is State.PROPOSED else _to_activation(row, "activation_"),
    )

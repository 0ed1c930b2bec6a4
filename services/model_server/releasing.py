"""Putting versions in force: signed, entered in the log, and in force by compare-and-swap, forth and back."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Sequence

from bastide.audit.v1 import record_pb2
from services.model_server.catalog import Arm, Catalog, Evidence, Release, Version, check_arms
from services.model_server.provenance import FACT, Provenance, statement_digest
from services.model_server.serving import Serving
from shared.audit import AuditLog, record_of
from shared.errors import AlreadyExists, FailedPrecondition


class NoEarlierRelease(FailedPrecondition):
    """Nothing was in force before."""

    reason = "NO_EARLIER_RELEASE"


class Releasing:
    """Makes releases. Nothing here decides who may: policy does."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        provenance: Provenance,
        serving: Serving,
        audit: AuditLog,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """Release what `serving` can load."""
        self._catalog = catalog
        self._provenance = provenance
        self._serving = serving
        self._audit = audit
        self._clock = clock

    async def release(self, model: str, arms: Sequence[Arm], *, releaser: str, request_id: str, cause: str) -> Release:
        """Put `arms` in force as the next generation. `cause` is the call that asked.

        The same releaser and request_id give the first release again, which need no longer be in force. Raises
        AlreadyExists when they made one of other arms, Aborted when another release won,
        FailedPrecondition for arms that make no release, NotFound, BrokenChain, and BackendUnavailable where a version
        does not load.
        """
        found = await self._catalog.requested_release(model, releaser=releaser, request_id=request_id)
        if found is not None:
            if found.arms != tuple(arms):
                raise AlreadyExists("this request_id made another release")
            return found
        current = (await self._catalog.model(model)).generation
        return await self._enter(
            model, arms, current, previous=current or None, releaser=releaser, request_id=request_id, cause=cause
        )

    async def version(self, name: str) -> Version:
        """Return a version whose evidence verifies. Raises NotFound and BrokenChain."""
        version = await self._catalog.version(name)
        self._provenance.check(version)
        return version

    async def before(self, model: str) -> tuple[Release, Release | None]:
        """Return the release in force, and the one that a rollback puts back, if any was before. Raises NotFound."""
        current = await self._catalog.release(model)
        if current.previous is None:
            return current, None
        (target,) = await self._catalog.releases(model, before=current.previous + 1, limit=1)
        return current, target

    async def roll_back(self, current: Release, target: Release | None, *, releaser: str, cause: str) -> Release:
        """Put back `target`, which was before `current`; rolling back twice goes two steps back, never forth.

        Raises NoEarlierRelease without one, Aborted when `current` is no longer in force, else as `release`.
        """
        if target is None:
            raise NoEarlierRelease("there is no release to go back to")
        return await self._enter(
            current.model,
            target.arms,
            current.generation,
            previous=target.previous,
            releaser=releaser,
            # Beside those of callers: nobody can have taken it before.
            request_id=f"rollback:{uuid.uuid4()}",
            cause=cause,
        )

    async def _enter(
        self,
        model: str,
        arms: Sequence[Arm],
        current: int,
        *,
        previous: int | None,
        releaser: str,
        request_id: str,
        cause: str,
    ) -> Release:
        check_arms(model, arms)
        versions = [await self.version(arm.version) for arm in arms]
        async with contextlib.AsyncExitStack() as stack:
            for version in versions:
                await stack.enter_async_context(self._serving.prepared(version))
            return await self._put_in_force(
                model,
                arms,
                versions,
                current + 1,
                previous=previous,
                releaser=releaser,
                request_id=request_id,
                cause=cause,
            )

    async def _put_in_force(
        self,
        model: str,
        arms: Sequence[Arm],
        versions: Sequence[Version],
        generation: int,
        *,
        previous: int | None,
        releaser: str,
        request_id: str,
        cause: str,
    ) -> Release:
        statement = self._provenance.release_statement(model, generation, arms, versions, releaser=releaser)
        record = record_of(
            record_pb2.RECORD_KIND_SYSTEM,
            call_id=cause,
            method="-",
            action="model_server.release.create",
            resource=f"models/{model}/releases/{generation}",
        )
        record.facts.update({FACT: statement_digest(statement), "cause": cause})
        (appended,) = await self._audit.append([record])
        release = Release(
            model=model,
            generation=generation,
            arms=tuple(arms),
            previous=previous,
            releaser=releaser,
            created_at=self._clock(),
            evidence=Evidence(statement=statement, log_leaf=appended.leaf, log_proof=appended.proof),
        )
        await self._catalog.put_in_force(release, request_id=request_id)
        return release

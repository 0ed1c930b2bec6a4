"""The life of the policy in force: from the first start through activation and rollback, on engine and store alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Gauge

from services.policy_guard.bundle import Bundle, read_archive, read_directory
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.guard_data import GuardData, guard_data
from services.policy_guard.revisions import Activation, Revision, Revisions
from services.policy_guard.validation import Report, validate
from shared.errors import Aborted, FailedPrecondition

ADMINISTRATOR_ROLE = "administrator"

GENERATION = Gauge(
    "bastide_policy_generation", "Number of the activation, rollback or recovery that this process follows."
)
INFO = Gauge("bastide_policy_info", "1 for the revision that this process decides by.", ["revision"])
LOADED_AT = Gauge("bastide_policy_loaded_timestamp_seconds", "When this process loaded that revision.")


class PolicyRefused(FailedPrecondition):
    """The bundle does not validate; the first problems are in the message."""

    reason = "POLICY_REFUSED"


class Lifecycle:
    """Keeps engine and store on one revision. The store says which is in force; the engine follows it."""

    def __init__(
        self,
        engine: PolicyEngine,
        revisions: Revisions,
        *,
        loaded: Callable[[GuardData], None],
        administrator_tenants: frozenset[str],
    ) -> None:
        """Load into `engine`; `loaded` is told of each revision, in the moment in which `engine` decides by it."""
        self._engine = engine
        self._revisions = revisions
        self._loaded = loaded
        self._tenants = administrator_tenants
        self._changing = asyncio.Lock()

    async def start(self, directory: Path) -> None:
        """Load the revision in force, or on the very first start the bundle in `directory`."""
        if await self._revisions.active() is None:
            bundle = await asyncio.to_thread(read_directory, directory)
            await self._check(bundle)
            await self._revisions.propose(
                bundle.revision, bundle.archive(), proposer="bastide", note="installed with the guard"
            )
            await self._revisions.activate(bundle.revision, activator="bastide", expected=None)
        await self.follow()

    async def follow(self) -> None:
        """Bring the engine to the revision in force, as another replica or an offline recovery may have changed it."""
        # Looked up under the lock, or of two changes the former could be loaded last.
        async with self._changing:
            active = await self._revisions.active()
            if active is None:
                raise FailedPrecondition("no policy revision is in force")
            if active.digest != self._engine.current:
                bundle = await self.bundle(active.digest)
                data = await asyncio.to_thread(guard_data, bundle)
                await self._engine.load(bundle)
                self._loaded(data)
                INFO.clear()
                INFO.labels(active.digest).set(1)
                LOADED_AT.set_to_current_time()
            GENERATION.set(active.number)

    async def bundle(self, digest: str) -> Bundle:
        """Return a kept bundle, verified. Raises NotFound."""
        archive = await self._revisions.bundle(digest)
        return await asyncio.to_thread(read_archive, archive)

    async def validate(self, archive: bytes) -> Report:
        """Check a bundle. Raises BundleError where it cannot even be read."""
        bundle = await asyncio.to_thread(read_archive, archive)
        return await validate(bundle, self._engine, administrator_tenants=self._tenants)

    async def propose(self, archive: bytes, *, proposer: str, note: str) -> Revision:
        """Keep a bundle that validates. Raises PolicyRefused."""
        bundle = await asyncio.to_thread(read_archive, archive)
        await self._check(bundle)
        return await self._revisions.propose(bundle.revision, bundle.archive(), proposer=proposer, note=note)

    async def activate(self, digest: str, *, judged_by: str, activator: str) -> Activation:
        """Put a kept revision in force in place of `judged_by`, the one that allowed this.

        Raises Aborted when another is in force: it may not allow this.
        """
        await self._check(await self.bundle(digest))
        activation = await self._revisions.activate(digest, activator=activator, expected=judged_by)
        await self.follow()
        return activation

    async def rollback(self, judged: Activation | None, *, judged_by: str, activator: str) -> Activation:
        """Put the revision before `judged` back, the one in force, which allowed this. Raises Aborted if it is not."""
        if judged is None:
            raise FailedPrecondition("no policy revision is in force")
        if judged.digest != judged_by:
            raise Aborted("another revision was activated meanwhile")
        activation = await self._revisions.rollback(activator=activator, expected=judged.digest)
        await self.follow()
        return activation

    async def _check(self, bundle: Bundle) -> None:
        report = await validate(bundle, self._engine, administrator_tenants=self._tenants)
        if not report.ok:
            raise PolicyRefused("; ".join(map(str, report.problems[:5])))

"""Which version answers a call, and that it is loaded: released, whole in its chain, kept while calls run on it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import structlog
from prometheus_client import Gauge

from services.model_server.backends import Backend
from services.model_server.catalog import BrokenChain, Catalog, Release, Version
from services.model_server.provenance import Provenance
from shared import errors

log = structlog.get_logger()

# A call never starts on a release that was looked up longer ago than this.
MAX_STALE_SECONDS = 1.0
LOAD_SECONDS = 300.0
# The contract's bound on a release.
MAX_ARMS = 2

# An arm is a place in a release, so that versions come and go without new time series.
ARM_HEALTHY = Gauge("bastide_release_arm_healthy", "1 while what is released there can answer.", ["model", "arm"])
ARM_VERSION = Gauge("bastide_release_arm_version", "Number of the version that is released there.", ["model", "arm"])
VERSIONS_LOADED = Gauge("bastide_versions_loaded", "Versions in memory, those that only finish their calls included.")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What serves one call: it finishes on this version whatever is released meanwhile."""

    version: Version
    backend: Backend
    generation: int


@dataclass(kw_only=True, eq=False)
class _Loaded:
    """A version in memory or on its way there. `users` are calls, releases being made, and whoever waits for it."""

    version: Version
    backend: Backend
    loading: asyncio.Task[None] = field(init=False)
    ready: bool = False
    users: int = 0


@dataclass(kw_only=True)
class _Known:
    release: Release
    looked_up: float
    arms: dict[str, _Loaded]


class Serving:
    """Loads released versions and lends them to calls. Callers MUST `close` it."""

    def __init__(self, catalog: Catalog, provenance: Provenance, *, backend_for: Callable[[Version], Backend]) -> None:
        """Serve what `catalog` releases, on backends that `backend_for` makes (not yet started)."""
        self._catalog = catalog
        self._provenance = provenance
        self._backend_for = backend_for
        self._loaded: dict[str, _Loaded] = {}
        self._known: dict[str, _Known] = {}
        self._one_at_a_time = asyncio.Lock()
        # What keeps a released model from being served at all, by resource name.
        self.failing: dict[str, str] = {}
        VERSIONS_LOADED.set_function(lambda: sum(loaded.ready for loaded in self._loaded.values()))

    @contextlib.asynccontextmanager
    async def lease(self, model: str, subject: str) -> AsyncIterator[Served]:
        """Lend the version that answers `subject` under `model`'s name.

        Raises NotFound without a release, BrokenChain, and BackendUnavailable while it cannot serve.
        """
        known = await self._current(model)
        loaded = known.arms[known.release.arm_for(subject).version]
        if not loaded.backend.healthy():
            raise errors.BackendUnavailable("the model is not ready", retry_after=1.0)
        async with self._using(loaded.version) as used:
            yield Served(version=used.version, backend=used.backend, generation=known.release.generation)

    @contextlib.asynccontextmanager
    async def prepared(self, version: Version) -> AsyncIterator[None]:
        """Verify and load a version, and keep it within the context, so that its release cannot fail for it later.

        What is not released by then is unloaded. Raises BrokenChain and BackendUnavailable.
        """
        async with self._using(version):
            yield

    async def warm(self) -> None:
        """Load everything that is released; for start-up and as periodic work."""
        after = ""
        while page := await self._catalog.models(after=after, limit=100):
            for model in page:
                if not model.generation:
                    continue
                try:
                    known = await self._current(model.name)
                except errors.Error as error:
                    log.warning("release_not_served", model=model.name, reason=error.reason)
                    self._fail(model.name, error.message)
                except Exception as error:  # noqa: BLE001  (a defect in one model must not keep the others unloaded)
                    log.error("release_not_served", model=model.name, error=error)
                    self._fail(model.name, "internal error")
                else:
                    self.failing.pop(f"models/{model.name}", None)
                    self._show(known)
            after = page[-1].name

    def unhealthy(self) -> list[str]:
        """Return the released versions that cannot serve now."""
        return [
            name
            for known in self._known.values()
            for name, loaded in known.arms.items()
            if not loaded.backend.healthy()
        ]

    async def close(self) -> None:
        """End every backend."""
        loaded, self._loaded, self._known = list(self._loaded.values()), {}, {}
        ARM_HEALTHY.clear()
        ARM_VERSION.clear()
        for item in loaded:
            item.loading.cancel()
            await asyncio.gather(item.loading, return_exceptions=True)
            await item.backend.close()

    async def _current(self, model: str) -> _Known:
        """Return the release in force, loaded: looked up at most `MAX_STALE_SECONDS` ago, and after its load again."""
        while True:
            known = self._known.get(model)
            if known is not None and time.monotonic() - known.looked_up < MAX_STALE_SECONDS:
                return known
            looked_up = time.monotonic()
            release = await self._catalog.release(model)
            if known is not None and release.generation < known.release.generation:
                raise BrokenChain(f"models/{model}: the catalogue went back to an older release")
            if known is not None and release.generation == known.release.generation:
                known.looked_up = looked_up
                return known
            await self._enter(model, release)

    async def _enter(self, model: str, release: Release) -> None:
        """Load a newer release and serve it from now on, unless yet another is in force by then."""
        versions = [await self._catalog.version(arm.version) for arm in release.arms]
        self._provenance.check_release(release, versions)
        async with contextlib.AsyncExitStack() as stack:
            arms = {item.manifest.name: await stack.enter_async_context(self._using(item)) for item in versions}
            looked_up = time.monotonic()
            newest = await self._catalog.release(model)
            before = self._known.get(model)
            if newest.generation != release.generation or (
                before is not None and before.release.generation >= release.generation
            ):
                return
            self._known[model] = _Known(release=release, looked_up=looked_up, arms=arms)
        for loaded in before.arms.values() if before is not None else ():
            await self._unload_if_unused(loaded)

    def _fail(self, model: str, why: str) -> None:
        self.failing[f"models/{model}"] = why
        if model not in self._known:
            ARM_HEALTHY.labels(model, "0").set(0)

    def _show(self, known: _Known) -> None:
        model, arms = known.release.model, known.release.arms
        for place in range(len(arms), MAX_ARMS):
            ARM_HEALTHY.remove(model, str(place))
            ARM_VERSION.remove(model, str(place))
        for place, arm in enumerate(arms):
            loaded = known.arms[arm.version]
            healthy = functools.partial(self._answers, model, loaded.backend)
            ARM_HEALTHY.labels(model, str(place)).set_function(healthy)
            ARM_VERSION.labels(model, str(place)).set(loaded.version.manifest.number)

    def _answers(self, model: str, backend: Backend) -> bool:
        return backend.healthy() and f"models/{model}" not in self.failing

    @contextlib.asynccontextmanager
    async def _using(self, version: Version) -> AsyncIterator[_Loaded]:
        """Keep a version in memory within the context. Whoever leaves while it loads takes it from nobody else."""
        name = version.manifest.name
        loaded = self._loaded.get(name)
        if loaded is None:
            self._provenance.check(version)
            loaded = self._loaded[name] = _Loaded(version=version, backend=self._backend_for(version))
            loaded.loading = asyncio.create_task(self._load(loaded), name=f"load {name}")
            # Whoever waits is told how it ended; nobody may be left to ask.
            loaded.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        loaded.users += 1
        try:
            await asyncio.shield(loaded.loading)
            yield loaded
        finally:
            loaded.users -= 1
            await self._unload_if_unused(loaded)

    async def _load(self, loaded: _Loaded) -> None:
        name = loaded.version.manifest.name
        try:
            async with self._one_at_a_time, asyncio.timeout(LOAD_SECONDS):
                await loaded.backend.start()
        except BaseException as error:
            self._loaded.pop(name, None)
            await loaded.backend.close()
            if isinstance(error, TimeoutError):
                raise errors.BackendUnavailable("the model did not load in time") from None
            raise
        loaded.ready = True
        log.info("version_loaded", version=name)
        await self._unload_if_unused(loaded)

    async def _unload_if_unused(self, loaded: _Loaded) -> None:
        name = loaded.version.manifest.name
        released = any(name in known.arms for known in self._known.values())
        if loaded.ready and not loaded.users and not released and self._loaded.get(name) is loaded:
            del self._loaded[name]
            await loaded.backend.close()
            log.info("version_unloaded", version=name)

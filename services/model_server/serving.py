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
from services.model_server.catalog import Catalog, Release, Version
from services.model_server.provenance import BrokenChain, Provenance
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


@dataclass(kw_only=True)
class _Loaded:
    version: Version
    backend: Backend
    calls: int = 0
    retired: bool = False


@dataclass(kw_only=True)
class _Known:
    release: Release
    looked_up: float
    arms: dict[str, _Loaded] = field(default_factory=dict)


class Serving:
    """Loads released versions and lends them to calls. Callers MUST `close` it."""

    def __init__(self, catalog: Catalog, provenance: Provenance, *, backend_for: Callable[[Version], Backend]) -> None:
        """Serve what `catalog` releases, on backends that `backend_for` makes (not yet started)."""
        self._catalog = catalog
        self._provenance = provenance
        self._backend_for = backend_for
        self._loaded: dict[str, _Loaded] = {}
        self._known: dict[str, _Known] = {}
        self._loading = asyncio.Lock()
        # What keeps a released model from being served at all, by resource name.
        self.failing: dict[str, str] = {}
        VERSIONS_LOADED.set_function(lambda: len(self._loaded))

    @contextlib.asynccontextmanager
    async def lease(self, model: str, subject: str) -> AsyncIterator[Served]:
        """Lend the version that answers `subject` under `model`'s name.

        Raises NotFound without a release, BrokenChain, and BackendUnavailable while it cannot serve.
        """
        known = await self._current(model)
        loaded = known.arms[known.release.arm_for(subject).version]
        if not loaded.backend.healthy():
            raise errors.BackendUnavailable("the model is not ready", retry_after=1.0)
        loaded.calls += 1
        try:
            yield Served(version=loaded.version, backend=loaded.backend, generation=known.release.generation)
        finally:
            loaded.calls -= 1
            await self._unload_if_idle(loaded)

    async def prepare(self, version: Version) -> None:
        """Verify and load a version before it is released, so that the release cannot fail for it later."""
        await self._load(version)

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
                    self.failing[f"models/{model.name}"] = error.message
                    log.warning("release_not_served", model=model.name, reason=error.reason)
                    if model.name not in self._known:
                        ARM_HEALTHY.labels(model.name, "0").set(0)
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
            await item.backend.close()

    async def _current(self, model: str) -> _Known:
        known = self._known.get(model)
        if known is not None and time.monotonic() - known.looked_up < MAX_STALE_SECONDS:
            return known
        looked_up = time.monotonic()
        release = await self._catalog.release(model)
        if known is not None and known.release.generation == release.generation:
            known.looked_up = looked_up
            return known
        if known is not None and release.generation < known.release.generation:
            raise BrokenChain(f"models/{model}: the catalogue went back to an older release")
        versions = [await self._catalog.version(arm.version) for arm in release.arms]
        self._provenance.check_release(release, versions)
        arms = {version.manifest.name: await self._load(version) for version in versions}
        fresh = _Known(release=release, looked_up=looked_up, arms=arms)
        self._known[model] = fresh
        for name, loaded in known.arms.items() if known is not None else ():
            if name not in arms:
                loaded.retired = True
                await self._unload_if_idle(loaded)
        return fresh

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

    async def _load(self, version: Version) -> _Loaded:
        name = version.manifest.name
        async with self._loading:
            if (loaded := self._loaded.get(name)) is not None:
                loaded.retired = False
                return loaded
            self._provenance.check(version)
            backend = self._backend_for(version)
            try:
                async with asyncio.timeout(LOAD_SECONDS):
                    await backend.start()
            except BaseException as error:
                await backend.close()
                if isinstance(error, TimeoutError):
                    raise errors.BackendUnavailable("the model did not load in time") from None
                raise
            log.info("version_loaded", version=name)
            loaded = self._loaded[name] = _Loaded(version=version, backend=backend)
            return loaded

    async def _unload_if_idle(self, loaded: _Loaded) -> None:
        if loaded.retired and loaded.calls == 0:
            name = loaded.version.manifest.name
            self._loaded.pop(name, None)
            await loaded.backend.close()
            log.info("version_unloaded", version=name)

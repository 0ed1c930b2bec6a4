"""The embedded backend's engine: its death, its hanging, its end, and the memory it may take."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from services.model_server.backends.engine import Engine, TorchSettings, working_bytes
from services.model_server.backends.torch import InsufficientMemory, TorchBackend
from services.model_server.importer import LoadedModel, import_model, load_model
from shared import errors
from tests.fakes.tiny_model import MemoryObjects, build_tiny_model
from tests.unit.model_server.backends.conftest import Clock, OpenBackend, Steps, ask, collect, entered, reference, text


async def test_a_dead_engine_fails_its_calls_and_is_rebuilt(
    loaded: LoadedModel, open_backend: OpenBackend, steps: Steps
) -> None:
    async with open_backend() as backend:
        steps.fault = RuntimeError("secret prompt")
        with pytest.raises(errors.BackendUnavailable) as failed:
            await collect(backend, ask("Paris"))
        assert "secret" not in str(failed.value)
        assert backend._engine is not None
        await asyncio.to_thread(backend._engine._manager.join, 0.0, 30)
        assert not backend.healthy()
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask("Paris"))
        await backend.check()
        assert backend.healthy()
        assert text(await collect(backend, ask("Paris"))) == reference(loaded, "Paris")[0]


async def test_a_hung_engine_fails_its_calls_and_counts_as_unhealthy_until_it_returns(
    open_backend: OpenBackend, steps: Steps, clock: Clock
) -> None:
    async with open_backend() as backend:
        steps.gate.clear()
        call = asyncio.create_task(collect(backend, ask("Paris")))
        await entered(steps)
        await backend.check()
        clock.now += 59
        await backend.check()
        assert backend.healthy()
        clock.now += 2
        await backend.check()
        with pytest.raises(errors.BackendUnavailable):
            await call
        assert not backend.healthy()
        await backend.check()
        assert not backend.healthy()
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask("Paris"))
        assert backend._engine is not None
        before = backend._engine.steps
        steps.gate.set()
        while backend._engine.steps == before:
            await asyncio.sleep(0)
        await backend.check()
        assert backend.healthy()
        assert text(await collect(backend, ask("Paris")))


async def test_the_watchdog_rebuilds_without_being_asked(open_backend: OpenBackend, steps: Steps) -> None:
    async with open_backend(watch_interval=0.01) as backend:
        dead = backend._engine
        steps.fault = RuntimeError("boom")
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask("Paris"))
        async with asyncio.timeout(30):
            while backend._engine in (dead, None):
                await asyncio.sleep(0)
        assert text(await collect(backend, ask("Paris")))


async def test_closing_ends_the_calls_under_way(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        pieces = backend.generate(ask("Paris", max_new_tokens=400))
        await anext(pieces)
        await backend.close()
        with pytest.raises(errors.BackendUnavailable):
            async for _ in pieces:
                pass
        assert not backend.healthy()


async def test_a_start_that_is_given_up_while_the_engine_is_made_leaves_no_thread_behind(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()
    made: list[Engine] = []

    def slow(*arguments: Any) -> Engine:
        begun.set()
        gate.wait(30)
        made.append(Engine(*arguments))
        ended.set()
        return made[0]

    monkeypatch.setattr("services.model_server.backends.torch.Engine", slow)
    settings = TorchSettings(memory_bytes=1 << 30, threads=1)
    backend = TorchBackend(load=lambda: loaded, weight_bytes=1, settings=settings)
    starting = asyncio.create_task(backend.start())
    try:
        assert await asyncio.to_thread(begun.wait, 30)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        closing = asyncio.create_task(backend.close())
        gate.set()
        await asyncio.wait_for(closing, 30)
        assert [engine.alive for engine in made] == [False]
    finally:
        gate.set()
        assert await asyncio.to_thread(ended.wait, 30)
        for engine in made:
            engine.stop(30)


async def test_a_model_beyond_the_memory_budget_is_not_loaded() -> None:
    loads: list[int] = []

    def load() -> LoadedModel:
        loads.append(1)
        raise AssertionError

    backend = TorchBackend(load=load, weight_bytes=1 << 30, settings=TorchSettings(memory_bytes=1 << 30, threads=1))
    with pytest.raises(InsufficientMemory):
        await backend.start()
    assert loads == []
    assert not backend.healthy()


async def test_a_cache_beyond_the_memory_budget_is_refused(loaded: LoadedModel) -> None:
    settings = TorchSettings(memory_bytes=64 << 20, threads=1, pages=1 << 20)
    backend = TorchBackend(load=lambda: loaded, weight_bytes=1 << 20, settings=settings)
    with pytest.raises(InsufficientMemory):
        await backend.start()


@pytest.mark.parametrize(
    ("widen", "room", "computed"),
    [(True, True, torch.float32), (False, True, torch.bfloat16), (True, False, torch.bfloat16)],
    ids=["wanted", "not wanted", "no room"],
)
async def test_bfloat16_is_computed_in_float32_where_wanted_and_where_there_is_room(
    tmp_path: Path, widen: bool, room: bool, computed: torch.dtype
) -> None:
    objects = MemoryObjects()
    imported = import_model(
        build_tiny_model(tmp_path / "model"),
        writer=objects,
        prefix="tiny",
        name="test:tiny",
        version="1",
        declared_license="Apache-2.0",
    )
    model = load_model(imported, objects)
    model.network.to(torch.bfloat16)
    roomy = TorchSettings(memory_bytes=1 << 30, threads=1, widen=widen)
    enough = imported.weight_bytes + working_bytes(model.network.config, torch.bfloat16, roomy)
    settings = roomy if room else dataclasses.replace(roomy, memory_bytes=enough)
    backend = TorchBackend(load=lambda: model, weight_bytes=imported.weight_bytes, settings=settings)
    await backend.start()
    try:
        assert {parameter.dtype for parameter in model.network.parameters()} == {computed}
        assert sum(piece.tokens for piece in await collect(backend, ask("Paris", max_new_tokens=8))) > 0
    finally:
        await backend.close()


async def test_prompts_never_reach_the_logs(
    open_backend: OpenBackend, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    async with open_backend() as backend:
        await collect(backend, ask("Paris"))
        steps.fault = RuntimeError("boom")
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask("Paris"))
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask("Paris"))
    assert not [record for record in caplog.records if "ContinuousBatching" in record.name]

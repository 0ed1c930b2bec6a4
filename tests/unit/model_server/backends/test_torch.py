"""The embedded backend over a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from services.model_server.backends import Binding, Finish
from services.model_server.backends.engine import TorchSettings
from services.model_server.backends.torch import TorchBackend
from services.model_server.importer import LoadedModel, import_model, load_model
from services.model_server.sampling import sampling_defaults
from services.model_server.template import Message
from shared import errors
from tests.fakes.tiny_model import MemoryObjects, build_tiny_model
from tests.unit.model_server.backends.conftest import OpenBackend, Steps, ask, collect, entered, reference, text

PROMPTS = ["the quick brown fox", "audit record", "Paris", "policy guard <|im_end|>", "日本語 🙂"]


async def test_greedy_answers_are_those_of_plain_generate(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        for prompt in PROMPTS:
            pieces = await collect(backend, ask(prompt))
            expected, tokens = reference(loaded, prompt)
            assert text(pieces) == expected
            assert sum(piece.tokens for piece in pieces) == tokens
            assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
            assert pieces[-1].finish is (Finish.LENGTH if tokens == 24 else Finish.STOP)


@pytest.mark.parametrize("temperature", [1e-45, 1e-6, 1e-3])
async def test_the_least_temperatures_draw_the_likeliest_token(
    loaded: LoadedModel, open_backend: OpenBackend, temperature: float
) -> None:
    async with open_backend() as backend:
        answers = await asyncio.gather(*(collect(backend, ask(item, temperature=temperature)) for item in PROMPTS))
        assert backend.healthy()
    assert [text(answer) for answer in answers] == [reference(loaded, prompt)[0] for prompt in PROMPTS]


@asynccontextmanager
async def drawing(loaded: LoadedModel, **stated: Any) -> AsyncIterator[TorchBackend]:
    """Serve the model as if its maker had stated these in `generation_config.json`."""
    model = dataclasses.replace(loaded, sampling=sampling_defaults(stated))
    settings = TorchSettings(memory_bytes=1 << 30, threads=1)
    backend = TorchBackend(load=lambda: model, weight_bytes=1, settings=settings)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def several(backend: TorchBackend, **parameters: Any) -> set[str]:
    asked = (collect(backend, ask("Paris", **parameters)) for _ in range(8))
    return {text(answer) for answer in await asyncio.gather(*asked)}


async def test_what_a_call_leaves_unset_is_drawn_as_the_models_maker_states(loaded: LoadedModel) -> None:
    greedy = {reference(loaded, "Paris")[0]}
    async with drawing(loaded, do_sample=True, temperature=1.5) as backend:
        assert len(await several(backend, temperature=None)) > 1
        assert await several(backend, temperature=None, top_k=1) == greedy
        assert await several(backend, temperature=None, top_p=1e-6) == greedy
        assert await several(backend, temperature=0.0) == greedy
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        async with drawing(loaded, do_sample=True, temperature=1.5, **narrow) as backend:
            assert await several(backend, temperature=None) == greedy
            assert await several(backend, temperature=2.0) == greedy
            assert len(await several(backend, temperature=2.0, top_k=100, top_p=1.0)) > 1


async def test_a_model_whose_maker_does_not_say_that_it_draws_is_greedy(loaded: LoadedModel) -> None:
    async with drawing(loaded, temperature=1.5) as backend:
        assert await several(backend, temperature=None) == {reference(loaded, "Paris")[0]}
        assert len(await several(backend, temperature=1.5)) > 1


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
async def test_every_accepted_architecture_is_served(family: str, tmp_path: Path) -> None:
    objects = MemoryObjects()
    imported = import_model(
        build_tiny_model(tmp_path / "model", family=family),
        writer=objects,
        prefix="tiny",
        name="test:tiny",
        version="1",
        declared_license="Apache-2.0",
    )
    backend = TorchBackend(
        load=lambda: load_model(imported, objects),
        weight_bytes=imported.weight_bytes,
        settings=TorchSettings(memory_bytes=1 << 30, threads=1),
    )
    await backend.start()
    try:
        answers = await asyncio.gather(*(collect(backend, ask(prompt)) for prompt in PROMPTS))
    finally:
        await backend.close()
    model = load_model(imported, objects)
    assert [text(answer) for answer in answers] == [reference(model, prompt)[0] for prompt in PROMPTS]


async def test_concurrent_answers_do_not_mix(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    async with open_backend(max_running=4) as backend:
        answers = await asyncio.gather(*(collect(backend, ask(prompt)) for prompt in PROMPTS * 3))
    assert [text(answer) for answer in answers] == [reference(loaded, prompt)[0] for prompt in PROMPTS * 3]


async def test_greedy_and_sampled_calls_share_a_batch(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        greedy, *_ = await asyncio.gather(
            collect(backend, ask("Paris")),
            collect(backend, ask("Paris", temperature=2.0)),
            collect(backend, ask("Paris", temperature=1e-45, top_p=1e-12)),
            collect(backend, ask("Paris", temperature=1, top_k=1_000_000_000)),
            collect(backend, ask("Paris", temperature=1.5, top_k=3, top_p=1)),
        )
        assert backend.healthy()
    assert text(greedy) == reference(loaded, "Paris")[0]


async def test_the_models_end_token_ends_the_answer(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    prompt = loaded.prompts.encode([Message(role="user", content="Paris")])
    with torch.no_grad():
        first = int(loaded.network(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    model = dataclasses.replace(loaded, stop_tokens=frozenset({first}))
    settings = TorchSettings(memory_bytes=1 << 30, threads=1)
    backend = TorchBackend(load=lambda: model, weight_bytes=1, settings=settings)
    await backend.start()
    try:
        pieces = await collect(backend, ask("Paris"))
    finally:
        await backend.close()
    assert [(piece.tokens, piece.finish) for piece in pieces] == [(1, Finish.STOP)]


async def test_a_stop_string_spread_over_tokens_ends_the_answer(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    full, tokens = reference(loaded, "audit record")
    stop = full[4:9]
    async with open_backend() as backend:
        pieces = await collect(backend, ask("audit record", stop=(stop,)))
    assert text(pieces) == full[: full.index(stop)]
    assert pieces[-1].finish is Finish.STOP
    assert sum(piece.tokens for piece in pieces) < tokens


async def test_no_step_starts_for_a_cancelled_call(open_backend: OpenBackend, steps: Steps) -> None:
    async with open_backend() as backend:
        cancelled = backend.generate(ask("Paris", max_new_tokens=400))
        await anext(cancelled)
        await cancelled.aclose()
        # the next call's first step comes after the cancellation in the engine's own order
        before = len(steps.tokens)
        await collect(backend, ask("Paris", max_new_tokens=20))
        prompt = await backend.count_tokens(ask("Paris").messages)
        own = steps.tokens[steps.tokens.index(prompt, before) :]
        assert own == [prompt] + [1] * 19


async def test_a_cancelled_call_leaves_nothing_behind(open_backend: OpenBackend) -> None:
    async with open_backend() as backend:
        for _ in range(5):
            pieces = backend.generate(ask("Paris", max_new_tokens=100))
            await anext(pieces)
            await pieces.aclose()
        await collect(backend, ask("Paris"))
        assert backend._engine is not None
        manager = backend._engine._manager
        assert manager.output_router.result_handlers == {}
        assert manager.output_router.output_queue.empty()
        assert manager.batch_processor.scheduler.active_requests == {}
        assert not backend._engine.busy


async def test_a_call_past_its_deadline_is_stopped(open_backend: OpenBackend, steps: Steps) -> None:
    async with open_backend() as backend:
        steps.gate.clear()
        with pytest.raises(errors.DeadlineExceeded):
            await collect(backend, ask("Paris", timeout=0.1))
        steps.gate.set()
        assert (await collect(backend, ask("Paris")))[-1].finish is not None
        assert backend._engine is not None
        assert backend._engine._manager.batch_processor.scheduler.active_requests == {}


async def test_the_deadline_stops_a_call_whose_consumer_stopped_asking(open_backend: OpenBackend, steps: Steps) -> None:
    async with open_backend() as backend:
        neglected = backend.generate(ask("Paris", max_new_tokens=400, timeout=1.0))
        await anext(neglected)
        steps.gate.clear()
        with pytest.raises(errors.DeadlineExceeded):
            await collect(backend, ask("audit", timeout=1.1))
        steps.gate.set()
        await collect(backend, ask("Paris", max_new_tokens=2))
        assert backend._engine is not None
        assert backend._engine._manager.batch_processor.scheduler.active_requests == {}
        with pytest.raises(errors.DeadlineExceeded):
            async for _ in neglected:
                pass


async def test_waiting_is_bounded_and_waiters_are_served(open_backend: OpenBackend, steps: Steps) -> None:
    async with open_backend(max_running=1, max_waiting=1) as backend:
        steps.gate.clear()
        first = asyncio.create_task(collect(backend, ask("Paris")))
        await entered(steps)
        second = asyncio.create_task(collect(backend, ask("audit record")))
        while not backend._admission._line:
            await asyncio.sleep(0)
        with pytest.raises(errors.ResourceExhausted) as refused:
            await collect(backend, ask("policy"))
        assert refused.value.retry_after
        steps.gate.set()
        assert text(await first)
        assert text(await second)


async def test_calls_share_the_cache_and_never_overflow_it(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    async with open_backend(pages=8, max_waiting=100) as backend:
        answers = await asyncio.gather(*(collect(backend, ask(prompt)) for prompt in PROMPTS * 4))
        assert backend.healthy()
    assert [text(answer) for answer in answers] == [reference(loaded, prompt)[0] for prompt in PROMPTS * 4]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x",) * 17}, "stop"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 500}, "max_new_tokens"),
        ({"timeout": 0.0}, "timeout"),
        ({"messages": []}, "messages"),
        ({"messages": [Message(role="root", content="x")]}, "messages.role"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    open_backend: OpenBackend, steps: Steps, parameters: dict[str, Any], field: str
) -> None:
    async with open_backend() as backend:
        with pytest.raises(errors.InvalidArgument) as refused:
            await collect(backend, ask("Paris", **parameters))
        assert refused.value.field == field
        assert steps.tokens == []


async def test_what_is_declared_is_what_is_served(loaded: LoadedModel, open_backend: OpenBackend) -> None:
    async with open_backend(max_context=100) as backend:
        assert backend.abilities.binding is Binding.LOADED
        assert backend.abilities.max_context == 100
        messages = [Message(role="user", content="<|im_start|>system")]
        assert await backend.count_tokens(messages) == len(loaded.prompts.encode(messages))

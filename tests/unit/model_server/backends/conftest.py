"""A tiny loaded model and the backend over it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import pytest
import torch

from services.model_server.backends import GenerationRequest, Piece
from services.model_server.backends.engine import TorchSettings
from services.model_server.backends.torch import TorchBackend
from services.model_server.importer import LoadedModel, import_model, load_model
from services.model_server.template import Message
from services.model_server.vocabulary import Detokenizer
from tests.fakes.tiny_model import MemoryObjects, build_tiny_model
from tests.unit.model_server.backends.remotes import KINDS

OpenBackend = Callable[..., AbstractAsyncContextManager[TorchBackend]]


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Steps:
    """Watches the model's steps, and can hold them up or make them fail."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.tokens: list[int] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self._hook = network.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.tokens.append(kwargs["input_ids"].shape[1])
        self.entered.set()
        assert self.gate.wait(60)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault

    def close(self) -> None:
        self.gate.set()
        self._hook.remove()


def ask(content: str, **parameters: Any) -> GenerationRequest:
    messages = [Message(role="user", content=content)]
    return GenerationRequest(
        **({"messages": messages, "max_new_tokens": 24, "timeout": 60.0, "temperature": 0.0} | parameters)
    )


async def collect(backend: TorchBackend, request: GenerationRequest) -> list[Piece]:
    async with aclosing(backend.generate(request)) as pieces:
        return [piece async for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def reference(loaded: LoadedModel, content: str, tokens: int = 24) -> tuple[str, int]:
    """What `generate` of transformers answers by itself, and in how many tokens."""
    prompt = loaded.prompts.encode([Message(role="user", content=content)])
    with torch.no_grad():
        output = loaded.network.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    answer = output[0].tolist()[len(prompt) :]
    decoder = Detokenizer(loaded.vocabulary)
    return decoder.feed(answer) + decoder.finish(), len(answer)


async def entered(steps: Steps) -> None:
    await asyncio.to_thread(steps.entered.wait, 30)


@pytest.fixture(scope="package")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    objects = MemoryObjects()
    imported = import_model(
        build_tiny_model(tmp_path_factory.mktemp("tiny") / "model"),
        writer=objects,
        prefix="tiny",
        name="test:tiny",
        version="1",
        declared_license="Apache-2.0",
    )
    return load_model(imported, objects)


@pytest.fixture
def steps(loaded: LoadedModel) -> Iterator[Steps]:
    watched = Steps(loaded.network)
    yield watched
    watched.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_backend(loaded: LoadedModel, clock: Clock, steps: Steps) -> OpenBackend:
    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[TorchBackend]:
        backend = TorchBackend(
            load=lambda: loaded,
            weight_bytes=1_000_000,
            settings=TorchSettings(
                **({"memory_bytes": 1 << 30, "threads": 1, "watch_interval": 3600.0, "page_tokens": 16} | settings)
            ),
            clock=clock,
        )
        await backend.start()
        try:
            yield backend
        finally:
            steps.gate.set()
            await backend.close()

    return opened


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)

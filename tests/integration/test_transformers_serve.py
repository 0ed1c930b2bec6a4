"""The OpenAI backend against a server that nobody here wrote: `transformers serve`, on a tiny model, offline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from services.model_server.backends import Finish, GenerationRequest, Piece
from services.model_server.backends.openai import OpenAIBackend
from services.model_server.backends.remote import RemoteSettings
from services.model_server.template import Message
from shared import errors
from tests.fakes.tiny_model import build_tiny_model
from tests.suite import free_ports

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("processes"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

# That server lists a model of the default branch without the branch and answers with it: only another has one name.
REVISION = "r1"
MODEL = f"bastide/tiny@{REVISION}"
COMMIT = "0123456789abcdef" * 2 + "01234567"
# More than that server generates in any test's time, for its model never ends an answer by itself.
ENDLESS = 200_000
QUESTION = "What is the capital of France?"


class Server:
    """`transformers serve` in a process of its own, pinned to `MODEL`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self.model: Path
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        repository = self._folder / "hub" / "models--bastide--tiny"
        self.model = build_tiny_model(repository / "snapshots" / COMMIT)
        # No end token, so that an answer ends at its limit alone.
        (self.model / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 2.0}))
        (repository / "refs").mkdir()
        (repository / "refs" / REVISION).write_text(COMMIT)
        environ = {
            **os.environ,
            "HF_HOME": str(self._folder),
            "HF_HUB_CACHE": str(self._folder / "hub"),
            "HF_HUB_OFFLINE": "1",
        }
        with (self._folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "transformers.cli.transformers", "serve", MODEL),
                *("--device", "cpu", "--host", "127.0.0.1", "--port", str(self._port)),
                env=environ,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(errors.BackendUnavailable):
                    async with self.backend():
                        return
                assert self.process.returncode is None, (self._folder / "log").read_text()[-2000:]
                await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def backend(self, **settings: Any) -> AsyncIterator[OpenAIBackend]:
        usual = {"url": self.url, "model": MODEL, "max_context": ENDLESS}
        backend = OpenAIBackend(RemoteSettings(**(usual | settings)))
        try:
            await backend.start()
            yield backend
        finally:
            await backend.close()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    server = Server(tmp_path_factory.mktemp("serve"))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def ask(**parameters: Any) -> GenerationRequest:
    messages = (Message(role="user", content=QUESTION),)
    usual = {"messages": messages, "max_new_tokens": 40, "timeout": 30.0, "temperature": 0.0}
    return GenerationRequest(**(usual | parameters))


async def collect(backend: OpenAIBackend, request: GenerationRequest) -> list[Piece]:
    async with aclosing(backend.generate(request)) as pieces:
        return [piece async for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_an_answer_comes_in_pieces_with_its_usage_at_the_end(server: Server) -> None:
    async with server.backend() as backend:
        assert backend.healthy()
        pieces = await collect(backend, ask())
    assert len([piece for piece in pieces if piece.text]) > 1
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + [Finish.LENGTH]
    assert [piece.tokens for piece in pieces] == [0] * (len(pieces) - 1) + [40]
    messages = [{"role": "user", "content": QUESTION}]
    rendered = AutoTokenizer.from_pretrained(server.model).apply_chat_template(messages, add_generation_prompt=True)
    assert pieces[-1].prompt_tokens == len(rendered["input_ids"])


@pytest.mark.parametrize("whole", [False, True])
async def test_a_temperature_of_0_is_greedy_and_unset_it_is_the_servers(server: Server, whole: bool) -> None:
    async with server.backend() as backend:
        short = ask(whole=whole, max_new_tokens=8)
        greedy = [text(await collect(backend, replace(short, top_p=top_p))) for top_p in (None, 0.9)]
        drawn = [text(await collect(backend, replace(short, temperature=None))) for _ in range(2)]
    assert len(set(greedy)) == 1
    assert len({*greedy, *drawn}) == 3


async def test_an_answer_fetched_whole_is_the_one_that_is_streamed(server: Server) -> None:
    async with server.backend() as backend:
        streamed = await collect(backend, ask())
        whole = await collect(backend, ask(whole=True))
    # A character that the token limit cuts is dropped from a stream and marked in a whole answer.
    assert text(whole).rstrip("\N{REPLACEMENT CHARACTER}") == text(streamed)
    assert (whole[-1].tokens, whole[-1].finish) == (40, Finish.LENGTH)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_stop_string_ends_the_answer_and_is_not_in_it(server: Server, whole: bool) -> None:
    async with server.backend() as backend:
        full = text(await collect(backend, ask()))
        stop = re.findall("[a-z]{3}", full)[-1]
        pieces = await collect(backend, ask(stop=(stop,), whole=whole))
    assert text(pieces) == full.partition(stop)[0]
    assert pieces[-1].finish is Finish.STOP
    assert 0 < pieces[-1].tokens <= 40


async def test_a_closed_answer_frees_the_server_which_does_one_at_a_time(server: Server) -> None:
    async with server.backend() as backend:
        async with aclosing(backend.generate(ask(max_new_tokens=ENDLESS, timeout=300.0))) as pieces:
            assert (await anext(pieces)).finish is None
        assert (await collect(backend, ask(max_new_tokens=4)))[-1].finish is Finish.LENGTH


async def test_the_deadline_of_an_answer_ends_it_on_the_server_too(server: Server) -> None:
    async with server.backend() as backend:
        with pytest.raises(errors.DeadlineExceeded):
            await collect(backend, ask(max_new_tokens=ENDLESS, timeout=1.0))
        assert (await collect(backend, ask(max_new_tokens=4)))[-1].finish is Finish.LENGTH


async def test_a_server_of_another_model_is_not_healthy(server: Server) -> None:
    with pytest.raises(errors.BackendUnavailable):
        async with server.backend(model="bastide/other"):
            pass
    with pytest.raises(errors.BackendUnavailable):
        async with server.backend(model="bastide/tiny"):
            pass


# Last, for it leaves no server.
async def test_a_server_killed_in_mid_answer_fails_the_call_and_is_not_healthy(server: Server) -> None:
    async with server.backend() as backend:
        async with aclosing(backend.generate(ask(max_new_tokens=ENDLESS, timeout=300.0))) as pieces:
            await anext(pieces)
            await server.stop()
            with pytest.raises(errors.BackendUnavailable):
                _ = [piece async for piece in pieces]
        await backend.check()
        assert not backend.healthy()

"""Remote backends of every kind, before a server double that does what a test asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from services.model_server.backends import GenerationRequest, Piece
from services.model_server.backends.openai import OpenAIBackend
from services.model_server.backends.remote import RemoteBackend, RemoteSettings
from services.model_server.backends.tgi import TgiBackend
from services.model_server.template import Message
from tests.fakes.remote_model import MODEL, RemoteModel

# Backend, path of the API, and whether answers are fetched whole.
KINDS = {
    "openai": (OpenAIBackend, "/v1", False),
    "openai whole": (OpenAIBackend, "/v1", True),
    "tgi": (TgiBackend, "", False),
}


STREAMING = [kind for kind, (_, _, whole) in KINDS.items() if not whole]


def build(kind: str, url: str, **settings: Any) -> RemoteBackend:
    backend, path, _ = KINDS[kind]
    return backend(RemoteSettings(**({"url": url + path, "model": MODEL, "max_context": 100} | settings)))


@asynccontextmanager
async def serving(kind: str, server: RemoteModel, **settings: Any) -> AsyncIterator[RemoteBackend]:
    server.tgi = kind == "tgi"
    async with server.running():
        backend = build(kind, server.url, **settings)
        await backend.start()
        try:
            yield backend
        finally:
            await backend.close()


def ask(kind: str, **parameters: Any) -> GenerationRequest:
    messages = [Message(role="user", content="What is the capital of France?")]
    usual = {"messages": messages, "max_new_tokens": 20, "timeout": 30.0, "temperature": 0.0, "whole": KINDS[kind][2]}
    return GenerationRequest(**(usual | parameters))


async def collect(backend: RemoteBackend, request: GenerationRequest) -> list[Piece]:
    async with aclosing(backend.generate(request)) as pieces:
        return [piece async for piece in pieces]

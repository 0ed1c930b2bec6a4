"""A model server double: speaks the chat completions of vLLM and TGI, and every fault a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "tiny-remote"
TEXT = ("Paris ", "is the ", "capital of ", "France.")


def chunk(content: object = None, *, finish: object = None, model: object = MODEL, **more: Any) -> dict[str, Any]:
    """Return one event of a chat completions stream."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": finish}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        "system_fingerprint": "test",
        "choices": choices,
    } | more


def usage(tokens: object = 7, *, prompt: object = 9) -> dict[str, Any]:
    """Return the last event, which states the usage."""
    return chunk(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": 16})


def whole(events: Iterable[Any]) -> dict[str, Any]:
    """Return what the events of a stream say, sense or nonsense, as the one body that answers without `stream`."""
    body: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    contents, finish, odd = [], None, None
    for event in events:
        if not isinstance(event, dict):
            continue
        if "choices" not in event:
            return event
        body["usage"] = event.get("usage")
        body["padding"] = body.get("padding", "") + event.get("padding", "")
        if event["model"] != MODEL:
            body["model"] = event["model"]
        if not isinstance(event["choices"], list) or len(event["choices"]) > 1:
            odd = event["choices"]
            continue
        for choice in event["choices"]:
            contents.append(choice["delta"]["content"])
            finish = choice["finish_reason"] or finish
    content = "".join(contents) if all(isinstance(item, str) for item in contents) else contents
    message = {"role": "assistant", "content": content}
    return body | {"choices": odd or [{"index": 0, "message": message, "finish_reason": finish}]}


GOOD: tuple[object, ...] = (*map(chunk, TEXT), chunk("", finish="stop"), usage(), "[DONE]")
DRAWN: tuple[object, ...] = (chunk("Perhaps Lyon."), chunk("", finish="stop"), usage(), "[DONE]")


def tgi_draws(sent: dict[str, Any]) -> bool:
    """Say whether TGI draws tokens for the request `sent`: only a temperature of 0 without a top_p is greedy.

    After `ChatRequest::try_into_generate` (router/src/lib.rs) and `NextTokenChooser` (server/.../utils/tokens.py).
    """
    return sent.get("temperature") != 0 or sent.get("top_p") is not None


@dataclass
class RemoteModel:
    """What the server sends, and what it was sent.

    An event is a JSON value or raw text; `None` breaks the connection; an `asyncio.Event` holds the stream up.
    With `tgi` it reads parameters as TGI does: `events` are the greedy answer, and where it draws it says `DRAWN`.
    """

    tgi: bool = False
    events: tuple[object, ...] = GOOD
    status: int = 200
    location: str | None = None
    compressed: bool = False
    served: str = MODEL
    catalogue: str | None = None  # raw text in place of the models that it serves
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[RemoteModel]:
        """Serve on a free port of the loopback for the length of the block."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/info", self._info)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if self.catalogue is not None:
            return web.json_response(text=self.catalogue)
        return web.json_response(
            {"object": "list", "data": [{"id": self.served, "object": "model", "created": 1, "owned_by": "x"}]}
        )

    async def _info(self, request: web.Request) -> web.Response:
        if self.catalogue is not None:
            return web.json_response(text=self.catalogue)
        return web.json_response({"model_id": self.served})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 200:
            headers = {"Location": self.location} if self.location else {}
            return web.json_response({"error": {"message": "secret"}}, status=self.status, headers=headers)
        sent = self.requests[-1]
        if self.tgi and not 0 < sent.get("top_p", 0.5) < 1:
            return web.json_response({"error": "`top_p` must be > 0.0 and < 1.0"}, status=422)
        if not sent.get("stream"):
            return await self._whole(request)
        response = self._encoded(web.StreamResponse(headers={"Content-Type": "text/event-stream"}))
        try:
            await response.prepare(request)
            for event in DRAWN if self.tgi and tgi_draws(sent) else self.events:
                if event is None:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if isinstance(event, asyncio.Event):
                    await event.wait()
                    continue
                data = event if isinstance(event, str) else json.dumps(event)
                await response.write(f"data: {data}\n\n".encode())
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response

    async def _whole(self, request: web.Request) -> web.StreamResponse:
        try:
            for event in self.events:
                if event is None:
                    assert request.transport is not None
                    request.transport.abort()
                elif isinstance(event, asyncio.Event):
                    await event.wait()
                elif isinstance(event, str) and event != "[DONE]":
                    return self._encoded(web.Response(text=event, content_type="application/json"))
            return self._encoded(web.json_response(whole(self.events)))
        except asyncio.CancelledError:
            self.disconnected.set()
            raise

    def _encoded(self, response: web.StreamResponse) -> web.StreamResponse:
        if self.compressed:
            response.enable_compression(web.ContentCoding.gzip)
        return response

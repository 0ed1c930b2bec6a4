"""Backend over any OpenAI-compatible server (vLLM, SGLang, `transformers serve`), by the official client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import openai

from services.model_server.backends import GenerationRequest
from services.model_server.backends.remote import Delta, RemoteBackend, RemoteSettings


class OpenAIBackend(RemoteBackend):
    """`POST /chat/completions`, as a stream unless the answer is wanted whole.

    `url` is the API's root, which usually ends in `/v1`.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        """Prepare the client; it never retries, for a retry would generate twice."""
        super().__init__(settings)
        self._client = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=settings.api_key or "none",  # the client wants one; `_http_client` removes it
            max_retries=0,
            http_client=self._http_client(),
        )

    @contextlib.asynccontextmanager
    async def _open(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        parameters: dict[str, object] = {
            "model": self._settings.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "presence_penalty": request.presence_penalty or None,
            "frequency_penalty": request.frequency_penalty or None,
            "stop": list(request.stop) or None,
        }
        body = {name: value for name, value in parameters.items() if value is not None}
        # Plain JSON: `_delta` and `RemoteBackend` check every field that counts, and the client's models of whole
        # chunks would cost more than everything else that happens to a token.
        if request.whole:
            answer = await self._client.post("/chat/completions", body=body, cast_to=object)
            yield _one(_delta(answer, "message"))
            return
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        stream = await self._client.post(
            "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
        )
        async with stream, contextlib.aclosing(_deltas(stream)) as deltas:
            yield deltas

    async def _served_models(self) -> Sequence[str]:
        return [model.id for model in (await self._client.models.list()).data]

    def _status(self, fault: Exception) -> int | None:
        return fault.status_code if isinstance(fault, openai.APIStatusError) else None

    async def _disconnect(self) -> None:
        await self._client.close()


async def _deltas(stream: openai.AsyncStream[object]) -> AsyncGenerator[Delta, None]:
    async for chunk in stream:
        yield _delta(chunk, "delta")


async def _one(delta: Delta) -> AsyncGenerator[Delta, None]:
    yield delta


def _delta(chunk: Any, content: str) -> Delta:
    """Return one `chat.completion.chunk`, or a `chat.completion`, whose text lies under another name.

    Raises some `Exception` for anything else.
    """
    choices, usage = chunk.get("choices"), chunk.get("usage")
    if len(choices) > 1:
        raise ValueError
    choice = choices[0] if choices else {content: {}}
    return Delta(
        text=choice[content].get("content"),
        finish=choice.get("finish_reason"),
        completion_tokens=None if usage is None else usage["completion_tokens"],
        prompt_tokens=None if usage is None else usage.get("prompt_tokens"),
        model=chunk["model"],
    )

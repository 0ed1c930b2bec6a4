"""Backend over any OpenAI-compatible server (vLLM, SGLang, `transformers serve`), by the official client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import cast

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from services.model_server.backends import GenerationRequest
from services.model_server.backends.remote import Delta, RemoteBackend, RemoteSettings


class OpenAIBackend(RemoteBackend):
    """`POST /chat/completions` as a stream. `url` is the API's root, which usually ends in `/v1`."""

    client_faults = (openai.OpenAIError,)

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
        stream = await self._client.chat.completions.create(
            model=self._settings.model,
            messages=cast(
                "list[ChatCompletionMessageParam]",
                [{"role": message.role, "content": message.content} for message in request.messages],
            ),
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=openai.omit if request.seed is None else request.seed,
            presence_penalty=request.presence_penalty or openai.omit,
            frequency_penalty=request.frequency_penalty or openai.omit,
            stop=list(request.stop) or openai.omit,
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream, contextlib.aclosing(_deltas(stream)) as deltas:
            yield deltas

    async def _served_models(self) -> Sequence[str]:
        return [model.id for model in (await self._client.models.list()).data]

    def _status(self, fault: Exception) -> int | None:
        return fault.status_code if isinstance(fault, openai.APIStatusError) else None

    async def _disconnect(self) -> None:
        await self._client.close()


async def _deltas(stream: openai.AsyncStream[ChatCompletionChunk]) -> AsyncGenerator[Delta, None]:
    async for chunk in stream:
        if len(chunk.choices) > 1:
            raise ValueError
        choice = chunk.choices[0] if chunk.choices else None
        yield Delta(
            text=choice.delta.content if choice else None,
            finish=choice.finish_reason if choice else None,
            completion_tokens=chunk.usage.completion_tokens if chunk.usage else None,
            model=chunk.model,
        )

"""Backend over Text Generation Inference, by Hugging Face's client.

TGI is in maintenance; it is served because deployments of it stand. Its Messages API applies the model's template.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence

import httpx2
from huggingface_hub import AsyncInferenceClient, ChatCompletionInputStreamOptions, ChatCompletionStreamOutput
from huggingface_hub.errors import HfHubHTTPError

from services.model_server.backends import GenerationRequest
from services.model_server.backends.remote import Delta, RemoteBackend


class TgiBackend(RemoteBackend):
    """`POST /v1/chat/completions` of a TGI server. `url` is the server's root; `model` what `/info` names.

    No penalties: TGI makes a repetition penalty of what is called a presence penalty there.
    """

    @contextlib.asynccontextmanager
    async def _open(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        async with self._client() as client:
            stream = await client.chat_completion(
                [{"role": message.role, "content": message.content} for message in request.messages],
                max_tokens=request.max_new_tokens,
                # TGI is greedy only where it is told 0 and no top_p at all; a top_p of 1 it refuses
                temperature=request.temperature,
                top_p=None if request.temperature == 0 or request.top_p == 1 else request.top_p,
                seed=request.seed,
                stop=list(request.stop) or None,
                stream=True,
                stream_options=ChatCompletionInputStreamOptions(include_usage=True),
            )
            async with contextlib.aclosing(_deltas(stream)) as deltas:
                yield deltas

    async def _served_models(self) -> Sequence[str]:
        async with self._client() as client:
            return [(await client.get_endpoint_info())["model_id"]]

    def _client(self) -> AsyncInferenceClient:
        """Return a client for one call: each keeps its streams open until it is closed."""
        return _Client(self._http_client(), self._settings.url)

    def _status(self, fault: Exception) -> int | None:
        for error in (fault, fault.__context__):  # on a 422 the client trips over the unread body of the refusal
            if isinstance(error, HfHubHTTPError):
                return error.response.status_code
        return None


class _Client(AsyncInferenceClient):
    """Hugging Face's client over a connection of ours, for its own follows redirects and environment proxies."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        super().__init__(url, provider="hf-inference", token="none")  # noqa: S106 - keeps a stored Hub token at home
        self._http = http

    async def _get_async_client(self) -> httpx2.AsyncClient:
        if self._async_client is None:
            self._async_client = await self.exit_stack.enter_async_context(self._http)
        return self._async_client


async def _deltas(stream: AsyncIterable[ChatCompletionStreamOutput]) -> AsyncGenerator[Delta, None]:
    async for chunk in stream:
        if len(chunk.choices) > 1:
            raise ValueError
        choice = chunk.choices[0] if chunk.choices else None
        yield Delta(
            text=choice.delta.content if choice else None,
            finish=choice.finish_reason if choice else None,
            completion_tokens=chunk.usage.completion_tokens if chunk.usage else None,
            prompt_tokens=chunk.usage.prompt_tokens if chunk.usage else None,
            model=chunk.model,
        )

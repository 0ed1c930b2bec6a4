"""Metrics and span attributes of generation, named as OpenTelemetry's semantic conventions for generative AI do."""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from prometheus_client import Histogram

from bastide.model_server.v1 import inference_pb2
from bastide.types.v1 import content_pb2
from shared.rpc.call import Call

_MODEL = "gen_ai_request_model"
TIME_TO_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From the arrival of the call to the backend's first text, guard and record included.",
    [_MODEL],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "From the first text to the end, over the tokens after the first.",
    [_MODEL],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
TOKEN_USAGE = Histogram(
    "gen_ai_client_token_usage",
    "Tokens of one call by `gen_ai_token_type`, `input` or `output`.",
    [_MODEL, "gen_ai_token_type"],
    buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576),
)


class GenerationTelemetry:
    """What one call is measured by. Never holds content."""

    def __init__(self, call: Call, wanted: inference_pb2.InferenceCall, *, version: str, max_tokens: int) -> None:
        """Describe the call's span. `wanted.model` MUST be a model that is released: it names time series."""
        self._started = call.started
        self._model = wanted.model
        self._first: float | None = None
        self._span = trace.get_current_span()
        self._span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "bastide",
                "gen_ai.request.model": wanted.model,
                "gen_ai.response.model": version,
                "gen_ai.request.max_tokens": max_tokens,
            }
        )
        for name in ("temperature", "top_p", "top_k", "seed"):
            if wanted.parameters.HasField(name):
                self._span.set_attribute(f"gen_ai.request.{name}", getattr(wanted.parameters, name))

    def text(self) -> None:
        """Take note that the backend gave text."""
        if self._first is None:
            self._first = asyncio.get_running_loop().time()
            TIME_TO_FIRST_TOKEN.labels(self._model).observe(self._first - self._started)

    def end(self, usage: content_pb2.Usage, finish: content_pb2.FinishReason.ValueType) -> None:
        """Take note of the end, however the call ended."""
        reason = content_pb2.FinishReason.Name(finish).removeprefix("FINISH_REASON_").lower()
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.response.finish_reasons": [reason],
            }
        )
        TOKEN_USAGE.labels(self._model, "input").observe(usage.prompt_tokens)
        TOKEN_USAGE.labels(self._model, "output").observe(usage.completion_tokens)
        if self._first is not None and usage.completion_tokens > 1:
            taken = asyncio.get_running_loop().time() - self._first
            TIME_PER_OUTPUT_TOKEN.labels(self._model).observe(taken / (usage.completion_tokens - 1))

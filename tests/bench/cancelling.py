"""How long a backend goes on after its caller has gone."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from pathlib import Path
from typing import Any

from bastide.model_server.v1 import inference_pb2
from tests.bench.generation import MODEL, PROMPTS
from tests.bench.measure import Series, at_most, compare, show
from tests.bench.stage import BACKEND, Stage, call

CALLS = 5
SAMPLE_SECONDS = 0.001
# Longer than any pause of a thread that still generates.
QUIET_SECONDS = 0.3


async def cancelling(stage: Stage, runs: int, *, held: Any) -> None:
    """`held` is the canned backend's process that says when its connection is closed."""
    metadata = await stage.suite.backend_token(BACKEND)
    remote = Series("cancel → the remote backend's connection is closed", "ms")
    embedded = Series("cancel → the embedded engine's thread rests", "ms")
    step = Series("  one step of the engine, for comparison", "ms")
    for _ in range(runs):
        remote.values.append(statistics.median([await _remote(stage, metadata, held) for _ in range(CALLS)]))
        found = [await _embedded(stage, metadata) for _ in range(CALLS)]
        embedded.values.append(statistics.median(seconds for seconds, _ in found))
        step.values.append(statistics.median(pause for _, pause in found))
    steps = compare("cancel → rest / one step", embedded, step)
    show("Cancelling a stream", [remote, embedded, step, steps], [at_most(steps, 2)])


async def _remote(stage: Stage, metadata: Any, held: Any) -> float:
    """Return milliseconds until the backend saw its connection closed."""
    stream = _stream(stage, metadata, "held")
    await anext(event async for event in stream if event.HasField("chunk"))
    cancelled = time.monotonic()
    stream.cancel()
    closed = await asyncio.wait_for(asyncio.to_thread(held.stdout.readline), 30)
    return (float(closed) - cancelled) * 1000


async def _embedded(stage: Stage, metadata: Any) -> tuple[float, float]:
    """Return milliseconds until the thread that generates was last seen running, and the median time of a step."""
    tasks = Path(f"/proc/{stage.suite.processes['model-server'].pid}/task")
    before = _processor_ticks(tasks)
    stream = _stream(stage, metadata, MODEL)
    came: list[float] = []
    async for event in stream:
        if event.HasField("chunk"):
            came.append(time.perf_counter())
        if len(came) == 12:
            break
    spent = {task: ticks - before.get(task, 0) for task, ticks in _processor_ticks(tasks).items()}
    engine = max(spent, key=spent.__getitem__)
    pause = statistics.median(after - earlier for earlier, after in itertools.pairwise(came))
    # A chunk comes at the end of a step; callers go at any time.
    await asyncio.sleep(random.random() * pause)
    cancelled = seen = time.perf_counter()
    stream.cancel()
    while (now := time.perf_counter()) - seen < QUIET_SECONDS:
        if _status(tasks / engine)[0] == "R":
            seen = now
        await asyncio.sleep(SAMPLE_SECONDS)
    return (seen - cancelled) * 1000, pause * 1000


def _stream(stage: Stage, metadata: Any, model: str) -> Any:
    request = inference_pb2.GenerateStreamRequest(call=call(model, PROMPTS[0], 400))
    return stage.inference(BACKEND).GenerateStream(request, metadata=metadata, timeout=120)


def _processor_ticks(tasks: Path) -> dict[str, int]:
    """Return the processor time that each thread has used."""
    found = {task.name: _status(task) for task in tasks.iterdir()}
    return {name: int(fields[11]) + int(fields[12]) for name, fields in found.items()}


def _status(task: Path) -> list[str]:
    """Return the fields of proc(5)'s `stat` from the third, the thread's state, on."""
    return (task / "stat").read_text().rpartition(")")[2].split()

"""The embedded backend alone, in a process of its own: no guard, no record, no gRPC.

Reads lines `{"prompts": [...], "tokens": ...}`, generates all at once, and prints what a `Burst` holds for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time

from services.model_server.backends import GenerationRequest
from services.model_server.backends.engine import TorchSettings
from services.model_server.backends.torch import TorchBackend
from services.model_server.config import TorchSettings as Defaults
from services.model_server.importer import import_model, load_model
from services.model_server.sources import packaged_model
from services.model_server.template import Message
from tests.bench.bursts import Answer, burst
from tests.fakes.tiny_model import MemoryObjects


async def main(distribution: str) -> None:
    package, objects, served = packaged_model(distribution), MemoryObjects(), Defaults()
    imported = import_model(
        package.path,
        writer=objects,
        prefix="m",
        name=package.name,
        version=package.version,
        declared_license="Apache-2.0",
    )
    backend = TorchBackend(
        load=lambda: load_model(imported, objects),
        weight_bytes=imported.weight_bytes,
        # As the model server makes it.
        settings=TorchSettings(
            memory_bytes=served.memory_bytes,
            threads=served.threads,
            max_running=served.max_streams,
            max_waiting=served.max_waiting,
        ),
    )
    await backend.start()
    objects.objects.clear()

    async def generate(prompt: str, tokens: int) -> Answer:
        request = GenerationRequest(
            messages=[Message(role="user", content=prompt)], max_new_tokens=tokens, timeout=120.0, temperature=0.0
        )
        first, generated = None, 0
        async with contextlib.aclosing(backend.generate(request)) as pieces:
            async for piece in pieces:
                first = first or (time.perf_counter() if piece.text else None)
                generated += piece.tokens
        assert first is not None
        return Answer(first=first, tokens=generated)

    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            found = await burst(generate, question["prompts"], question["tokens"])
            sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
            sys.stdout.flush()
    finally:
        await backend.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

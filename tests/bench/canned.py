"""A canned OpenAI-compatible backend in a process of its own: instant answers of 40 chunks."""

from __future__ import annotations

import asyncio
import sys

from tests.fakes.remote_model import RemoteModel, chunk, usage

CHUNKS = 40
EVENTS = (*(chunk("word ") for _ in range(CHUNKS)), chunk("", finish="stop"), usage(CHUNKS), "[DONE]")


async def main() -> None:
    async with RemoteModel(events=EVENTS).running() as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

"""A canned OpenAI-compatible backend in a process of its own: instant answers of 40 chunks.

With `--held` an answer stops after 8 chunks and stays open; when its connection is closed, the time is printed.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tests.fakes.remote_model import RemoteModel, chunk, usage

CHUNKS = 40
EVENTS = (*(chunk("word ") for _ in range(CHUNKS)), chunk("", finish="stop"), usage(CHUNKS), "[DONE]")
HELD = (*EVENTS[:8], asyncio.Event())


async def main(*, held: bool) -> None:
    async with RemoteModel(events=HELD if held else EVENTS).running() as server:
        say(server.url)
        while True:
            await server.disconnected.wait()
            server.disconnected.clear()
            if held:
                say(str(time.monotonic()))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(held="--held" in sys.argv))

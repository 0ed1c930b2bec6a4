"""A backend whose answers a test writes, piece by piece, with every fault that a backend can have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from services.model_server.backends import Abilities, Binding, Finish, GenerationRequest, Piece
from services.model_server.template import Message

# A piece of text; an event to wait for; an exception to raise; or nothing more, without a reason.
Part = str | asyncio.Event | Exception | None
GOOD: tuple[Part, ...] = ("The first part is here. ", "The second part ", "ends it.")


class ScriptedBackend:
    """Answers every request with what `script` says for it, one token a piece, and remembers what it saw."""

    def __init__(self) -> None:
        self.script: Callable[[GenerationRequest], Sequence[Part]] = lambda _: GOOD
        self.asked: list[GenerationRequest] = []
        self.steps = 0
        self.running = 0
        self.up = True

    def says(self, *parts: Part) -> None:
        """Answer with `parts` from now on."""
        self.script = lambda _: parts

    @property
    def abilities(self) -> Abilities:
        return Abilities(binding=Binding.LOADED, max_context=65536, exact_count=True)

    async def start(self) -> None:
        """Nothing is loaded."""

    async def close(self) -> None:
        """Nothing is kept."""

    def healthy(self) -> bool:
        return self.up

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        self.running += 1
        try:
            for part in self.script(request):
                self.steps += 1
                match part:
                    case str():
                        yield Piece(text=part, tokens=1)
                        await asyncio.sleep(0)
                    case asyncio.Event():
                        await part.wait()
                    case Exception():
                        raise part
                    case None:
                        return
            yield Piece(text="", tokens=0, finish=Finish.STOP)
        finally:
            self.running -= 1

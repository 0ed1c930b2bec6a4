"""Several answers generated at once, timed alike wherever they come from."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """When the first text of an answer came (`time.perf_counter`), and how many tokens it has."""

    first: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Burst:
    """The median of the seconds to the first text, and all tokens a second from the start to the last answer's end."""

    first_seconds: float
    rate: float


async def burst(generate: Callable[[str, int], Awaitable[Answer]], prompts: Sequence[str], tokens: int) -> Burst:
    """Generate `tokens` tokens for each of `prompts`, all at once."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(generate(prompt, tokens) for prompt in prompts))
    seconds = time.perf_counter() - started
    return Burst(
        first_seconds=statistics.median(answer.first for answer in answers) - started,
        rate=sum(answer.tokens for answer in answers) / seconds,
    )

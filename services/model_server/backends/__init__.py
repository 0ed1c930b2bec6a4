"""What generates text: one interface, several engines.

A backend takes a conversation and gives text. It decides nothing about who may ask or what may leave.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.model_server.sampling import MAX_TEMPERATURE, MAX_TOP_K
from services.model_server.stops import MAX_STOP_LENGTH, MAX_STOPS
from services.model_server.template import Message
from shared import errors

MAX_TIMEOUT = 3600.0


class Binding(enum.Enum):
    """How surely an answer's text comes from the stated weights."""

    LOADED = "loaded"  # this process decrypted and loaded those bytes
    DECLARED = "declared"  # a remote server says so


class Finish(enum.Enum):
    """Why the text ended."""

    STOP = "stop"  # the model ended its answer, or a stop string came
    LENGTH = "length"  # `max_new_tokens` were generated


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a backend honours. A parameter beyond it is refused, never ignored.

    `max_context` bounds prompt and new tokens together. `exact_count` says that `count_tokens` counts with the
    model's own tokenizer; otherwise it gives an upper bound.
    """

    binding: Binding
    max_context: int
    exact_count: bool
    max_n: int = 1
    max_stops: int = MAX_STOPS
    top_k: bool = False
    seed: bool = False
    penalties: bool = False


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One conversation to continue.

    `temperature` 0 is greedy decoding, at most 2; `top_p` is above 0, at most 1; `top_k` is at least 1; None leaves
    each to the model's default, a remote server to its own. The penalties are -2 to 2. `timeout` is in seconds from
    the call on, waiting included. `whole` says that nobody sees anything before the end, so that a backend may fetch
    the answer in one piece.
    """

    messages: Sequence[Message]
    max_new_tokens: int
    timeout: float
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    n: int = 1
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The next part of an answer: whole characters, free of stop strings.

    `tokens` is the number of tokens generated since the piece before; over all pieces they add up to what was
    generated. `finish` is set on the last piece alone, and there `prompt_tokens` where the engine counted the prompt
    itself: from 1 to what `count_tokens` gave, whose bound it replaces.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    prompt_tokens: int | None = None


class Backend(Protocol):
    """An engine that serves one model version."""

    @property
    def abilities(self) -> Abilities:
        """What this backend honours; known once `start` has returned."""

    async def start(self) -> None:
        """Make ready. Raises `BackendUnavailable` or the reason why the model cannot be served."""

    async def close(self) -> None:
        """Stop for good; generations under way end with `BackendUnavailable`."""

    def healthy(self) -> bool:
        """Say whether a call made now has a chance. May be called on any thread."""

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the prompt's length in tokens, start of the answer included. Raises `InvalidArgument`."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Generate the answer to `request`, as an asynchronous generator.

        Callers MUST close it (`contextlib.aclosing`); closing early stops the generation. Raises
        `InvalidArgument` for a parameter out of range or beyond `abilities`, `ResourceExhausted` when too many
        calls wait, `DeadlineExceeded`, `BackendUnavailable`. After an exception nothing more comes.
        """


def check_request(request: GenerationRequest, abilities: Abilities) -> None:
    """Raise `InvalidArgument`, naming the field, unless `request` is in range and within `abilities`."""
    in_range = {
        "max_new_tokens": 1 <= request.max_new_tokens <= abilities.max_context,
        "timeout": 0 < request.timeout <= MAX_TIMEOUT,
        "temperature": request.temperature is None or 0 <= request.temperature <= MAX_TEMPERATURE,
        "top_p": request.top_p is None or 0 < request.top_p <= 1,
        "top_k": request.top_k is None or 1 <= request.top_k <= MAX_TOP_K,
        "seed": request.seed is None or 0 <= request.seed < 1 << 63,
        "presence_penalty": -2 <= request.presence_penalty <= 2,
        "frequency_penalty": -2 <= request.frequency_penalty <= 2,
        "stop": len(request.stop) <= MAX_STOPS and all(0 < len(s) <= MAX_STOP_LENGTH for s in request.stop),
        "n": request.n >= 1,
    }
    for field, ok in in_range.items():
        if not ok:
            raise errors.InvalidArgument(f"{field} is out of range", field=field)
    honoured = {
        "top_k": abilities.top_k or request.top_k is None,
        "seed": abilities.seed or request.seed is None,
        "presence_penalty": abilities.penalties or request.presence_penalty == 0,
        "frequency_penalty": abilities.penalties or request.frequency_penalty == 0,
        "stop": len(request.stop) <= abilities.max_stops,
        "n": request.n <= abilities.max_n,
    }
    for field, ok in honoured.items():
        if not ok:
            raise errors.InvalidArgument(f"this model's backend does not honour {field}", field=field)

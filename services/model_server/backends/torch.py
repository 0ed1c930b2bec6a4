"""The embedded backend: a model in this process, batched by `engine`.

What serving needs around it: admission, deadlines, cancellation, a watchdog, stop strings and a memory budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import structlog
import torch

from services.model_server.backends import Abilities, Binding, Finish, GenerationRequest, Piece, check_request
from services.model_server.backends.admission import Admission
from services.model_server.backends.deadline import expiring
from services.model_server.backends.engine import (
    RETRY_AFTER,
    Engine,
    Running,
    TorchSettings,
    working_bytes,
)
from services.model_server.importer import LoadedModel
from services.model_server.stops import StopScanner
from services.model_server.template import Message
from services.model_server.vocabulary import Detokenizer
from services.model_server.weights import SHARD_BYTES
from shared import errors

_log = structlog.get_logger(__name__)


class InsufficientMemory(errors.FailedPrecondition):
    """The model and its cache do not fit into the memory budget."""

    reason = "INSUFFICIENT_MEMORY"


class TorchBackend:
    """Serves one loaded model with continuous batching; a `Backend` for one event loop.

    A dead engine is rebuilt on the same weights. A hung one cannot be ended from within the process: calls are
    refused and `healthy` stays false until it returns, so that a liveness probe can restart the process.
    """

    def __init__(
        self,
        *,
        load: Callable[[], LoadedModel],
        weight_bytes: int,
        settings: TorchSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to serve what `load` returns, whose weights take `weight_bytes`; nothing is loaded yet."""
        self._load = load
        self._weight_bytes = weight_bytes
        self._settings = settings
        self._clock = clock
        self._admission = Admission(pages=settings.pages, places=settings.max_running, max_waiting=settings.max_waiting)
        self._abilities: Abilities | None = None
        self._model: LoadedModel | None = None
        self._engine: Engine | None = None
        self._making: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._steps_seen = 0
        self._progress_at = 0.0
        self._hung = False

    @property
    def abilities(self) -> Abilities:
        """What this backend honours; raises `BackendUnavailable` before `start`."""
        if self._abilities is None:
            raise errors.BackendUnavailable("the model is not loaded")
        return self._abilities

    async def start(self) -> None:
        """Load the model and start the engine.

        Raises `InsufficientMemory` before anything is loaded if the weights alone exceed the budget, and before
        the cache is made if the rest does; and whatever `load` raises. `load` runs in a thread.
        """
        self._check_memory(self._weight_bytes + 2 * min(self._weight_bytes, SHARD_BYTES))
        torch.set_num_threads(self._settings.threads)
        model = await asyncio.to_thread(self._load)
        config = model.network.config
        widened = 2 * self._weight_bytes + working_bytes(config, torch.float32, self._settings)
        if self._settings.widen and model.network.dtype is torch.bfloat16 and widened <= self._settings.memory_bytes:
            await asyncio.to_thread(model.network.float)
        else:
            self._check_memory(self._weight_bytes + working_bytes(config, model.network.dtype, self._settings))
        self._model = model
        # Of its own, for a thread cannot be cancelled: whoever gives up starting has `close` end what it makes.
        self._making = asyncio.create_task(self._make_engine(model))
        await asyncio.shield(self._making)
        self._mark_progress()
        self._abilities = Abilities(
            binding=Binding.LOADED,
            max_context=min(
                config.max_position_embeddings,
                self._settings.max_context,
                self._settings.pages * self._settings.page_tokens,
            ),
            exact_count=True,
            top_k=True,
        )
        self._watch = asyncio.create_task(self._watch_engine())

    async def close(self) -> None:
        """Stop the engine; waits for the step under way."""
        self._closing.set()
        if self._making is not None:
            await asyncio.wait([self._making])
        if self._watch is not None:
            await self._watch  # a rebuild under way is waited for, or its thread would stay behind
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.fail_all()
            await asyncio.to_thread(engine.stop, self._settings.stall_timeout)

    def healthy(self) -> bool:
        """Say whether the engine runs and makes progress."""
        engine = self._engine  # a scrape asks on another thread
        return engine is not None and not self._hung and engine.alive

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the prompt's length in tokens. Raises `InvalidArgument`."""
        return len(await self._encode(messages))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See `Backend.generate`."""
        check_request(request, self.abilities)
        stops = StopScanner(request.stop)
        deadline = asyncio.get_running_loop().time() + request.timeout
        async with expiring(deadline):
            prompt = await self._encode(request.messages)
        length = len(prompt) + request.max_new_tokens
        if length > self.abilities.max_context:
            raise errors.InvalidArgument("prompt and new tokens exceed the context", field="max_new_tokens")
        answer = _Answer(self._loaded(), stops)
        async with contextlib.AsyncExitStack() as held:
            async with expiring(deadline):
                await held.enter_async_context(self._admission.hold(math.ceil(length / self._settings.page_tokens)))
            engine = self._engine
            if engine is None or self._hung:
                raise errors.BackendUnavailable("the model engine is not running", retry_after=RETRY_AFTER)
            running = held.enter_context(engine.submit(prompt, request, expires_at=deadline))
            piece: Piece | None = None
            while piece is None or piece.finish is None:
                async with expiring(deadline):
                    await running.changed.wait()
                running.changed.clear()
                if running.failed:
                    raise errors.BackendUnavailable("the model engine failed", retry_after=RETRY_AFTER)
                piece = answer.take(running)
                if piece is not None:
                    yield piece

    async def check(self) -> None:
        """Look after the engine once: rebuild it if it died, fail its calls if it hangs."""
        engine = self._engine
        if engine is None or not engine.alive:
            self._engine = None
            if engine is not None:
                engine.fail_all()
                _log.warning("engine_died")
            await self._make_engine(self._loaded())
            self._mark_progress()
        elif engine.steps != self._steps_seen or not (engine.busy or self._hung):
            self._mark_progress()
        elif self._clock() - self._progress_at > self._settings.stall_timeout and not self._hung:
            _log.error("engine_hung")
            self._hung = True
            engine.fail_all()

    async def _make_engine(self, model: LoadedModel) -> None:
        self._engine = await asyncio.to_thread(Engine, model, self._settings)

    def _mark_progress(self) -> None:
        self._steps_seen = 0 if self._engine is None else self._engine.steps
        self._progress_at = self._clock()
        self._hung = False

    async def _watch_engine(self) -> None:
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(self._settings.watch_interval):
                    await self._closing.wait()
            except TimeoutError:
                pass
            else:
                return
            try:
                await self.check()
            except Exception as fault:  # noqa: BLE001 - tried again; meanwhile calls are refused
                _log.error("engine_rebuild_failed", fault=type(fault).__name__)

    async def _encode(self, messages: Sequence[Message]) -> list[int]:
        return await asyncio.to_thread(self._loaded().prompts.encode, messages)

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise errors.BackendUnavailable("the model is not loaded")
        return self._model

    def _check_memory(self, needed: int) -> None:
        if needed > self._settings.memory_bytes:
            raise InsufficientMemory(
                f"the model needs {needed >> 20} MiB of the {self._settings.memory_bytes >> 20} MiB allowed"
            )


class _Answer:
    """Assembles the tokens of one call into pieces of text."""

    def __init__(self, model: LoadedModel, stops: StopScanner) -> None:
        self._stop_tokens = model.stop_tokens
        self._text = Detokenizer(model.vocabulary)
        self._stops = stops
        self._seen = 0
        self._reported = 0

    def take(self, running: Running) -> Piece | None:
        """Return what is new in `running`, or nothing if it completes no character."""
        text = self._stops.feed(self._text.feed(running.tokens[self._seen :]))
        self._seen = len(running.tokens)
        finish = None
        if running.done and not self._stops.stopped:
            text += self._stops.feed(self._text.finish())
            if not self._stops.stopped:
                text += self._stops.finish()
            finish = Finish.STOP if running.tokens[-1] in self._stop_tokens else Finish.LENGTH
        if self._stops.stopped:
            finish = Finish.STOP
        if not text and finish is None:
            return None
        tokens, self._reported = self._seen - self._reported, self._seen
        return Piece(text=text, tokens=tokens, finish=finish)

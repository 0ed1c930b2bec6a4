"""One engine: transformers' continuous batching over one loaded model, on the CPU.

transformers batches in a thread of its own. This adapter builds it with fixed limits, hands calls in and out, and
knows whether it still lives; it is rebuilt, never repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PretrainedConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager, RequestStatus
from transformers.generation.continuous_batching.requests import GenerationOutput

from services.model_server.backends import GenerationRequest
from services.model_server.importer import LoadedModel
from shared import errors

# transformers logs token ids and whole request states, which are prompts.
logging.getLogger("ContinuousBatchingLogger").disabled = True
RETRY_AFTER = 1.0
_SINGLE_TOKEN_TOP_P = 1e-6
# Logits divided by less can overflow and take the whole batch along; the likeliest token is certain long before.
_LEAST_TEMPERATURE = 1e-12


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """How much the embedded backend takes on. Times are in seconds.

    The cache holds `pages` pages of `page_tokens` tokens; one call takes whole pages for its prompt and all the
    tokens it may generate, for as long as it runs, so the cache never overflows. `batch_tokens` bounds one step.
    `stall_timeout` is how long a step may take before the engine counts as hung. With `widen`, bfloat16 weights are
    computed in float32 if the budget holds them: for processors that have no bfloat16 arithmetic.
    """

    memory_bytes: int
    threads: int
    pages: int = 128
    page_tokens: int = 64
    batch_tokens: int = 256
    max_running: int = 16
    max_waiting: int = 64
    max_context: int = 4096
    stall_timeout: float = 60.0
    watch_interval: float = 0.5
    widen: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if min(self.threads, self.pages, self.batch_tokens, self.max_running, self.max_context) < 1:
            raise ValueError("threads, pages, batch_tokens, max_running and max_context must be at least 1")
        if self.page_tokens < 4 or self.max_waiting < 0:
            raise ValueError("page_tokens must be at least 4 and max_waiting at least 0")
        if self.max_running > self.batch_tokens:
            raise ValueError("max_running must not exceed batch_tokens: each running call needs one a step")
        if self.stall_timeout <= 0 or self.watch_interval <= 0:
            raise ValueError("stall_timeout and watch_interval must be above 0")


class Running:
    """What the engine has said about one call. The newest result holds all tokens so far, so only it is kept."""

    def __init__(self) -> None:
        """Start with nothing said; belongs to the running event loop."""
        self.changed = asyncio.Event()
        self.tokens: list[int] = []
        self.done = False
        self.failed = False

    def receive(self, output: GenerationOutput) -> None:
        """Take the engine's newest result."""
        self.tokens = output.generated_tokens
        self.done = output.is_finished()
        self.failed = self.failed or output.status == RequestStatus.FAILED
        self.changed.set()

    def fail(self) -> None:
        """End the call from outside: the engine will say no more."""
        self.failed = True
        self.changed.set()


class Engine:
    """A running `ContinuousBatchingManager`. Making one is slow; all else is not and belongs on one event loop."""

    def __init__(self, model: LoadedModel, settings: TorchSettings) -> None:
        """Allocate the cache and start the thread. Raises whatever torch or transformers do."""
        self._vocabulary_size: int = model.network.config.vocab_size
        self._defaults = model.sampling
        self._running: dict[str, Running] = {}
        self._manager = _manager(model, settings)
        self._manager.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs and takes calls."""
        return self._manager.is_running() and self._manager.background_thread_status.fatal_error is None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._running)

    @property
    def steps(self) -> int:
        """The number of steps taken so far: it grows while calls are under way."""
        return int(getattr(self._manager, "current_batch", 0))  # transformers sets it in its thread

    @contextlib.contextmanager
    def submit(self, prompt: list[int], request: GenerationRequest, *, expires_at: float) -> Iterator[Running]:
        """Run `request` on `prompt` for the length of the block; leaving it early, or `expires_at`, stops it.

        `expires_at` is in the event loop's time. Callers MUST see to it that prompt and new tokens of all calls
        fit into the cache together: one that does not ends the engine. Raises `BackendUnavailable`.
        """
        call = uuid.uuid4().hex
        running = self._running[call] = Running()
        self._manager.register_result_handler(call, running.receive)
        expiry = asyncio.get_running_loop().call_at(expires_at, self._manager.cancel_request, call)
        try:
            accepted = self._manager.add_request(
                prompt,
                request_id=call,
                max_new_tokens=request.max_new_tokens,
                streaming=True,
                **self._parameters(request),
            )
            if accepted is None:
                raise errors.BackendUnavailable("the model engine is stopping", retry_after=RETRY_AFTER)
            yield running
        finally:
            expiry.cancel()
            del self._running[call]
            if not running.done:
                self._manager.cancel_request(call)
            # a cancelled call gets no last result, which alone would make transformers forget its handler
            self._manager.output_router.result_handlers.pop(call, None)

    def fail_all(self) -> None:
        """End every call under way as failed."""
        for running in self._running.values():
            running.fail()

    def stop(self, timeout: float) -> None:
        """End the thread after the step under way, or give up waiting after `timeout` seconds; blocks."""
        self._manager.stop(block=True, timeout=timeout, hard_stop=True)

    def _parameters(self, request: GenerationRequest) -> dict[str, Any]:
        """Give the three values that continuous batching takes for each request, of exactly these types."""
        temperature = self._defaults.temperature if request.temperature is None else request.temperature
        if temperature == 0:
            # top_k alone would draw among equals, which bfloat16 often has; the smallest top_p keeps one
            return {"temperature": 1.0, "top_k": 1, "top_p": _SINGLE_TOKEN_TOP_P}
        return {
            "temperature": max(float(temperature), _LEAST_TEMPERATURE),
            # transformers indexes with it, unchecked
            "top_k": min(request.top_k or self._defaults.top_k or self._vocabulary_size, self._vocabulary_size),
            "top_p": float(request.top_p or self._defaults.top_p),
        }


def has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 matrices itself; elsewhere they take several times as long."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def working_bytes(config: PretrainedConfig, dtype: torch.dtype, settings: TorchSettings) -> int:
    """Return about what the cache and one step take beside the weights."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads  # not every architecture states it
    cached = settings.pages * settings.page_tokens
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype.itemsize
    cache = token * (cached + 2 * settings.page_tokens)  # two pages are padding
    attention = settings.batch_tokens * cached * (4 * heads + 2 * dtype.itemsize)  # scores and mask
    gathered = 2 * cached * heads * head * dtype.itemsize
    hidden = 4 * settings.batch_tokens * (8 * config.hidden_size + 4 * config.intermediate_size)
    logits = 6 * 4 * settings.max_running * config.vocab_size  # sampling sorts and masks copies
    return int(cache + attention + gathered + hidden + logits)


class _Discard(queue.Queue[GenerationOutput]):
    """Takes the results of calls that nobody listens to any more, which transformers would keep for ever."""

    def put(self, item: GenerationOutput, block: bool = True, timeout: float | None = None) -> None:
        """Forget `item`."""


def _manager(model: LoadedModel, settings: TorchSettings) -> ContinuousBatchingManager:
    manager: ContinuousBatchingManager = model.network.init_continuous_batching(  # type: ignore[operator]
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True,
            # a value of the default would leave the parameter out of what requests may set
            temperature=0.5,
            top_k=2,
            top_p=0.5,
            max_new_tokens=1,
            eos_token_id=sorted(model.stop_tokens),
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=settings.page_tokens,
            num_blocks=settings.pages,
            max_batch_tokens=settings.batch_tokens,
            max_requests_per_batch=settings.max_running,
            # a shared prefix answers faster, which would tell one caller what another asked
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            per_request_processors=True,
        ),
    )
    manager.output_router.output_queue = _Discard()
    manager.warmup()  # allocates the cache here, where a failure can be reported
    return manager

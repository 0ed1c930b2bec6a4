"""The policy engine: loads bundles, keeps the revisions in use alive, and lets only well-formed answers out.

How Rego is run is an `Evaluator`'s affair (`embedded`, `opa`); strictness is decided here, once for both.

    load(bundle)    lint -> start an evaluator -> probe it -> make it current -> end the former once nobody holds it
    hold(revision)  a session keeps the revision that it began with, whatever is loaded meanwhile
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import structlog

from services.policy_guard import rego, result
from services.policy_guard.bundle import Bundle
from services.policy_guard.result import Effect, PolicyResult, Question
from shared import errors

LOAD_TIMEOUT = 30.0
"""Seconds in which a bundle must be linted, started and probed."""
MAX_REVISIONS = 4
"""Revisions alive at once: the current one and those that sessions still hold."""

_log = structlog.get_logger(__name__)


class Evaluator(Protocol):
    """One bundle, ready to be asked."""

    async def evaluate(self, question: Question, document: Mapping[str, Any], *, deadline: float) -> object:
        """Return the JSON value of the question's rule for the input `document`.

        Ends by `deadline`, a time of the running loop's clock. Raises GuardUnavailable.
        """

    async def close(self) -> None:
        """End every process behind it. Idempotent."""


@dataclass(kw_only=True)
class _Loaded:
    evaluator: Evaluator
    holders: int = 0


class Ask(Protocol):
    """Asks one bundle; see `PolicyEngine.evaluate`."""

    async def __call__(self, question: Question, document: Mapping[str, Any], *, deadline: float) -> PolicyResult: ...


class Held:
    """A revision that stays until released: `with engine.hold() as held: await held.evaluate(...)`."""

    def __init__(self, engine: PolicyEngine, revision: str) -> None:
        """Use `PolicyEngine.hold`."""
        self._engine = engine
        self._released = False
        self.revision = revision

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def evaluate(self, question: Question, document: Mapping[str, Any], *, deadline: float) -> PolicyResult:
        """Ask this revision; see `PolicyEngine.evaluate`."""
        return await self._engine.evaluate(question, document, revision=self.revision, deadline=deadline)

    def release(self) -> None:
        """Let the revision go. Idempotent."""
        if not self._released:
            self._released = True
            self._engine._release(self.revision)


class PolicyEngine:
    """Answers questions from loaded bundles. Callers MUST `close()` it."""

    def __init__(self, name: str, *, start: Callable[[Bundle], Awaitable[Evaluator]]) -> None:
        """Make an engine that runs each bundle on what `start` returns; `name` is for logs and metrics."""
        self.name = name
        self._start = start
        self._loaded: dict[str, _Loaded] = {}
        self._current: str | None = None
        self._loading = asyncio.Lock()
        self._trying = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> str | None:
        """The revision that new sessions get; None before the first load."""
        return self._current

    async def load(self, bundle: Bundle) -> None:
        """Make `bundle` the current revision, or leave everything as it was.

        Raises BundleError for a bundle that cannot be served, FailedPrecondition when too many revisions are still
        held, and GuardUnavailable when the bundle did not come up or its probe was not answered by a deny.
        """
        async with self._loading:
            if bundle.revision not in self._loaded:
                if len(self._loaded) >= MAX_REVISIONS:
                    raise errors.FailedPrecondition("too many policy revisions are still in use by open sessions")
                self._loaded[bundle.revision] = _Loaded(evaluator=await self._served(bundle))
            former, self._current = self._current, bundle.revision
            if former is not None:
                self._retire(former)
        _log.info("policy_loaded", engine=self.name, revision=bundle.revision)

    def hold(self, revision: str | None = None) -> Held:
        """Keep `revision`, or the current one, alive until released. Raises GuardUnavailable if it is not loaded."""
        wanted = self._current if revision is None else revision
        if wanted is None or wanted not in self._loaded:
            raise errors.GuardUnavailable("the policy revision is not loaded")
        self._loaded[wanted].holders += 1
        return Held(self, wanted)

    async def evaluate(
        self, question: Question, document: Mapping[str, Any], *, revision: str, deadline: float
    ) -> PolicyResult:
        """Return the one answer of `revision` to `question` about the input `document`.

        `deadline` is a time of the running loop's clock. A deny is a value. Raises GuardUnavailable unless the
        engine gives exactly one well-formed result of that revision in time; callers MUST then refuse the call.
        """
        loaded = self._loaded.get(revision)
        if loaded is None:
            raise errors.GuardUnavailable("the policy revision is not loaded")
        return await _ask(loaded.evaluator, question, document, revision=revision, deadline=deadline)

    @contextlib.asynccontextmanager
    async def trial(self, bundle: Bundle) -> AsyncIterator[Ask]:
        """Run `bundle` beside the current one, for validation and replay, and yield what asks it.

        One at a time, for it takes as much memory as the current one; the caller's deadline bounds the wait. Raises as
        `load` does.
        """
        async with self._trying:
            evaluator = await self._served(bundle)
            try:
                yield functools.partial(_ask, evaluator, revision=bundle.revision)
            finally:
                await evaluator.close()

    async def close(self) -> None:
        """End every evaluator. Idempotent."""
        async with self._loading:
            self._current = None
            for revision in tuple(self._loaded):
                self._end(revision)
            await asyncio.gather(*self._ending)

    async def _served(self, bundle: Bundle) -> Evaluator:
        deadline = asyncio.get_running_loop().time() + LOAD_TIMEOUT
        await rego.lint(bundle, deadline=deadline)
        evaluator = await self._start(bundle)
        try:
            for question in Question:
                answer = await _ask(evaluator, question, {}, revision=bundle.revision, deadline=deadline)
                if answer.effect is not Effect.DENY:
                    raise errors.GuardUnavailable("the policy does not deny an empty question")
        except BaseException:
            await evaluator.close()
            raise
        return evaluator

    def _release(self, revision: str) -> None:
        loaded = self._loaded.get(revision)
        if loaded is not None:
            loaded.holders -= 1
            self._retire(revision)

    def _retire(self, revision: str) -> None:
        if revision != self._current and self._loaded[revision].holders == 0:
            self._end(revision)

    def _end(self, revision: str) -> None:
        task = asyncio.create_task(self._loaded.pop(revision).evaluator.close(), name=f"end policy {revision}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _ask(
    evaluator: Evaluator, question: Question, document: Mapping[str, Any], *, revision: str, deadline: float
) -> PolicyResult:
    value = await evaluator.evaluate(question, document, deadline=deadline)
    return result.parse(question, value, revision=revision)

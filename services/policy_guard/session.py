"""A guard session: one inference call, judged once and inspected to its end.

    open -> findings -> decision -> redacted messages -> reserve -> output* -> finish

The session is a state machine without a transport; `guard_service` speaks the contract around it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.policy_guard.budgets import Budgets
from services.policy_guard.claim import Claim, UnknownReservation
from services.policy_guard.facts import PromptFinding
from services.policy_guard.result import ContentAction, InferenceObligations, PolicyResult, ReleaseMode
from services.policy_guard.scans import Scans
from shared.errors import GuardUnavailable
from shared.inspection.findings import Action, Finding
from shared.inspection.redaction import Surrogates, redact
from shared.inspection.scanner import Scanner
from shared.inspection.streaming import Released, StreamInspector
from shared.records.errors import RecordsUnavailable

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """The prompt as the model may see it, and what was done to each message."""

    messages: tuple[str, ...]
    findings: tuple[tuple[int, Finding, Action], ...]
    blocked: Finding | None


async def scan_prompt(
    scans: Scans, principal: str, scanner: Scanner, messages: Sequence[str]
) -> tuple[tuple[Finding, ...], ...]:
    """Return the findings of each message of a principal's prompt. Raises GuardUnavailable for text made to be slow."""

    try:
        return await scans.run(principal, sum(map(len, messages)), lambda: scanner.scan_all(messages))
    except TimeoutError:
        raise GuardUnavailable("the prompt could not be inspected in time") from None


def prompt_facts(found: Sequence[Sequence[Finding]]) -> list[PromptFinding]:
    """Return findings as facts for policy."""
    return [
        PromptFinding(
            kind=item.kind,
            category=item.category,
            detector=item.detector,
            label=item.label,
            score=item.score,
        )
        for findings in found
        for item in findings
    ]


class ContentSession:
    """The content half of a session under an allow: prompt redaction, then output inspection."""

    def __init__(self, scanner: Scanner, result: PolicyResult, *, scans: Scans, principal: str, max_held: int) -> None:
        """Act on the obligations of `result`, which MUST be an allow; scan in `principal`'s turn of `scans`."""
        duties = result.obligations
        if not (result.allowed and isinstance(duties, InferenceObligations)):
            raise GuardUnavailable("the decision carries no obligations")
        self._duties = duties
        self._scans = scans
        self._principal = principal
        self._surrogates = Surrogates(os.urandom(32))
        self._inspector = StreamInspector(
            scanner,
            _actions(duties.output_actions),
            surrogates=self._surrogates,
            restore=duties.restore_surrogates,
            max_held=max_held,
        )
        self._buffered: list[str] | None = [] if duties.release is ReleaseMode.BUFFERED else None
        self._held = 0
        self._max_buffered = 4 * 1024 * 1024

    def prompt(self, messages: Sequence[str], found: Sequence[Sequence[Finding]]) -> Inspected:
        """Return the messages after the obligations on the prompt."""
        actions = _actions(self._duties.input_actions)
        texts: list[str] = []
        done: list[tuple[int, Finding, Action]] = []
        for index, (message, findings) in enumerate(zip(messages, found, strict=True)):
            redacted = redact(message, findings, actions, self._surrogates)
            done.extend((index, finding, action) for finding, action in redacted.findings)
            if redacted.blocked is not None:
                return Inspected(messages=(), findings=tuple(done), blocked=redacted.blocked)
            texts.append(redacted.text)
        return Inspected(messages=tuple(texts), findings=tuple(done), blocked=None)

    async def output(self, text: str) -> Released:
        """Return what of the output so far may go out now."""
        if self._buffered is None:
            return await self._scans.run(self._principal, len(text), lambda: self._inspector.feed(text))
        self._held += len(text)
        if self._held > self._max_buffered:
            return Released(text="", findings=(), cut=Finding(kind="HOLD_BACK", detector="buffer", start=0, end=0))
        self._buffered.append(text)
        return Released(text="", findings=(), cut=None)

    async def finish(self, text: str) -> Released:
        """Return the rest, `text` included, inspected to the end."""
        if self._buffered is not None:
            last = await self.output(text)
            if last.cut is not None:
                return last
            text = "".join(self._buffered)
        released = await self._scans.run(self._principal, len(text), lambda: self._inspector.finish(text))
        if released.cut is not None and self._buffered is not None:
            return dataclasses.replace(released, text="")
        return released


class BudgetSession:
    """The budget half: one reservation, settled exactly once whatever happens."""

    def __init__(self, budgets: Budgets, claim: Claim) -> None:
        """Prepare to reserve `claim`."""
        self._budgets = budgets
        self._claim = claim
        self._open = False
        self._granted = 0

    async def reserve(self) -> int:
        """Return the cap on new tokens. Raises BudgetExhausted or RepeatedRequest."""
        try:
            reservation = await self._budgets.reserve(self._claim)
        except (asyncio.CancelledError, RecordsUnavailable):
            await asyncio.shield(self._withdraw())
            raise
        self._open, self._granted = True, reservation.max_new_tokens
        return reservation.max_new_tokens

    async def _withdraw(self) -> None:
        """Give back what may have been charged without anybody learning of it; nothing was generated."""
        try:
            await self._budgets.settle(self._claim.call_id, 0)
        except (UnknownReservation, RecordsUnavailable) as error:
            _log.info("reservation_withdrawn", reason=error.reason)

    async def settle(self, tokens: int) -> None:
        """Count what was used."""
        if self._open:
            self._open = False
            await self._budgets.settle(self._claim.call_id, tokens)

    async def abandon(self) -> None:
        """Count the whole reservation: nobody said what was used."""
        await self.settle(self._claim.prompt_tokens + self._granted)


def _actions(actions: dict[str, ContentAction]) -> dict[str, Action]:
    return {kind: Action(action.value) for kind, action in actions.items()}

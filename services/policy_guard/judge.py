"""Asks policy: gathers the input, holds one revision, signs the answer."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

from services.policy_guard.acknowledgements import Acknowledgements
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.engine import Held, PolicyEngine
from services.policy_guard.facts import AccessQuestion, InferenceQuestion, access_input, inference_input
from services.policy_guard.guard_data import GuardData, UsePolicy
from services.policy_guard.result import PolicyResult, Question, Registration
from services.policy_guard.standing import Standing
from shared.errors import GuardUnavailable
from shared.identity.principal import Kind, Principal, Workload
from shared.inspection.scanner import Scanner
from shared.rpc.call import Judgement


class Judge:
    """The one way to a decision."""

    def __init__(
        self,
        engine: PolicyEngine,
        signer: DecisionSigner,
        acknowledgements: Acknowledgements,
        standing: Standing,
        *,
        seconds: float,
        clock: Callable[[], dt.datetime],
    ) -> None:
        """Ask `engine`, within `seconds` a question."""
        self._engine = engine
        self._signer = signer
        self._acknowledgements = acknowledgements
        self._standing = standing
        self._seconds = seconds
        self._clock = clock
        self._data: GuardData | None = None

    def follow(self, data: GuardData) -> None:
        """Take what the guard itself reads of the revision that was loaded."""
        self._data = data

    def hold(self) -> Held:
        """Return the revision in force, to be judged by with its own `scanner`, taken at the same moment."""
        return self._engine.hold()

    def scanner(self, *, control_tokens: bool) -> Scanner:
        """Return the detectors of the revision in force."""
        return self._followed.scanners[control_tokens]

    @property
    def use_policy(self) -> UsePolicy:
        """The acceptable-use policy of the revision in force."""
        return self._followed.use_policy

    @property
    def _followed(self) -> GuardData:
        if self._data is None:
            raise GuardUnavailable("no policy is loaded")
        return self._data

    async def acknowledged(self, principal: Principal) -> str | None:
        """Return the acceptable-use policy that a person accepted; a backend's owner did so in policy data."""
        if principal.kind is Kind.WORKLOAD:
            return None
        return await self._acknowledgements.acknowledged(principal.subject, in_force=self.use_policy.version)

    async def access(self, question: AccessQuestion, *, audience: str) -> Judgement:
        """Return the signed decision on `question` for the service `audience`. Raises GuardUnavailable."""
        question = dataclasses.replace(question, principal=await self._standing.of(question.principal))
        document = access_input(question, self._clock())
        result = await self._ask_current(Question.ACCESS, document)
        return self._signer.sign(
            result, policy_input=document, principal=question.principal, method=question.method, audience=audience
        )

    async def inference(
        self, question: InferenceQuestion, held: Held, *, action: str, audience: str
    ) -> tuple[Judgement, PolicyResult]:
        """Return the signed decision of `held` on an inference call, and the result it was made from."""
        question = dataclasses.replace(question, principal=await self._standing.of(question.principal))
        document = inference_input(question, action, self._clock())
        result = await self._ask(held, Question.INFERENCE, document)
        judgement = self._signer.sign(
            result, policy_input=document, principal=question.principal, method=question.method, audience=audience
        )
        return judgement, result

    async def registration(self, workload: Workload) -> Registration | None:
        """Return the tenant and roles that policy gives to a workload, None when it is not registered."""
        document = {"time": int(self._clock().timestamp()), "workload": {"spiffe_id": workload.spiffe_id}}
        result = await self._ask_current(Question.IDENTITY, document)
        return result.obligations if result.allowed and isinstance(result.obligations, Registration) else None

    async def _ask_current(self, question: Question, document: Mapping[str, Any]) -> PolicyResult:
        with self.hold() as held:
            return await self._ask(held, question, document)

    async def _ask(self, held: Held, question: Question, document: Mapping[str, Any]) -> PolicyResult:
        deadline = asyncio.get_running_loop().time() + self._seconds
        return await held.evaluate(question, document, deadline=deadline)

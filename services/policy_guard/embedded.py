"""The embedded engine: regorus in a child process, one for each bundle. Needs no `opa` binary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.policy_guard import documents
from services.policy_guard.bundle import Bundle
from services.policy_guard.result import Question
from shared import errors
from shared.child.worker import Limits, Worker

_TARGET = "services.policy_guard.interpreter:evaluator"
_LIMITS = Limits(max_request_bytes=16 << 20, max_reply_bytes=1 << 20, memory_bytes=1 << 30)


class EmbeddedEvaluator:
    """A bundle in an interpreter of its own (`services.policy_guard.engine.Evaluator`)."""

    def __init__(self, worker: Worker) -> None:
        """Use `start`."""
        self._worker = worker

    async def evaluate(self, question: Question, document: Mapping[str, Any], *, deadline: float) -> object:
        """Return the rule's value. Raises GuardUnavailable; a child that missed `deadline` is killed and replaced."""
        try:
            request = json.dumps({"rule": f"data.{question}", "input": document}, allow_nan=False).encode()
            answer = await self._worker.call(request, deadline=deadline)
            return documents.parse_json(answer, where="result")
        except (errors.Error, ValueError, TypeError, RecursionError):
            raise errors.GuardUnavailable("the embedded policy engine gave no answer") from None

    async def close(self) -> None:
        """End the child."""
        await self._worker.close()


async def start(bundle: Bundle) -> EmbeddedEvaluator:
    """Start an interpreter with the bundle's rules and data. Raises GuardUnavailable."""
    setup = json.dumps(
        {"modules": bundle.rules, "data": bundle.served_data, "warm": f"data.{Question.ACCESS}"}
    ).encode()
    worker = Worker(_TARGET, setup=setup, limits=_LIMITS)
    try:
        await worker.start()
    except errors.Error:
        raise errors.GuardUnavailable("the embedded policy engine did not start") from None
    return EmbeddedEvaluator(worker)

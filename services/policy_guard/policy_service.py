"""bastide.policy_guard.v1.PolicyService."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import TypeAdapter

from bastide.policy_guard.v1 import policy_pb2
from services.policy_guard import revisions as domain
from services.policy_guard.documents import BundleError, parse_input
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.lifecycle import Lifecycle
from services.policy_guard.result import PolicyResult, Question
from services.policy_guard.revisions import Revisions
from shared.errors import InvalidArgument, NotFound
from shared.rpc.call import Call

_STATES = {
    domain.State.PROPOSED: policy_pb2.REVISION_STATE_PROPOSED,
    domain.State.ACTIVE: policy_pb2.REVISION_STATE_ACTIVE,
    domain.State.RETIRED: policy_pb2.REVISION_STATE_RETIRED,
}
_EVALUATE_SECONDS = 2.0
_RESULT = TypeAdapter(PolicyResult)


class PolicyService:
    """The life of policies over gRPC."""

    def __init__(self, lifecycle: Lifecycle, revisions: Revisions, engine: PolicyEngine) -> None:
        """Serve `lifecycle`."""
        self._lifecycle = lifecycle
        self._revisions = revisions
        self._engine = engine

    async def revision_facts(self, request: policy_pb2.ActivatePolicyRequest, _call: Call) -> dict[str, Any]:
        """Facts for policy: who proposed it."""
        revision = await self._revisions.get(await self._digest(request.name))
        return {"submitters": [revision.proposer]}

    async def rollback_facts(self, _request: policy_pb2.RollbackPolicyRequest, call: Call) -> dict[str, Any]:
        """Facts for policy: who proposed what would be in force again; and the step back that is judged."""
        call.judged = active = await self._revisions.active()
        target = None if active is None else await self._revisions.before(active)
        return {} if target is None else {"submitters": [(await self._revisions.get(target.digest)).proposer]}

    async def GetRevision(self, request: policy_pb2.GetRevisionRequest, _call: Call) -> policy_pb2.GetRevisionResponse:
        """See the contract."""
        digest = await self._digest(request.name)
        return policy_pb2.GetRevisionResponse(
            revision=_message(await self._revisions.get(digest)), bundle=await self._revisions.bundle(digest)
        )

    async def ListRevisions(
        self, request: policy_pb2.ListRevisionsRequest, _call: Call
    ) -> policy_pb2.ListRevisionsResponse:
        """See the contract."""
        page = await self._revisions.list(requested=request.page_size, page_token=request.page_token)
        return policy_pb2.ListRevisionsResponse(
            revisions=[_message(revision) for revision in page.revisions], next_page_token=page.next_page_token
        )

    async def ValidatePolicy(
        self, request: policy_pb2.ValidatePolicyRequest, _call: Call
    ) -> policy_pb2.ValidatePolicyResponse:
        """See the contract."""
        try:
            report = await self._lifecycle.validate(request.bundle)
        except BundleError as error:
            problem = policy_pb2.PolicyProblem(check="parse", message=error.message)
            return policy_pb2.ValidatePolicyResponse(problems=[problem])
        return policy_pb2.ValidatePolicyResponse(
            problems=[
                policy_pb2.PolicyProblem(check=item.check, location=item.location, message=item.message)
                for item in report.problems
            ],
            name=f"revisions/{report.revision}",
        )

    async def ProposePolicy(
        self, request: policy_pb2.ProposePolicyRequest, call: Call
    ) -> policy_pb2.ProposePolicyResponse:
        """See the contract."""
        revision = await self._lifecycle.propose(request.bundle, proposer=call.person.subject, note=request.note)
        return policy_pb2.ProposePolicyResponse(revision=_message(revision))

    async def ActivatePolicy(
        self, request: policy_pb2.ActivatePolicyRequest, call: Call
    ) -> policy_pb2.ActivatePolicyResponse:
        """See the contract."""
        digest = await self._digest(request.name)
        await self._lifecycle.activate(digest, judged_by=_judged_by(call), activator=call.person.subject)
        return policy_pb2.ActivatePolicyResponse(revision=_message(await self._revisions.get(digest)))

    async def RollbackPolicy(
        self, _request: policy_pb2.RollbackPolicyRequest, call: Call
    ) -> policy_pb2.RollbackPolicyResponse:
        """See the contract."""
        activation = await self._lifecycle.rollback(
            call.judged, judged_by=_judged_by(call), activator=call.person.subject
        )
        return policy_pb2.RollbackPolicyResponse(revision=_message(await self._revisions.get(activation.digest)))

    async def EvaluatePolicy(
        self, request: policy_pb2.EvaluatePolicyRequest, _call: Call
    ) -> policy_pb2.EvaluatePolicyResponse:
        """See the contract."""
        document = parse_input(request.input)
        question = Question.INFERENCE if request.question == "inference" else Question.ACCESS
        deadline = asyncio.get_running_loop().time() + _EVALUATE_SECONDS
        digest = await self._digest(request.name or "revisions/active")
        if digest == self._engine.current:
            with self._engine.hold() as held:
                result = await held.evaluate(question, document, deadline=deadline)
        else:
            async with self._engine.trial(await self._lifecycle.bundle(digest)) as ask:
                result = await ask(question, document, deadline=asyncio.get_running_loop().time() + _EVALUATE_SECONDS)
        return policy_pb2.EvaluatePolicyResponse(result=_RESULT.dump_json(result))

    async def _digest(self, name: str) -> str:
        prefix, _, digest = name.partition("/")
        if prefix != "revisions" or not digest:
            raise InvalidArgument("a revision is revisions/<digest> or revisions/active", field="name")
        if digest != "active":
            return digest
        active = await self._revisions.active()
        if active is None:
            raise NotFound("no revision is in force")
        return active.digest


def _judged_by(call: Call) -> str:
    if call.judgement is None:
        raise RuntimeError("no decision in this call")
    return call.judgement.decision.policy_revision


def _message(revision: domain.Revision) -> policy_pb2.Revision:
    message = policy_pb2.Revision(
        name=f"revisions/{revision.digest}",
        state=_STATES[revision.state],
        proposer=revision.proposer,
        note=revision.note,
    )
    message.proposed_at.FromDatetime(revision.proposed_at)
    if revision.activation is not None:
        message.activator = revision.activation.activator
        message.activated_at.FromDatetime(revision.activation.activated_at)
    return message

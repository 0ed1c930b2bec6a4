"""bastide.policy_guard.v1.GuardService: every decision, and the inspection of every byte of an answer."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

import rfc8785
from google.protobuf import json_format
from prometheus_client import Counter

from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2, decision_pb2, principal_pb2
from services.policy_guard.budgets import Budgets
from services.policy_guard.claim import Claim, Consumer
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.facts import AccessQuestion, InferenceQuestion, ModelFacts
from services.policy_guard.judge import Judge
from services.policy_guard.scans import Scans
from services.policy_guard.session import (
    BudgetSession,
    ContentSession,
    prompt_facts,
    scan_prompt,
)
from shared.errors import InvalidArgument, Unauthenticated
from shared.guard import check_findings, check_prompt
from shared.identity.principal import Principal, Workload
from shared.identity.tokens import TokenVerifier
from shared.inspection.findings import Action, Finding
from shared.inspection.redaction import redact
from shared.inspection.streaming import Released
from shared.rpc.call import Call, Judgement

INFERENCE_ACTION = "model_server.inference.generate"
MAX_ATTRIBUTE_BYTES = 8 * 1024


class LocalGuard:
    """The guard as the judge of calls to itself; see `shared.rpc.layers.AccessGuard`."""

    def __init__(self, judge: Judge, *, audience: str) -> None:
        """Decide for `audience`, this service's own SPIFFE id."""
        self._judge = judge
        self._audience = audience

    async def check(self, call: Call, resource: guard_pb2.Resource) -> Judgement:
        """Return the decision on `call`."""
        return await self._judge.access(
            AccessQuestion(
                principal=call.person,
                acknowledged_use_policy=await self._judge.acknowledged(call.person),
                method=call.method,
                action=call.row.action,
                mfa=call.row.mfa,
                resource_type=resource.type,
                resource_name=resource.name,
                attributes=_attributes(resource),
            ),
            audience=self._audience,
        )


FINDINGS = Counter(
    "bastide_findings_total", "Findings in prompts and outputs, and what was done.", ["place", "kind", "action"]
)


class GuardService:
    """Decisions for the suite's services."""

    def __init__(
        self,
        judge: Judge,
        signer: DecisionSigner,
        verifier: TokenVerifier,
        budgets: Budgets,
        *,
        scans: Scans,
        max_held: int,
    ) -> None:
        """Judge with `judge`, whose detectors `scans` runs."""
        self._judge = judge
        self._signer = signer
        self._verifier = verifier
        self._budgets = budgets
        self._scans = scans
        self._max_held = max_held

    async def CheckAccess(self, request: guard_pb2.CheckAccessRequest, call: Call) -> guard_pb2.CheckAccessResponse:
        """See the contract."""
        principal = await self._principal(request.token, request.workload)
        judgement = await self._judge.access(
            AccessQuestion(
                principal=principal,
                acknowledged_use_policy=await self._judge.acknowledged(principal),
                method=request.method,
                action=request.action,
                mfa=request.mfa,
                resource_type=request.resource.type,
                resource_name=request.resource.name,
                attributes=_attributes(request.resource),
            ),
            audience=call.caller.spiffe_id,
        )
        return guard_pb2.CheckAccessResponse(decision=judgement.signed, opening=judgement.opening)

    async def InspectContent(
        self, request: guard_pb2.InspectContentRequest, call: Call
    ) -> guard_pb2.InspectContentResponse:
        """See the contract."""
        (found,) = await scan_prompt(
            self._scans, call.person.subject, self._judge.scanner(control_tokens=True), [request.text]
        )
        check_findings([found], field="text")
        actions = {item.kind: Action.REDACT for item in found}
        redacted = await self._scans.run(
            call.person.subject, len(request.text), lambda: redact(request.text, found, actions, None)
        )
        return guard_pb2.InspectContentResponse(
            findings=[_finding(item, action) for item, action in redacted.findings], redacted=redacted.text
        )

    async def GuardInference(
        self, requests: AsyncIterator[guard_pb2.GuardInferenceRequest], call: Call
    ) -> AsyncGenerator[guard_pb2.GuardInferenceResponse, None]:
        """See the contract."""
        opening = (await _next(requests, "open")).open
        principal = await self._principal(opening.token, opening.workload)
        check_prompt(opening.messages, field="open.messages")
        texts = [item.content for item in opening.messages]
        # Detectors and decision are of one revision, whatever comes into force while a long prompt is scanned.
        with self._judge.hold() as held:
            scanner = self._judge.scanner(control_tokens=not opening.model.control_tokens_safe)
            found = await scan_prompt(self._scans, principal.subject, scanner, texts)
            check_findings(found, field="open.messages")
            judgement, result = await self._judge.inference(
                InferenceQuestion(
                    principal=principal,
                    acknowledged_use_policy=await self._judge.acknowledged(principal),
                    method=opening.method,
                    model=_model_facts(opening.model),
                    purpose=opening.purpose,
                    parameters=_parameters(opening),
                    findings=prompt_facts(found),
                ),
                held,
                action=INFERENCE_ACTION,
                audience=call.caller.spiffe_id,
            )
        decided = guard_pb2.Decided(decision=judgement.signed, opening=judgement.opening)
        if not judgement.allowed:
            decided.findings.extend(_prompt_findings(found))
            _count("prompt", decided.findings)
            yield guard_pb2.GuardInferenceResponse(decided=decided)
            return
        content = ContentSession(
            scanner, result, scans=self._scans, principal=principal.subject, max_held=self._max_held
        )
        prompt = await self._scans.run(principal.subject, sum(map(len, texts)), lambda: content.prompt(texts, found))
        if prompt.blocked is not None:
            # An obligation that blocks is policy's deny in other words: it must be the decision that is recorded.
            raise InvalidArgument("policy allowed a prompt that its obligations block", field="open.messages")
        decided.messages.extend(
            content_pb2.Message(role=item.role, content=text)
            for item, text in zip(opening.messages, prompt.messages, strict=True)
        )
        decided.findings.extend(_finding(item, action, index) for index, item, action in prompt.findings)
        _count("prompt", decided.findings)
        yield guard_pb2.GuardInferenceResponse(decided=decided)
        reserve = (await _next(requests, "reserve")).reserve
        budget = BudgetSession(
            self._budgets,
            Claim(
                call_id=opening.call_id,
                consumer=Consumer(tenant=principal.tenant, principal=principal.subject, model=opening.model.name),
                limits=result.limits,
                prompt_tokens=reserve.prompt_tokens,
                max_new_tokens=reserve.max_new_tokens,
                lease=reserve.lease.ToTimedelta(),
                request_id=opening.request_id,
            ),
        )
        cap = await budget.reserve()
        try:
            yield guard_pb2.GuardInferenceResponse(reserved=guard_pb2.Reserved(max_new_tokens=cap))
            async with asyncio.timeout(reserve.lease.ToTimedelta().total_seconds()):
                async for response in self._outputs(requests, content, budget, judgement.decision):
                    yield response
        finally:
            await asyncio.shield(budget.abandon())

    async def _outputs(
        self,
        requests: AsyncIterator[guard_pb2.GuardInferenceRequest],
        content: ContentSession,
        budget: BudgetSession,
        decision: decision_pb2.Decision,
    ) -> AsyncIterator[guard_pb2.GuardInferenceResponse]:
        cut = False
        while True:
            request = await _next(requests, "output", "finish")
            finished = request.HasField("finish")
            if finished:
                usage = request.finish.usage
                await budget.settle(usage.prompt_tokens + usage.completion_tokens)
                if cut:
                    yield guard_pb2.GuardInferenceResponse(cut=guard_pb2.Cut())
                    return
            elif cut:
                raise InvalidArgument("nothing is inspected after a cut", field="output")
            released = await (content.finish(request.finish.text) if finished else content.output(request.output.text))
            if released.cut is not None:
                cut = True
                yield guard_pb2.GuardInferenceResponse(cut=_cut(released.cut))
            elif not finished:
                yield guard_pb2.GuardInferenceResponse(released=_released(released))
            else:
                verdict = self._signer.verdict(decision, effect=decision_pb2.EFFECT_ALLOW, reasons=[])
                yield guard_pb2.GuardInferenceResponse(
                    closed=guard_pb2.Closed(verdict=verdict, released=_released(released))
                )
            if finished:
                return

    async def _principal(self, token: str, workload: principal_pb2.Workload) -> Principal:
        if len(workload.certificate_sha256) != 32:
            raise Unauthenticated("the token is not valid")
        return await self._verifier.verify(
            token, Workload(spiffe_id=workload.spiffe_id, certificate_sha256=workload.certificate_sha256)
        )


async def _next(
    requests: AsyncIterator[guard_pb2.GuardInferenceRequest], *expected: str
) -> guard_pb2.GuardInferenceRequest:
    try:
        request = await anext(requests)
    except StopAsyncIteration:
        raise InvalidArgument("the session ended before its end", field="step") from None
    if request.WhichOneof("step") not in expected:
        raise InvalidArgument(f"expected {' or '.join(expected)}", field="step")
    return request


def _attributes(resource: guard_pb2.Resource) -> dict[str, Any]:
    """Return the facts about a resource. Raises InvalidArgument where they are no JSON, or too much of it."""
    field = "resource.attributes"
    try:
        attributes = dict(json_format.MessageToDict(resource.attributes))
        size = len(rfc8785.dumps(attributes))
    except ValueError:
        raise InvalidArgument(f"{field}: not a finite number", field=field) from None
    if size > MAX_ATTRIBUTE_BYTES:
        raise InvalidArgument(f"{field}: at most {MAX_ATTRIBUTE_BYTES} bytes as canonical JSON", field=field)
    return attributes


def _model_facts(model: guard_pb2.ModelFacts) -> ModelFacts:
    name = principal_pb2.Classification.Name(model.classification)
    return ModelFacts(
        name=model.name,
        version=model.version,
        loaded=model.loaded,
        classification=name.removeprefix("CLASSIFICATION_"),
        permitted_purposes=tuple(model.permitted_purposes),
    )


def _parameters(opening: guard_pb2.OpenSession) -> dict[str, Any]:
    given = opening.parameters
    facts: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "stream": opening.stream}
    for name in ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"):
        if given.HasField(name):
            facts[name] = getattr(given, name)
    facts["seed"] = given.HasField("seed")
    return facts


def _finding(item: Finding, action: Action | None, index: int = 0) -> content_pb2.Finding:
    return content_pb2.Finding(
        kind=item.kind,
        detector=item.detector,
        label=item.label,
        score=item.score,
        start=item.start,
        end=item.end,
        message_index=index,
        action=(
            content_pb2.CONTENT_ACTION_UNSPECIFIED
            if action is None
            else content_pb2.ContentAction.Value(f"CONTENT_ACTION_{action}")
        ),
    )


def _prompt_findings(found: tuple[tuple[Finding, ...], ...]) -> list[content_pb2.Finding]:
    return [_finding(item, None, index) for index, findings in enumerate(found) for item in findings]


def _released(released: Released) -> guard_pb2.Released:
    findings = [_finding(item, action) for item, action in released.findings]
    _count("output", findings)
    return guard_pb2.Released(text=released.text, findings=findings)


def _count(place: str, findings: Iterable[content_pb2.Finding]) -> None:
    for (kind, value), count in collections.Counter((item.kind, item.action) for item in findings).items():
        action = content_pb2.ContentAction.Name(value).removeprefix("CONTENT_ACTION_")
        FINDINGS.labels(place, kind, action).inc(count)


def _cut(finding: Finding) -> guard_pb2.Cut:
    FINDINGS.labels("output", finding.kind, "BLOCK").inc()
    return guard_pb2.Cut(
        reasons=[
            decision_pb2.Reason(
                code="OUTPUT_BLOCKED", message="The answer held content that policy does not release.", public=True
            )
        ],
        finding=_finding(finding, Action.BLOCK),
    )

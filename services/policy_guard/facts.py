"""The facts that policy decides on: inputs as `policies/schemas` describes them. Python gathers, Rego decides."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.identity.principal import Principal


@dataclass(frozen=True, kw_only=True)
class AccessQuestion:
    """May this principal call this method on this resource?"""

    principal: Principal
    acknowledged_use_policy: str | None
    method: str
    action: str
    mfa: bool
    resource_type: str
    resource_name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known about the model that would serve."""

    name: str
    version: str
    loaded: bool
    classification: str
    permitted_purposes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PromptFinding:
    """Something a detector saw in the prompt."""

    kind: str
    category: str
    detector: str
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class InferenceQuestion:
    """May this inference call go on?"""

    principal: Principal
    acknowledged_use_policy: str | None
    method: str
    model: ModelFacts
    purpose: str
    parameters: Mapping[str, Any]
    findings: Sequence[PromptFinding]


def access_input(question: AccessQuestion, now: dt.datetime) -> dict[str, Any]:
    """Return the input document of `bastide.access`."""
    return {
        **_common(question.principal, question.acknowledged_use_policy, question.action, now),
        "method": {"full_name": question.method, "mfa": question.mfa},
        "resource": {
            **dict(question.attributes),
            "type": question.resource_type,
            "name": question.resource_name,
        },
    }


def inference_input(question: InferenceQuestion, action: str, now: dt.datetime) -> dict[str, Any]:
    """Return the input document of `bastide.inference`.

    What one detector found of one kind and label is one entry, however often and in however many messages, so that a
    long conversation fits into a record.
    """
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for item in question.findings:
        groups.setdefault((item.kind, item.category, item.detector, item.label), []).append(item.score)
    return {
        **_common(question.principal, question.acknowledged_use_policy, action, now),
        "method": {"full_name": question.method, "mfa": False},
        "model": {
            "name": question.model.name,
            "version": question.model.version,
            "binding": "LOADED" if question.model.loaded else "DECLARED",
            "classification": question.model.classification,
            "permitted_purposes": list(question.model.permitted_purposes),
        },
        "purpose": question.purpose,
        "parameters": dict(question.parameters),
        "findings": [
            {
                "kind": kind,
                "category": category,
                "detector": detector,
                "label": label,
                "score": max(scores),
                "count": len(scores),
            }
            for (kind, category, detector, label), scores in groups.items()
        ],
    }


def _common(principal: Principal, acknowledged: str | None, action: str, now: dt.datetime) -> dict[str, Any]:
    authenticated = principal.authenticated_at
    return {
        "time": int(now.timestamp()),
        "principal": {
            "subject": principal.subject,
            "kind": principal.kind.value,
            "tenant": principal.tenant,
            "roles": list(principal.roles),
            "amr": list(principal.amr),
            "auth_time": None if authenticated is None else int(authenticated.timestamp()),
            "acknowledged_use_policy": acknowledged,
        },
        "workload": {"spiffe_id": principal.workload.spiffe_id},
        "action": action,
    }

"""The one shape in which policy answers. Whatever does not have it is no answer."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from shared import errors

_STRICT = ConfigDict(strict=True, extra="forbid")
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]


class Question(enum.StrEnum):
    """What a bundle answers; the value names the rule. Members are constants: never build one from input."""

    INFERENCE = "bastide.inference.decision"
    """May this inference call go on, and under which obligations and limits?"""
    ACCESS = "bastide.access.decision"
    """May this principal call this method on this resource?"""
    IDENTITY = "bastide.identity.decision"
    """May this workload have a token, and of which tenant and roles?"""


class Effect(enum.StrEnum):
    """Allow or deny; there is no third."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class ContentAction(enum.StrEnum):
    """What to do with a finding of some kind. A kind without an action blocks."""

    PASS = "PASS"  # noqa: S105 - not a password
    REDACT = "REDACT"
    TOKENISE = "TOKENISE"
    BLOCK = "BLOCK"


class ReleaseMode(enum.StrEnum):
    """Whether inspected text goes out as it is generated, or all at the end."""

    STREAMED = "STREAMED"
    BUFFERED = "BUFFERED"


class BudgetScope(enum.StrEnum):
    """Whose consumption a limit counts."""

    TENANT = "TENANT"
    PRINCIPAL = "PRINCIPAL"
    MODEL = "MODEL"


class BudgetUnit(enum.StrEnum):
    """What a limit counts."""

    TOKENS = "TOKENS"
    REQUESTS = "REQUESTS"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Reason:
    """One cause of a decision."""

    code: _Code
    message: Annotated[str, Field(min_length=1, max_length=512)]
    public: bool
    """Whether the caller may see it."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Limit:
    """At most `limit` units in any `window_seconds`."""

    scope: BudgetScope
    unit: BudgetUnit
    limit: Annotated[int, Field(ge=1, le=2**53)]
    window_seconds: Annotated[int, Field(ge=1, le=31 * 86400)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InferenceObligations:
    """What whoever lets an inference call go on MUST also do."""

    input_actions: Annotated[dict[_Code, ContentAction], Field(max_length=128)]
    """Finding kind -> action on the prompt."""
    output_actions: Annotated[dict[_Code, ContentAction], Field(max_length=128)]
    """Finding kind -> action on the answer."""
    release: ReleaseMode
    max_new_tokens: Annotated[int, Field(ge=1, le=32768)]
    """Cap on generated tokens, never above what was asked for."""
    disclosure: Annotated[str, Field(max_length=512)]
    """A line before the answer; empty for none."""
    retain_text: bool
    """Whether prompt and answer are kept, sealed."""
    restore_surrogates: bool
    """Whether surrogates in the answer are put back for this caller."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Registration:
    """What a workload's token says of it."""

    tenant: _Name
    roles: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=32)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Nothing:
    """Obligations of an answer that carries none."""


Obligations = InferenceObligations | Registration | None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PolicyResult:
    """One well-formed answer of the revision that was asked."""

    effect: Effect
    reasons: Annotated[tuple[Reason, ...], Field(min_length=1, max_length=32)]
    obligations: Obligations
    """InferenceObligations or Registration as the question has it, on an allow; else None."""
    limits: Annotated[tuple[Limit, ...], Field(max_length=16)]
    revision: str

    @property
    def allowed(self) -> bool:
        """Whether the call may go on."""
        return self.effect is Effect.ALLOW


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Document:
    effect: Effect
    reasons: Annotated[tuple[Reason, ...], Field(min_length=1, max_length=32)]
    obligations: dict[str, Any]
    limits: Annotated[tuple[Limit, ...], Field(max_length=16)]
    revision: str


_DOCUMENT = TypeAdapter(_Document)
_NOTHING: TypeAdapter[Any] = TypeAdapter(_Nothing)
_OBLIGATIONS: dict[Question, TypeAdapter[Any]] = {
    Question.INFERENCE: TypeAdapter(InferenceObligations),
    Question.ACCESS: _NOTHING,
    Question.IDENTITY: TypeAdapter(Registration),
}


def parse(question: Question, value: object, *, revision: str) -> PolicyResult:
    """Return the engine's JSON `value` as a result. Raises GuardUnavailable unless it is one, of `revision`."""
    try:
        document = _DOCUMENT.validate_json(json.dumps(value))
        shape = _OBLIGATIONS[question] if document.effect is Effect.ALLOW else _NOTHING
        obligations = shape.validate_json(json.dumps(document.obligations))
    except (ValidationError, ValueError, TypeError, RecursionError):
        raise errors.GuardUnavailable("the policy engine gave no well-formed decision") from None
    if document.revision != revision:
        raise errors.GuardUnavailable("the policy engine answered for another policy revision")
    if document.effect is Effect.DENY and document.limits:
        raise errors.GuardUnavailable("the policy engine gave no well-formed decision")
    return PolicyResult(
        effect=document.effect,
        reasons=document.reasons,
        obligations=None if isinstance(obligations, _Nothing) else obligations,
        limits=document.limits,
        revision=document.revision,
    )

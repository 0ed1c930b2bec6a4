"""What the guard itself reads of a bundle's data: the acceptable-use policy, and the denied topics as detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from shared.inspection.scanner import Scanner

MAX_TERM_CHARACTERS = 1 << 15
"""Of all terms of all topics. Every step of every stream looks for all of them."""


class UsePolicy(BaseModel):
    """The acceptable-use policy in force."""

    model_config = ConfigDict(strict=True, frozen=True)

    version: str
    text: str


class _Topics(BaseModel):
    model_config = ConfigDict(strict=True)

    terms: dict[str, list[str]] = {}


class _Purposes(BaseModel):
    use_policy: UsePolicy


class _Documents(BaseModel):
    topics: _Topics
    purposes: _Purposes


@dataclass(frozen=True, kw_only=True)
class GuardData:
    """Of one revision. `scanners` are its detectors, with control tokens (True) and without."""

    use_policy: UsePolicy
    scanners: Mapping[bool, Scanner]


def guard_data(bundle: Bundle) -> GuardData:
    """Read a bundle, whatever its own schemas allow. Long lists take a second: not on an event loop.

    Raises BundleError for what the guard cannot go by.
    """
    try:
        documents = _Documents.model_validate(bundle.data.get("bastide"))
    except ValidationError as error:
        where = "/".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise BundleError("the guard cannot read this", where=f"bastide/{where}") from None
    terms = documents.topics.terms
    if sum(len(term) for words in terms.values() for term in words) > MAX_TERM_CHARACTERS:
        raise BundleError(f"at most {MAX_TERM_CHARACTERS} characters of terms", where="bastide/topics/terms")
    return GuardData(
        use_policy=documents.purposes.use_policy,
        scanners={control: Scanner(topics=terms, control_tokens=control) for control in (True, False)},
    )

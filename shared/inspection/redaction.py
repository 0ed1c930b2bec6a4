"""Editing a text by its findings: placeholders, and surrogates that can be turned back."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from shared.inspection.findings import STRICTNESS, Action, Finding

SURROGATE = regex.compile(r"<[A-Z][A-Z0-9_]{2,40}:[a-z2-7]{16}>")
GROWING_SURROGATE = regex.compile(rf"(?:{SURROGATE.pattern})\Z(?s:.)")


class Surrogates:
    """Stand-ins for values within one call: the same for the same value, and meaningless without this object.

    A surrogate is a keyed hash (HMAC-SHA256, 80 bits), so that a model cannot make up one that resolves.
    """

    def __init__(self, key: bytes) -> None:
        """Use `key`, at least 32 random bytes made for this call alone."""
        if len(key) < 32:
            raise ValueError("a key has at least 32 bytes")
        self._key = key
        self._values: dict[str, str] = {}

    def issue(self, kind: str, value: str) -> str:
        """Return the surrogate of `value`."""
        digest = hmac.digest(self._key, f"{kind}\0{value}".encode(), "sha256")
        surrogate = f"<{kind}:{base64.b32encode(digest[:10]).decode().lower()}>"
        self._values[surrogate] = value
        return surrogate

    def value(self, surrogate: str) -> str | None:
        """Return the value of a surrogate that was issued here, else None."""
        return self._values.get(surrogate)


@dataclass(frozen=True, kw_only=True)
class Redacted:
    """A text after its obligations. `blocked` is the first finding that forbids it; `text` is then empty."""

    text: str
    findings: tuple[tuple[Finding, Action], ...]
    blocked: Finding | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Findings that overlap one another; the strictest action holds for their whole span."""

    start: int
    end: int
    action: Action
    leading: Finding
    members: tuple[tuple[Finding, Action], ...]


def groups(findings: Sequence[Finding], actions: Mapping[str, Action]) -> list[Group]:
    """Return findings joined where they overlap, by start. A kind that `actions` lacks is BLOCK."""
    found: list[Group] = []
    members: list[tuple[Finding, Action]] = []
    end = -1
    for finding in sorted(findings, key=lambda item: (item.start, item.end)):
        if members and finding.start >= end:
            found.append(_group(members))
            members = []
        members.append((finding, actions.get(finding.kind, Action.BLOCK)))
        end = max(end, finding.end) if len(members) > 1 else finding.end
    if members:
        found.append(_group(members))
    return found


def _group(members: list[tuple[Finding, Action]]) -> Group:
    strictest = max(STRICTNESS[action] for _, action in members)
    leading = max(
        (finding for finding, action in members if STRICTNESS[action] == strictest), key=lambda item: item.score
    )
    # What passes edits nothing, so that only the others give the span.
    editing = [finding for finding, action in members if action is not Action.PASS] or [members[0][0]]
    return Group(
        start=min(finding.start for finding in editing),
        end=max(finding.end for finding in editing),
        action=max((action for _, action in members), key=STRICTNESS.__getitem__),
        leading=leading,
        members=tuple(members),
    )


def replacement(group: Group, value: str, surrogates: Surrogates | None) -> str:
    """Return what stands in place of `value`, the text of `group`, which MUST not be a BLOCK."""
    if group.action is Action.PASS:
        return value
    if group.action is Action.TOKENISE and surrogates is not None:
        return surrogates.issue(group.leading.kind, value)
    return f"[{group.leading.kind}]"


def redact(
    text: str, findings: Sequence[Finding], actions: Mapping[str, Action], surrogates: Surrogates | None
) -> Redacted:
    """Return `text` edited by what `actions` says about each kind; `findings` are of this very text."""
    parts: list[str] = []
    done: list[tuple[Finding, Action]] = []
    position = 0
    for group in groups(findings, actions):
        done.extend(group.members)
        if group.action is Action.BLOCK:
            return Redacted(text="", findings=tuple(done), blocked=group.leading)
        parts.append(text[position : group.start])
        parts.append(replacement(group, text[group.start : group.end], surrogates))
        position = group.end
    parts.append(text[position:])
    return Redacted(text="".join(parts), findings=tuple(done), blocked=None)

"""Editing a text by its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.inspection.findings import STRICTNESS, Action, Finding
from shared.inspection.surrogates import Surrogates


@dataclass(frozen=True, kw_only=True)
class Redacted:
    """A text after its obligations. `blocked` is the first finding that forbids it; `text` is then empty."""

    text: str
    findings: tuple[tuple[Finding, Action], ...]
    blocked: Finding | None


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a span: the strictest action of the findings that overlap there, over the union of them."""

    start: int
    end: int
    action: Action
    leading: Finding

    def replacement(self, value: str, surrogates: Surrogates | None) -> str:
        """Return what stands in place of `value`, the text of the span. MUST not be asked of a BLOCK."""
        if self.action is Action.TOKENISE and surrogates is not None:
            return surrogates.issue(self.leading.kind, value)
        return f"[{self.leading.kind}]"


def action_of(finding: Finding, actions: Mapping[str, Action]) -> Action:
    """Return what `actions` says about the kind of `finding`: BLOCK where it says nothing."""
    return actions.get(finding.kind, Action.BLOCK)


def edits(findings: Sequence[Finding], actions: Mapping[str, Action]) -> list[Edit]:
    """Return the edits by start, none overlapping another. What passes edits nothing and joins nothing."""
    done: list[Edit] = []
    for finding in sorted(findings):
        action = action_of(finding, actions)
        if action is Action.PASS:
            continue
        edit = Edit(start=finding.start, end=finding.end, action=action, leading=finding)
        done.append(_joined(done.pop(), edit) if done and finding.start < done[-1].end else edit)
    return done


def _joined(first: Edit, second: Edit) -> Edit:
    stricter = max(first, second, key=lambda edit: (STRICTNESS[edit.action], edit.leading.score))
    return Edit(start=first.start, end=max(first.end, second.end), action=stricter.action, leading=stricter.leading)


def redact(
    text: str, findings: Sequence[Finding], actions: Mapping[str, Action], surrogates: Surrogates | None
) -> Redacted:
    """Return `text` edited by what `actions` says about each kind; `findings` MUST be of this very text.

    REDACT puts the kind in brackets. TOKENISE puts a surrogate, or does as REDACT where `surrogates` is None.
    """
    done = tuple((finding, action_of(finding, actions)) for finding in sorted(findings))
    parts: list[str] = []
    position = 0
    for edit in edits(findings, actions):
        if edit.action is Action.BLOCK:
            return Redacted(text="", findings=done, blocked=edit.leading)
        parts.append(text[position : edit.start])
        parts.append(edit.replacement(text[edit.start : edit.end], surrogates))
        position = edit.end
    parts.append(text[position:])
    return Redacted(text="".join(parts), findings=done, blocked=None)

"""What detectors report, and what can be done about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Action(enum.StrEnum):
    """What is done about a kind of finding, mildest first. A kind without an action is BLOCK."""

    PASS = "PASS"  # noqa: S105  (not a password)
    TOKENISE = "TOKENISE"
    REDACT = "REDACT"
    BLOCK = "BLOCK"


STRICTNESS = {action: rank for rank, action in enumerate(Action)}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A span of a text, by code points of the text as it was given, and what it seems to be. Never the text itself."""

    kind: str
    detector: str
    start: int
    end: int
    score: float = 1.0
    label: str = ""

    @property
    def category(self) -> str:
        """PERSONAL or SECRET for the kinds that begin so, else the kind itself."""
        prefix = self.kind.partition("_")[0]
        return prefix if prefix in ("PERSONAL", "SECRET") else self.kind


HOLD_BACK = "HOLD_BACK"
"""Kind of the finding that cuts a stream whose open matches outgrew the hold-back limit."""

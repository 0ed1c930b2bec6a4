"""Runs every detector over a text, raw and normalised, and says up to where nothing can change any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import regex

from shared.inspection import encoding, patterns
from shared.inspection.findings import Finding
from shared.inspection.normalisation import Normalised, normalise
from shared.inspection.patterns import Rule

_DIGIT = regex.compile(r"\d")
# No single match may take longer: hostile text must not hold a worker. A timeout fails closed in the caller.
MATCH_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Findings in the text, every span that any detector considered, and the offset before which both are final."""

    findings: tuple[Finding, ...]
    spans: tuple[tuple[int, int], ...]
    stable: int


class Scanner:
    """A fixed set of detectors. Immutable; safe to share between threads."""

    def __init__(
        self, *, topics: Mapping[str, Sequence[str]] | None = None, control_tokens: bool = True, injection: bool = True
    ) -> None:
        """Detect personal data and secrets always; deny-listed `topics`, control tokens and injections as asked."""
        self._rules: tuple[Rule, ...] = (
            *patterns.PERSONAL,
            *patterns.SECRET,
            *(patterns.INJECTION if injection else ()),
            *(patterns.CONTROL if control_tokens else ()),
            *patterns.topics(topics or {}),
        )

    def scan(self, text: str) -> tuple[Finding, ...]:
        """Return the findings of a whole text, by start. Raises TimeoutError on text made to be slow."""
        return self.examine(text, begin=0, final=True).findings

    def examine(self, text: str, *, begin: int, final: bool) -> Scan:
        """Scan `text` from `begin` on; what is before it is seen by look-behinds only.

        Unless `final`, the text may go on: findings are then certain only up to `stable`.
        """
        findings: list[Finding] = []
        spans: list[tuple[int, int]] = []
        stable = len(text)
        views: list[tuple[str, Normalised | None]] = [(text, None)]
        if (normal := normalise(text)) is not None:
            views.append((normal.text, normal))
        for view, origin in views:
            start = begin if origin is None else _position(origin, begin)
            for rule in self._rules:
                if not final:
                    stable = min(stable, _open_start(rule.grow, view, start, origin))
                for match in self._matches(rule, view, start):
                    span = match.span() if origin is None else origin.raw_span(*match.span())
                    spans.append(span)
                    if rule.valid is None or rule.valid(match.group()):
                        findings.append(_finding(rule, span))
        for name, find, grow, decode in encoding.FORMS:
            if not final:
                stable = min(stable, _open_start(grow, text, begin, None))
            for match in find.finditer(text, pos=begin, timeout=MATCH_SECONDS):
                spans.append(match.span())
                findings.extend(self._within(name, match.group(), decode, match.span(), depth=1))
        unique = sorted(set(findings), key=lambda item: (item.start, item.end, item.kind, item.detector))
        return Scan(findings=tuple(unique), spans=tuple(spans), stable=_settle(stable, spans, len(text), final))

    @staticmethod
    def _matches(rule: Rule, view: str, start: int) -> Iterator[regex.Match[str]]:
        if rule.needs and not any(needed in view for needed in rule.needs):
            return iter(())
        if rule.needs_digit and _DIGIT.search(view, pos=start) is None:
            return iter(())
        return rule.search.finditer(view, pos=start, timeout=MATCH_SECONDS)

    def _within(
        self, name: str, blob: str, decode: encoding.Decode, span: tuple[int, int], *, depth: int
    ) -> Iterator[Finding]:
        """Yield what a blob hides, each finding covering the whole blob: it cannot be edited inside."""
        plain = encoding.decoded(blob, decode)
        if plain is None:
            return
        hidden = normalise(plain)
        for rule in self._rules:
            for view in (plain,) if hidden is None else (plain, hidden.text):
                if any(rule.valid is None or rule.valid(match.group()) for match in self._matches(rule, view, 0)):
                    yield Finding(
                        kind=rule.kind,
                        detector=f"{name}/{rule.name}",
                        start=span[0],
                        end=span[1],
                        score=rule.score,
                        label=rule.label,
                    )
        if depth < encoding.MAX_DEPTH:
            for inner, find, _, inner_decode in encoding.FORMS:
                for match in find.finditer(plain, timeout=MATCH_SECONDS):
                    yield from self._within(f"{name}/{inner}", match.group(), inner_decode, span, depth=depth + 1)


def _finding(rule: Rule, span: tuple[int, int]) -> Finding:
    return Finding(kind=rule.kind, detector=rule.name, start=span[0], end=span[1], score=rule.score, label=rule.label)


def _position(origin: Normalised, raw: int) -> int:
    """Return the first normalised position that comes from `raw` or later."""
    low, high = 0, len(origin.origin)
    while low < high:
        middle = (low + high) // 2
        if origin.origin[middle] < raw:
            low = middle + 1
        else:
            high = middle
    return low


def _open_start(grow: regex.Pattern[str], view: str, start: int, origin: Normalised | None) -> int:
    """Return where the leftmost match that more text could make or change begins."""
    match = grow.search(view, pos=start, partial=True, timeout=MATCH_SECONDS)
    if match is None:
        return len(view) if origin is None else origin.length
    return match.start() if origin is None else origin.raw(match.start())


def _settle(stable: int, spans: Sequence[tuple[int, int]], length: int, final: bool) -> int:
    """Move `stable` before every span that it would cut, and before one that could still see what follows it."""
    if final:
        return length
    changed = True
    while changed:
        changed = False
        for start, end in spans:
            if start < stable and (end > stable or end > length - patterns.LOOK_AHEAD):
                stable, changed = start, True
    return stable

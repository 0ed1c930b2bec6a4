"""Runs every detector over a text, raw and normalised, and says up to where nothing can change any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.inspection import credentials, encoding, patterns
from shared.inspection.findings import Finding
from shared.inspection.normalisation import normalise
from shared.inspection.rules import AT_HEX, AT_UNSEEN, LOOK_BEHIND, Effort, Rule, View, growing

# Of so few characters a search costs no more than a match.
_SHORT = 64


@dataclass(frozen=True, kw_only=True)
class Behind:
    """The end of what precedes a text, as it was and normalised: what look-behinds may see of it."""

    raw: str = ""
    normal: str = ""

    def then(self, text: str) -> Behind:
        """Return what is behind the text that follows `text`."""
        normal = normalise(text)
        return Behind(
            raw=(self.raw + text)[-LOOK_BEHIND:],
            normal=(self.normal + (text if normal is None else normal.text))[-LOOK_BEHIND:],
        )


START = Behind()


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Findings in the text, and the offset before which they are final and all; no candidate lies across it."""

    findings: tuple[Finding, ...]
    stable: int


class Scanner:
    """A fixed set of detectors. Immutable; safe to share between threads."""

    def __init__(
        self, *, topics: Mapping[str, Sequence[str]] | None = None, control_tokens: bool = True, injection: bool = True
    ) -> None:
        """Detect personal data and secrets always; deny-listed `topics`, control tokens and injections as asked."""
        self._rules: tuple[Rule, ...] = (
            *patterns.PERSONAL,
            *credentials.SECRET,
            *(patterns.INJECTION if injection else ()),
            *(patterns.CONTROL if control_tokens else ()),
            *patterns.topics(topics or {}),
        )
        self._growing = growing(self._rules, [(form.lead, form.search) for form in encoding.FORMS])

    def scan(self, text: str) -> tuple[Finding, ...]:
        """Return the findings of a whole text, by start. Raises TimeoutError as `scan_all` does."""
        return self.scan_all([text])[0]

    def scan_all(self, texts: Sequence[str]) -> tuple[tuple[Finding, ...], ...]:
        """Return the findings of each of several whole texts, by start.

        Raises TimeoutError on text made to be slow: when all searches, those of decoded texts too, take more of the
        processor than SCAN_SECONDS and as long again for each SCAN_CHARACTERS of the texts (0.25 s; 1.25 s at 256 KiB),
        a search that is under way as long again at most; or when more than MAX_DECODED_TEXTS different texts (4096), or
        MAX_DECODED_CHARACTERS in all (1 Mi), come out of their encodings. Callers MUST then refuse the texts.
        """
        effort = Effort(sum(map(len, texts)))
        return tuple(self._examine(text, START, effort, final=True).findings for text in texts)

    def examine(
        self, text: str, *, behind: Behind, final: bool, keep: Sequence[tuple[int, int]] = (), before: int | None = None
    ) -> Scan:
        """Scan `text`, which follows `behind`. Raises TimeoutError as `scan_all` does.

        Unless `final`, the text may go on. `keep` are spans that the stable offset must not cut either, and `before`
        an offset that it must not pass.
        """
        return self._examine(text, behind, Effort(len(text)), final=final, keep=keep, before=before)

    def _examine(
        self,
        text: str,
        behind: Behind,
        effort: Effort,
        *,
        final: bool,
        keep: Sequence[tuple[int, int]] = (),
        before: int | None = None,
    ) -> Scan:
        views = _views(text, behind, effort)
        stable = len(text) if before is None else before
        if not final:
            stable = min(stable, *(self._open(view, len(text)) for view in views))
            if stable == 0:
                return Scan(findings=(), stable=0)
        findings: set[Finding] = set()
        spans = list(keep)
        # What a blob hides; texts repeat their words.
        hidden: dict[tuple[str, str], set[tuple[str, Rule]]] = {}
        for view in views:
            for rule in self._rules:
                for (start, end), valid_end in rule.candidates(view):
                    spans.append(view.span(start, end))
                    if valid_end is not None:
                        findings.add(_finding(rule, rule.name, view.span(start, valid_end)))
            for form, blob, (start, end) in _blobs(view):
                span = view.span(start, end)
                spans.append(span)
                if (form.name, blob) not in hidden:
                    hidden[form.name, blob] = set(self._within(form, blob, effort, depth=1))
                findings.update(_finding(rule, f"{name}/{rule.name}", span) for name, rule in hidden[form.name, blob])
        for start, end in sorted(spans, reverse=True):
            if start < stable < end:
                stable = start
        ordered = sorted(
            (item for item in findings if item.end <= stable),
            key=lambda item: (item.start, item.end, item.kind, item.detector),
        )
        return Scan(findings=tuple(ordered), stable=stable)

    def _open(self, view: View, length: int) -> int:
        """Return where the leftmost match that more text could make or change begins."""
        # What is held for long mostly begins where the text does.
        if len(view.text) - view.start > _SHORT:
            for pattern in self._growing:
                if pattern.match(view.text, pos=view.start, partial=True, timeout=view.effort.seconds()):
                    return view.offset(view.start, length)
        found = length
        for pattern in self._growing:
            match = pattern.search(view.text, pos=view.start, partial=True, timeout=view.effort.seconds())
            if match is not None:
                found = min(found, view.offset(match.start(), length))
        return found

    def _within(self, form: encoding.Form, blob: str, effort: Effort, *, depth: int) -> Iterator[tuple[str, Rule]]:
        """Yield what a blob hides and in which encodings. It cannot be edited inside, so that where does not matter."""
        effort.seconds()
        for plain in encoding.plain_texts(blob, form):
            effort.decode(plain)
            for view in _views(plain, START, effort):
                for rule in self._rules:
                    if any(valid_end is not None for _, valid_end in rule.candidates(view)):
                        yield form.name, rule
                if depth < encoding.MAX_DEPTH:
                    for inner, inner_blob, _ in _blobs(view):
                        for name, rule in self._within(inner, inner_blob, effort, depth=depth + 1):
                            yield f"{form.name}/{name}", rule


def _views(text: str, behind: Behind, effort: Effort) -> list[View]:
    views = [View(behind.raw + text, len(behind.raw), range(len(text)), effort)]
    normal = normalise(text)
    if normal is not None:
        views.append(View(behind.normal + normal.text, len(behind.normal), normal.origin, effort))
    elif behind.raw != behind.normal:
        views.append(View(behind.normal + text, len(behind.normal), range(len(text)), effort))
    return views


def _blobs(view: View) -> Iterator[tuple[encoding.Form, str, tuple[int, int]]]:
    for form in encoding.FORMS:
        if view.longest_word < form.shortest or not any(needed in view.text for needed in form.needs):
            continue
        if (form.lead == AT_HEX and not view.has_digit) or (form.lead == AT_UNSEEN and not view.has_unseen):
            continue
        for match in form.search.finditer(view.text, view.start):
            yield form, match.group(), match.span()


def _finding(rule: Rule, detector: str, span: tuple[int, int]) -> Finding:
    return Finding(kind=rule.kind, detector=detector, start=span[0], end=span[1], score=rule.score, label=rule.label)

"""However a text is cut into pieces, what comes out is what the whole text, inspected at once, allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.inspection.findings import HOLD_BACK, Action, Finding
from shared.inspection.patterns import KINDS
from shared.inspection.redaction import Surrogates, groups, redact, replacement
from shared.inspection.scanner import Scanner
from shared.inspection.streaming import Released, StreamInspector
from tests.unit.shared.inspection import samples

KEY = bytes(32)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def issued() -> Surrogates:
    surrogates = Surrogates(KEY)
    surrogates.issue("PERSONAL_EMAIL", "ada@example.org")
    surrogates.issue("PERSONAL_IBAN", "DE89 3704 0044 0532 0130 00")
    return surrogates


SURROGATES = tuple(issued()._values)
INVENTED = "<PERSONAL_EMAIL:aaaaaaaaaaaaaaaa>"


def inspected(
    pieces: Sequence[str],
    actions: Mapping[str, Action] = samples.REDACT_ALL,
    *,
    restore: bool = False,
    max_held: int = 1 << 20,
    scanner: Scanner = samples.SCANNER,
) -> tuple[Released, list[str]]:
    """Return everything joined, and the text of each release."""
    inspector = StreamInspector(scanner, actions, surrogates=issued(), restore=restore, max_held=max_held)
    steps = [inspector.feed(piece) for piece in pieces]
    steps.append(inspector.finish())
    cut_at = next((index for index, step in enumerate(steps) if step.cut is not None), len(steps))
    assert all(step.text == "" and not step.findings for step in steps[cut_at + 1 :])
    assert all(step.cut == steps[-1].cut for step in steps[cut_at:])
    return (
        Released(
            text="".join(step.text for step in steps),
            findings=tuple(item for step in steps for item in step.findings),
            cut=steps[-1].cut,
        ),
        [step.text for step in steps],
    )


def reference(
    text: str, actions: Mapping[str, Action], scanner: Scanner = samples.SCANNER
) -> tuple[str, tuple[tuple[Finding, Action], ...], Finding | None]:
    """Return what the whole text gives: edited up to the first finding that blocks."""
    parts: list[str] = []
    done: list[tuple[Finding, Action]] = []
    position = 0
    for group in groups(scanner.scan(text), actions):
        if group.action is Action.BLOCK:
            return "".join(parts) + text[position : group.start], tuple(done), group.leading
        done.extend(group.members)
        if group.action is not Action.PASS:
            parts += [text[position : group.start], replacement(group, text[group.start : group.end], None)]
            position = group.end
    return "".join(parts) + text[position:], tuple(done), None


def assert_same(pieces: Sequence[str], actions: Mapping[str, Action] = samples.REDACT_ALL) -> None:
    released, _ = inspected(pieces, actions)
    text, findings, cut = reference("".join(pieces), actions)
    assert released.text == text
    assert set(released.findings) == set(findings)
    assert len(released.findings) == len(findings)
    assert released.cut == cut


@st.composite
def seeded(draw: st.DrawFn) -> str:
    """Return text in which values, whole, cut short or disguised, touch one another and tempting neighbours."""
    filler = st.one_of(
        st.sampled_from(
            [" ", "", "\n", ", ", ".", "-", ":", "=", "\u200b", "\u202e", "\u0301", "\ufe0f", "\U000e0020", "00", " 00"]
            + [" 12", "1", "A", " ABCD", " 1234", "x", "é", "ß", "ﬁ", "ſ", "…", "½", "%41", "/", "@", "+", "<", "|>"]
            + ["version ", "Version 1.", "password: ", "user", "-----", "-----END PRIVATE KEY-----", " the end. ", "0x"]
        ),
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6),
        st.text(alphabet="0123456789 -.+()", max_size=12),
        st.sampled_from([*SURROGATES, INVENTED]),
    )
    value = st.sampled_from(samples.VALUES)
    short = st.tuples(value, st.integers(1, 40)).map(lambda pair: pair[0][: pair[1]])
    disguised = st.tuples(value, st.sampled_from(samples.CHARACTERWISE + samples.ENCODINGS)).map(lambda p: p[1](p[0]))
    parts = draw(st.lists(st.one_of(filler, filler, value, value, short, disguised), min_size=1, max_size=9))
    return "".join(parts)


def cut_at(text: str, offsets: Sequence[int]) -> list[str]:
    edges = [0, *sorted(min(offset, len(text)) for offset in offsets), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize("value", samples.VALUES)
@pytest.mark.parametrize("around", [("", ""), ("a ", " b"), ("(", ")."), ("x: ", "\u200b\u200b\n12 34"), ("é", "é")])
def test_every_two_way_split_is_the_same(value: str, around: tuple[str, str]) -> None:
    text = value.join(around)
    for offset in range(len(text) + 1):
        assert_same([text[:offset], text[offset:]])


@pytest.mark.parametrize("value", samples.VALUES)
@pytest.mark.parametrize("disguise", samples.CHARACTERWISE + samples.ENCODINGS)
def test_disguised_values_are_the_same_character_by_character(value: str, disguise: object) -> None:
    assert callable(disguise)
    assert_same(list(f"So: {disguise(value)} and more"))
    assert_same(list(f"{disguise(value)}"))


@MANY
@given(text=seeded())
def test_character_by_character_is_the_same(text: str) -> None:
    assert_same(list(text))


@MANY
@given(text=seeded(), offsets=st.lists(st.integers(0, 400), max_size=8))
def test_any_split_is_the_same(text: str, offsets: list[int]) -> None:
    assert_same(cut_at(text, offsets))


@MANY
@given(
    text=seeded(),
    offsets=st.lists(st.integers(0, 400), max_size=8),
    actions=st.dictionaries(st.sampled_from(KINDS), st.sampled_from(list(Action)), min_size=10),
)
def test_any_split_is_the_same_whatever_the_actions(text: str, offsets: list[int], actions: dict[str, Action]) -> None:
    assert_same(cut_at(text, offsets), actions)
    assert_same(list(text), actions)


@MANY
@given(
    text=seeded(),
    offsets=st.lists(st.integers(0, 400), max_size=8),
    actions=st.dictionaries(st.sampled_from(KINDS), st.sampled_from(list(Action))),
    held=st.integers(0, 300),
    repeat=st.integers(1, 12),
)
def test_restoring_and_the_limit_are_the_same_for_any_split(
    text: str, offsets: list[int], actions: dict[str, Action], held: int, repeat: int
) -> None:
    text *= repeat
    actions = {**samples.REDACT_ALL, **actions}
    whole, _ = inspected([text], actions, restore=True, max_held=held)
    assert inspected(cut_at(text, offsets), actions, restore=True, max_held=held)[0] == whole
    assert inspected(list(text), actions, restore=True, max_held=held)[0] == whole

"""Stop strings over streamed text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model_server.stops import MAX_STOP_LENGTH, MAX_STOPS, StopScanner
from shared import errors

texts = st.text("ab\n", max_size=40)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    released = "".join(scanner.feed(piece) for piece in pieces)
    if not scanner.stopped:
        released += scanner.finish()
    return released, scanner.stopped


def reference(stops: list[str], text: str) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(stop_lists, texts)
def test_text_is_cut_before_the_stop_string_that_ends_first(stops: list[str], text: str) -> None:
    assert run(stops, [text]) == reference(stops, text)


@given(stop_lists, st.lists(texts, max_size=8))
def test_the_outcome_does_not_depend_on_how_the_text_is_cut(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == run(stops, ["".join(pieces)])


@given(stop_lists, texts)
def test_only_a_possible_start_of_a_stop_string_is_held_back(stops: list[str], text: str) -> None:
    scanner = StopScanner(stops)
    released = ""
    for index, character in enumerate(text):
        released += scanner.feed(character)
        if scanner.stopped:
            return
        seen = text[: index + 1]
        held = seen[len(released) :]
        assert seen == released + held
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        assert not any(stop.startswith(seen[start:]) for start in range(len(released)) for stop in stops), (
            "released what a stop string could still begin with"
        )


def test_nothing_is_released_after_a_stop_string() -> None:
    scanner = StopScanner(["END"])
    assert scanner.feed("answer EN") == "answer "
    assert scanner.feed("D more") == ""
    assert scanner.stopped
    assert scanner.feed("and more") == ""


def test_a_held_prefix_is_released_when_the_match_fails() -> None:
    scanner = StopScanner(["aab"])
    assert scanner.feed("aa") == ""
    assert scanner.feed("a") == "a"
    assert scanner.feed("b") == ""
    assert scanner.stopped


@pytest.mark.parametrize("stops", [[""], ["x" * (MAX_STOP_LENGTH + 1)], ["x"] * (MAX_STOPS + 1)])
def test_empty_overlong_and_surplus_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        StopScanner(stops)
    assert refused.value.field == "stop"

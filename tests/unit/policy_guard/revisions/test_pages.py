from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy_guard.pages import decode_page_token, encode_page_token, page_size
from shared.errors import InvalidArgument

KEYS = re.compile(r"[a-z]{1,8}")


@given(st.from_regex(KEYS, fullmatch=True))
def test_a_token_gives_its_key_back(key: str) -> None:
    assert decode_page_token(encode_page_token(key), KEYS) == key


@given(st.one_of(st.text(max_size=600), st.text().filter(lambda x: not KEYS.fullmatch(x)).map(encode_page_token)))
def test_any_other_text_is_an_invalid_argument(token: str) -> None:
    try:
        key = decode_page_token(token, KEYS)
    except InvalidArgument:
        return
    assert encode_page_token(key) == token


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        decode_page_token("nonsense", KEYS)
    assert refusal.value.field == "page_token"


@pytest.mark.parametrize(("requested", "given"), [(0, 50), (1, 1), (200, 200)])
def test_a_page_has_the_size_that_was_asked_for(requested: int, given: int) -> None:
    assert page_size(requested) == given


@pytest.mark.parametrize("requested", [-1, 201])
def test_other_page_sizes_are_refused(requested: int) -> None:
    with pytest.raises(InvalidArgument):
        page_size(requested)

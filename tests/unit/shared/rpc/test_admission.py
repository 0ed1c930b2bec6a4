"""Places of calls: how many there are, whose they are, and that they are given back."""

from __future__ import annotations

import contextlib

import pytest

from shared.rpc.admission import Busy, Places


def test_nobody_waits_for_a_place_and_one_that_is_given_back_is_free() -> None:
    places = Places(2, of_one=2)
    with places.place():
        with places.place(), pytest.raises(Busy) as caught, places.place():
            pass
        assert caught.value.retry_after
        with places.place():
            pass


def test_one_caller_takes_its_share_and_leaves_the_rest() -> None:
    places = Places(10, of_one=2)
    with places.share("a"), places.share("a"):
        with pytest.raises(Busy), places.share("a"):
            pass
        with places.share("b"):
            pass
    with places.share("a"):
        pass


def test_a_place_is_given_back_whatever_happens_and_no_caller_is_kept_in_mind() -> None:
    places = Places(1, of_one=1)
    for caller in map(str, range(100)):
        with contextlib.suppress(ValueError), places.place(), places.share(caller):
            raise ValueError
    with places.place(), places.share("0"):
        pass
    assert not places._taken

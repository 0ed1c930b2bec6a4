"""Turns of long scans: short ones do not wait, a principal waits for itself alone, and giving up is no second turn."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from services.policy_guard.scans import INLINE_CHARACTERS, Scans

LONG = INLINE_CHARACTERS + 1


@pytest.fixture
async def scans() -> AsyncIterator[Scans]:
    scans = Scans()
    yield scans
    scans.close()


class Held:
    """A scan that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(10)
        return "done"

    async def running(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 10)


async def test_a_long_scan_is_off_the_loop_and_a_short_one_on_it(scans: Scans) -> None:
    here = threading.get_ident()
    assert await scans.run("a", INLINE_CHARACTERS, threading.get_ident) == here
    assert await scans.run("a", LONG, threading.get_ident) != here


async def test_a_principal_waits_for_its_own_long_scan_and_others_do_not(scans: Scans) -> None:
    first, second = Held(), Held()
    one = asyncio.create_task(scans.run("a", LONG, first))
    two = asyncio.create_task(scans.run("a", LONG, second))
    await first.running()
    assert await scans.run("b", LONG, lambda: "b") == "b"
    assert await scans.run("a", 1, lambda: "short") == "short"
    assert not second.begun.is_set()
    first.go_on.set()
    second.go_on.set()
    assert [await one, await two] == ["done", "done"]


async def test_giving_up_does_not_give_the_next_turn_before_the_scan_is_over(scans: Scans) -> None:
    first, second = Held(), Held()
    one = asyncio.create_task(scans.run("a", LONG, first))
    await first.running()
    one.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await one
    two = asyncio.create_task(scans.run("a", LONG, second))
    assert await scans.run("b", LONG, lambda: "b") == "b"
    assert not second.begun.is_set()
    first.go_on.set()
    second.go_on.set()
    assert await two == "done"


async def test_what_a_scan_raises_reaches_its_caller_and_ends_its_turn(scans: Scans) -> None:
    def slow() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await scans.run("a", LONG, slow)
    assert await scans.run("a", LONG, lambda: 1) == 1


async def test_no_principal_is_kept_in_mind(scans: Scans) -> None:
    for name in map(str, range(20)):
        await scans.run(name, LONG, lambda: 1)
    await asyncio.sleep(0)
    assert len(scans._turns) <= 1

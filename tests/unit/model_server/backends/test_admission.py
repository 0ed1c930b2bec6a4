"""Admission by pages and places."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.model_server.backends.admission import Admission
from shared import errors
from tests.metrics import scraped


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """Holds pages until told to let go."""

    def __init__(self, admission: Admission, pages: int) -> None:
        self.holding = False
        self._release = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, pages))

    async def _run(self, admission: Admission, pages: int) -> None:
        async with admission.hold(pages):
            self.holding = True
            await self._release.wait()
        self.holding = False

    async def release(self) -> None:
        self._release.set()
        await self.task
        await settle()


async def test_pages_and_places_both_bound_who_holds() -> None:
    admission = Admission(pages=10, places=2, max_waiting=10)
    holders = [Holder(admission, pages) for pages in (6, 5, 1)]
    await settle()
    assert [holder.holding for holder in holders] == [True, False, False]
    await holders[0].release()
    assert [holder.holding for holder in holders[1:]] == [True, True]
    late = Holder(admission, 1)
    await settle()
    assert not late.holding
    await holders[1].release()
    assert late.holding
    await asyncio.gather(holders[2].release(), late.release())


async def test_nobody_overtakes() -> None:
    admission = Admission(pages=4, places=9, max_waiting=9)
    first, large, small = Holder(admission, 2), Holder(admission, 4), Holder(admission, 1)
    await settle()
    assert [first.holding, large.holding, small.holding] == [True, False, False]
    await first.release()
    assert [large.holding, small.holding] == [True, False]
    await large.release()
    await small.release()


async def test_a_full_line_refuses_at_once() -> None:
    admission = Admission(pages=1, places=1, max_waiting=0)
    async with AsyncExitStack() as held:
        await held.enter_async_context(admission.hold(1))
        with pytest.raises(errors.ResourceExhausted):
            await held.enter_async_context(admission.hold(1))
    async with admission.hold(1):
        pass


async def test_a_cancelled_waiter_makes_way() -> None:
    admission = Admission(pages=4, places=9, max_waiting=9)
    first, large, small = Holder(admission, 2), Holder(admission, 4), Holder(admission, 1)
    await settle()
    large.task.cancel()
    await settle()
    assert small.holding
    await asyncio.gather(first.release(), small.release())
    async with admission.hold(4):
        pass


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_waiter_cancelled_as_its_turn_comes_loses_nothing(cancel_first: bool) -> None:
    admission = Admission(pages=1, places=1, max_waiting=9)
    first, second, third = (Holder(admission, 1) for _ in range(3))
    await settle()
    first._release.set()
    if cancel_first:
        second.task.cancel()
        await settle()
    else:
        await asyncio.sleep(0)  # `first` gives back, `second` is admitted but has not run
        second.task.cancel()
        await settle()
    assert third.holding
    await third.release()
    async with admission.hold(1):
        pass


def calls() -> tuple[float, float]:
    return scraped("bastide_backend_calls", state="running"), scraped("bastide_backend_calls", state="waiting")


async def test_calls_that_run_and_wait_are_shown_over_all_engines() -> None:
    one, other = (Admission(pages=4, places=1, max_waiting=9) for _ in range(2))
    running, waiting = calls()
    holders = [Holder(one, 1), Holder(one, 1), Holder(one, 1), Holder(other, 1)]
    await settle()
    assert calls() == (running + 2, waiting + 2)
    holders[1].task.cancel()
    await settle()
    assert calls() == (running + 2, waiting + 1)
    await holders[0].release()
    assert calls() == (running + 2, waiting)
    late = Holder(one, 1)
    await settle()
    late.task.cancel()
    await holders[2].release()  # in the turn of the loop in which it is cancelled
    await holders[3].release()
    await asyncio.gather(late.task, holders[1].task, return_exceptions=True)
    assert calls() == (running, waiting)

"""What remote backends believe of an answer, and what they take for nonsense."""

from __future__ import annotations

import asyncio

import pytest

from services.model_server.backends import Binding, Finish
from shared import errors
from tests.fakes.remote_model import GOOD, TEXT, RemoteModel, chunk, usage
from tests.unit.model_server.backends.remotes import KINDS, STREAMING, ask, collect, serving


async def test_the_answer_comes_with_its_usage_at_the_end(kind: str) -> None:
    async with serving(kind, RemoteModel()) as backend:
        pieces = await collect(backend, ask(kind))
        assert backend.abilities.binding is Binding.DECLARED
    assert "".join(piece.text for piece in pieces) == "".join(TEXT)
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + [Finish.STOP]
    assert sum(piece.tokens for piece in pieces) == 7
    assert [piece.prompt_tokens for piece in pieces] == [None] * (len(pieces) - 1) + [9]


USAGE = usage() | {"model": None}
DEEP = "[" * 200_000
BOUND = 64 + len("What is the capital of France?")


@pytest.mark.parametrize("stated", [1, BOUND])
async def test_the_servers_own_count_of_the_prompt_is_told_up_to_the_bound(kind: str, stated: int) -> None:
    async with serving(kind, RemoteModel(events=(*GOOD[:-2], usage(prompt=stated), "[DONE]"))) as backend:
        assert await backend.count_tokens(ask(kind).messages) == BOUND
        assert (await collect(backend, ask(kind)))[-1].prompt_tokens == stated


@pytest.mark.parametrize("stated", [0, -1, BOUND + 1, 1 << 70, "9", 9.0, True, None, {}])
async def test_a_count_of_the_prompt_that_cannot_be_is_passed_over(kind: str, stated: object) -> None:
    async with serving(kind, RemoteModel(events=(*GOOD[:-2], usage(prompt=stated), "[DONE]"))) as backend:
        last = (await collect(backend, ask(kind)))[-1]
    assert (last.prompt_tokens, last.finish) == (None, Finish.STOP)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param((chunk("Paris"), {"error": {"message": "secret", "type": "x"}}), id="error inside a 200"),
        pytest.param(({"error": "secret", "error_type": "generation"},), id="bare error inside a 200"),
        pytest.param((chunk("Paris"), "{not json"), id="garbage"),
        pytest.param((chunk("Paris"), "[1, 2]"), id="not an object"),
        pytest.param((chunk("Paris"), DEEP), id="nested too deeply"),
        pytest.param((chunk("Paris"), "{}"), id="empty object"),
        pytest.param((chunk("Paris"), None), id="connection broken"),
        pytest.param((None,), id="connection broken at once"),
        pytest.param((), id="nothing"),
        pytest.param(tuple(map(chunk, TEXT)), id="no end"),
        pytest.param((*map(chunk, TEXT), usage(), "[DONE]"), id="no finish reason"),
        pytest.param((*map(chunk, TEXT), chunk("", finish="stop"), "[DONE]"), id="no usage"),
        pytest.param((*GOOD[:-2], usage(21), "[DONE]"), id="more tokens than asked for"),
        pytest.param((*GOOD[:-2], usage("many"), "[DONE]"), id="usage is not a number"),
        pytest.param((*GOOD[:-2], usage(-1), "[DONE]"), id="negative usage"),
        pytest.param((*GOOD[:-1], chunk("more"), "[DONE]"), id="text after the end"),
        pytest.param((chunk("x", finish="because"), usage(), "[DONE]"), id="unknown finish reason"),
        pytest.param((chunk("Paris", model="other"), *GOOD), id="another model"),
        pytest.param((chunk("Paris", model=None), chunk("", finish="stop", model=None), USAGE), id="no model"),
        pytest.param((chunk("x" * 257), *GOOD[-3:-2], usage(1), "[DONE]"), id="fewer tokens than so much text has"),
        pytest.param((*GOOD[:-2], usage(0), "[DONE]"), id="text of no tokens"),
        pytest.param((chunk(7), *GOOD), id="content is not text"),
        pytest.param((chunk(choices=[{}, {}]), *GOOD), id="two answers"),
        pytest.param((chunk(choices="x"), *GOOD), id="choices are not a list"),
        pytest.param((*[chunk("x" * 1000)] * 6, *GOOD), id="endless text"),
        pytest.param((chunk("ok \ud800 x"), *GOOD), id="half a character"),
        pytest.param((chunk("ok \ude00"), *GOOD), id="the second half of a character"),
        pytest.param((*GOOD[:-3], chunk("\ud83d"), *GOOD[-3:]), id="half a character at the end"),
    ],
)
async def test_nonsense_ends_the_call_as_unavailable(
    kind: str, events: tuple[object, ...], request: pytest.FixtureRequest
) -> None:
    if KINDS[kind][2] and "text after the end" in request.node.name:
        pytest.skip("one body has nothing after its end")
    async with serving(kind, RemoteModel(events=events)) as backend:
        with pytest.raises(errors.BackendUnavailable) as failed:
            await collect(backend, ask(kind))
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is None


async def test_a_character_that_comes_in_two_halves_is_released_whole(kind: str) -> None:
    server = RemoteModel(events=(chunk("ok \ud83d"), chunk(""), chunk("\ude00"), *GOOD[-3:]))
    async with serving(kind, server) as backend:
        pieces = await collect(backend, ask(kind))
    assert "".join(piece.text for piece in pieces) == "ok 😀"
    assert all(piece.text.encode().decode() == piece.text for piece in pieces)


@pytest.mark.parametrize("kind", STREAMING)
async def test_a_model_that_is_named_once_is_believed_for_the_whole_answer(kind: str) -> None:
    ending = (chunk("", finish="stop", model=None), USAGE, "[DONE]")
    async with serving(kind, RemoteModel(events=(chunk("Paris"), *ending))) as backend:
        assert (await collect(backend, ask(kind)))[-1].finish is Finish.STOP


async def test_a_body_longer_than_any_answer_breaks_off(kind: str) -> None:
    server = RemoteModel(events=(*[chunk("x", padding="y" * 500_000)] * 20, *GOOD))
    async with serving(kind, server) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask(kind))


async def test_one_event_longer_than_any_breaks_off_and_many_short_ones_do_not(kind: str) -> None:
    server = RemoteModel(events=(chunk("x", padding="y" * (5 << 20)), *GOOD))
    async with serving(kind, server, max_context=100_000) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask(kind))
        if kind in STREAMING:
            server.events = (*[chunk("", padding="y" * (1 << 20))] * 6, *GOOD)
            assert (await collect(backend, ask(kind)))[-1].finish is Finish.STOP


async def test_a_compressed_answer_is_not_asked_for_and_refused_before_it_is_inflated(kind: str) -> None:
    server = RemoteModel(compressed=True)
    async with serving(kind, server) as backend:
        with pytest.raises(errors.BackendUnavailable):
            await collect(backend, ask(kind))
    assert server.headers[0]["accept-encoding"] == "identity"


async def test_a_stop_string_that_the_server_overlooks_is_cut_here(kind: str) -> None:
    async with serving(kind, RemoteModel()) as backend:
        pieces = await collect(backend, ask(kind, stop=("the cap",)))
    assert "".join(piece.text for piece in pieces) == "Paris is "
    assert pieces[-1].finish is Finish.STOP
    assert sum(piece.tokens for piece in pieces) >= 5


@pytest.mark.parametrize("catalogue", [pytest.param(DEEP, id="deep"), "{", "[]", "{}", '{"data": 7, "model_id": []}'])
async def test_a_probe_that_is_answered_with_nonsense_says_unhealthy_and_the_next_one_follows(
    kind: str, catalogue: str
) -> None:
    server = RemoteModel()
    async with serving(kind, server, probe_interval=0.02) as backend:
        server.catalogue = catalogue
        async with asyncio.timeout(20):
            while backend.healthy():
                await asyncio.sleep(0.01)
            server.catalogue = None
            while not backend.healthy():
                await asyncio.sleep(0.01)

"""The remote backends against a server that misbehaves in every way a test can ask for."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.model_server.backends import Binding, Finish, GenerationRequest, Piece
from services.model_server.backends.openai import OpenAIBackend
from services.model_server.backends.remote import RemoteBackend, RemoteSettings
from services.model_server.backends.tgi import TgiBackend
from services.model_server.config import RemoteBackendSettings
from services.model_server.template import Message
from shared import errors
from tests.fakes.remote_model import GOOD, MODEL, TEXT, RemoteModel, chunk, usage

# Backend, path of the API, and whether answers are fetched whole.
KINDS = {
    "openai": (OpenAIBackend, "/v1", False),
    "openai whole": (OpenAIBackend, "/v1", True),
    "tgi": (TgiBackend, "", False),
}


STREAMING = [kind for kind, (_, _, whole) in KINDS.items() if not whole]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str, url: str, **settings: Any) -> RemoteBackend:
    backend, path, _ = KINDS[kind]
    return backend(RemoteSettings(**({"url": url + path, "model": MODEL, "max_context": 100} | settings)))


@asynccontextmanager
async def serving(kind: str, server: RemoteModel, **settings: Any) -> AsyncIterator[RemoteBackend]:
    server.tgi = kind == "tgi"
    async with server.running():
        backend = build(kind, server.url, **settings)
        await backend.start()
        try:
            yield backend
        finally:
            await backend.close()


def ask(kind: str, **parameters: Any) -> GenerationRequest:
    messages = [Message(role="user", content="What is the capital of France?")]
    usual = {"messages": messages, "max_new_tokens": 20, "timeout": 30.0, "temperature": 0.0, "whole": KINDS[kind][2]}
    return GenerationRequest(**(usual | parameters))


async def collect(backend: RemoteBackend, request: GenerationRequest) -> list[Piece]:
    async with aclosing(backend.generate(request)) as pieces:
        return [piece async for piece in pieces]


async def test_the_answer_comes_with_its_usage_at_the_end(kind: str) -> None:
    async with serving(kind, RemoteModel()) as backend:
        pieces = await collect(backend, ask(kind))
        assert backend.abilities.binding is Binding.DECLARED
    assert "".join(piece.text for piece in pieces) == "".join(TEXT)
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + [Finish.STOP]
    assert sum(piece.tokens for piece in pieces) == 7
    assert [piece.prompt_tokens for piece in pieces] == [None] * (len(pieces) - 1) + [9]


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


async def test_the_parameters_reach_the_server_as_asked(kind: str) -> None:
    server = RemoteModel()
    penalties = {} if kind == "tgi" else {"presence_penalty": 0.5, "frequency_penalty": -1.0}
    async with serving(kind, server, seed=True, penalties=bool(penalties)) as backend:
        await collect(backend, ask(kind, temperature=0.5, top_p=0.9, seed=3, stop=("x",), **penalties))
    (sent,) = server.requests
    assert sent["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    expected = {
        **{"max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"]},
        **penalties,
    }
    if not KINDS[kind][2]:
        expected |= {"stream": True, "stream_options": {"include_usage": True}}
    assert sent.get("stream", False) is not KINDS[kind][2]
    assert {key: sent[key] for key in expected} == expected


def test_no_tgi_is_configured_to_honour_penalties() -> None:
    with pytest.raises(ValueError, match="honours no penalties"):
        RemoteBackendSettings(kind="tgi", url="http://127.0.0.1:1", penalties=True)


async def test_what_a_call_leaves_unset_is_the_servers_default(kind: str) -> None:
    server = RemoteModel()
    async with serving(kind, server) as backend:
        await collect(backend, ask(kind, temperature=None))
    assert not {"temperature", "top_p", "top_k", "seed", "presence_penalty"} & server.requests[0].keys()


@pytest.mark.parametrize("top_p", [None, 0.5, 1.0])
async def test_a_temperature_of_0_is_greedy_whatever_the_top_p(kind: str, top_p: float | None) -> None:
    server = RemoteModel()
    async with serving(kind, server) as backend:
        pieces = await collect(backend, ask(kind, temperature=0.0, top_p=top_p))
    assert server.requests[0]["temperature"] == 0
    assert "".join(piece.text for piece in pieces) == "".join(TEXT)


@pytest.mark.parametrize(
    "parameters", [{"seed": 1}, {"presence_penalty": 1.0}, {"top_k": 5}, {"n": 2}, {"stop": ("x",) * 5}]
)
async def test_what_the_server_is_not_known_to_honour_is_refused(kind: str, parameters: dict[str, Any]) -> None:
    server = RemoteModel()
    async with serving(kind, server) as backend:
        with pytest.raises(errors.InvalidArgument):
            await collect(backend, ask(kind, **parameters))
    assert server.requests == []


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


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, errors.InvalidArgument),
        (422, errors.InvalidArgument),
        (429, errors.ResourceExhausted),
        (401, errors.BackendUnavailable),
        (404, errors.BackendUnavailable),
        (500, errors.BackendUnavailable),
        (503, errors.BackendUnavailable),
    ],
)
async def test_a_refusal_is_asked_once_and_told_without_the_servers_words(
    kind: str, status: int, error: type[errors.Error]
) -> None:
    server = RemoteModel(status=status)
    async with serving(kind, server) as backend:
        with pytest.raises(error) as failed:
            await collect(backend, ask(kind))
    assert "secret" not in str(failed.value)
    assert len(server.requests) == 1


async def test_a_redirect_is_not_followed(kind: str) -> None:
    other = RemoteModel()
    async with other.running():
        server = RemoteModel(status=307, location=f"{other.url}/v1/chat/completions")
        async with serving(kind, server) as backend:
            with pytest.raises(errors.BackendUnavailable):
                await collect(backend, ask(kind))
    assert other.requests == []


async def test_only_the_configured_key_is_sent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "stray-secret")
    server = RemoteModel()
    async with serving(kind, server) as backend:
        await collect(backend, ask(kind))
    async with serving(kind, server, api_key="configured") as backend:
        await collect(backend, ask(kind))
    assert "authorization" not in server.headers[0]
    assert server.headers[1]["authorization"] == "Bearer configured"
    assert "stray-secret" not in str(server.headers)
    assert "configured" not in repr(RemoteSettings(url="https://x", model="m", max_context=1, api_key="configured"))


@pytest.mark.parametrize("sent", [0, 2])
async def test_a_hung_server_meets_the_deadline_and_is_disconnected(kind: str, sent: int) -> None:
    server = RemoteModel(events=(*GOOD[:sent], asyncio.Event()))
    async with serving(kind, server) as backend:
        with pytest.raises(errors.DeadlineExceeded):
            await collect(backend, ask(kind, timeout=0.3))
        async with asyncio.timeout(10):
            await server.disconnected.wait()


@pytest.mark.parametrize("kind", STREAMING)
async def test_a_slow_server_meets_the_deadline_although_every_read_succeeds(kind: str) -> None:
    held = asyncio.Event()
    server = RemoteModel(events=(chunk("a"), held, chunk("b"), asyncio.Event()))
    async with serving(kind, server) as backend:
        pieces = backend.generate(ask(kind, timeout=0.5))
        assert (await anext(pieces)).text == "a"
        held.set()
        with pytest.raises(errors.DeadlineExceeded):
            async for _ in pieces:
                pass


@pytest.mark.parametrize("kind", STREAMING)
async def test_closing_early_disconnects_the_server(kind: str) -> None:
    server = RemoteModel(events=(chunk("Paris"), asyncio.Event()))
    async with serving(kind, server) as backend:
        pieces = backend.generate(ask(kind))
        await anext(pieces)
        await pieces.aclose()
        async with asyncio.timeout(10):
            await server.disconnected.wait()


async def test_cancelling_a_call_that_waits_for_the_whole_answer_disconnects_the_server() -> None:
    server = RemoteModel(events=(asyncio.Event(),))
    async with serving("openai whole", server) as backend:
        asking = asyncio.create_task(collect(backend, ask("openai whole")))
        async with asyncio.timeout(10):
            while not server.requests:
                await asyncio.sleep(0.01)
            asking.cancel()
            await server.disconnected.wait()


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


async def test_a_dead_server_is_unavailable_and_noticed(kind: str) -> None:
    server = RemoteModel()
    async with server.running():
        backend = build(kind, server.url)
        await backend.start()
        assert backend.healthy()
    with pytest.raises(errors.BackendUnavailable):
        await collect(backend, ask(kind))
    await backend.check()
    assert not backend.healthy()
    await backend.close()


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


async def test_a_server_of_another_model_does_not_start(kind: str) -> None:
    server = RemoteModel(served="other")
    async with server.running():
        backend = build(kind, server.url)
        with pytest.raises(errors.BackendUnavailable):
            await backend.start()
        assert not backend.healthy()
        server.served = MODEL
        await backend.check()
        assert backend.healthy()
        await backend.close()


async def test_the_prompts_count_is_an_upper_bound(kind: str) -> None:
    backend = build(kind, "http://127.0.0.1:9")
    assert not backend.abilities.exact_count
    assert await backend.count_tokens([Message(role="user", content="日本語")]) >= 9
    with pytest.raises(errors.InvalidArgument):
        await backend.count_tokens([Message(role="tool", content="x")])


@pytest.mark.parametrize(
    "url",
    [
        *("http://models.example", "http://10.0.0.1:8000", "http://localhost.example", "ftp://127.0.0.1"),
        *("https://user:password@models.example", "https://", "models.example"),
    ],
)
def test_addresses_that_would_carry_prompts_in_the_clear_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="model server"):
        RemoteSettings(url=url, model="m", max_context=1)


async def test_a_certificate_is_trusted_only_through_the_configured_authority(kind: str, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with RemoteModel().running(tls) as server:
        stranger, friend = build(kind, server.url), build(kind, server.url, ca_file=certificate)
        await friend.start()
        assert (await collect(friend, ask(kind)))[-1].finish is Finish.STOP
        with pytest.raises(errors.BackendUnavailable):
            await stranger.start()
        await friend.close()
        await stranger.close()


def self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "model")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file

"""The remote backends against a server that misbehaves in every way a test can ask for."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.model_server.backends import Finish
from services.model_server.backends.remote import RemoteSettings
from services.model_server.config import RemoteBackendSettings
from services.model_server.template import Message
from shared import errors
from tests.fakes.remote_model import GOOD, MODEL, TEXT, RemoteModel, chunk
from tests.unit.model_server.backends.remotes import KINDS, STREAMING, ask, build, collect, serving


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

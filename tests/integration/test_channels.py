"""Channels between services follow the certificate files, and a file that is being replaced breaks nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from shared.cli import setup
from shared.rpc.channel import Channel, PeerSettings
from shared.rpc.tls import TlsSettings

pytestmark = pytest.mark.asyncio(loop_scope="function")


class _Mirror(grpc.GenericRpcHandler):
    """Answers with the caller's certificate."""

    def service(self, handler_call_details: Any) -> Any:
        async def answer(_: bytes, context: Any) -> bytes:
            return bytes(context.auth_context()["x509_pem_cert"][0])

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    setup.create(tmp_path / "home")
    return tmp_path / "home"


@pytest_asyncio.fixture
async def address(home: Path) -> AsyncIterator[str]:
    pair = ((home / "audit" / "tls.key").read_bytes(), (home / "audit" / "tls.pem").read_bytes())
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Mirror(),))
    credentials = grpc.ssl_server_credentials([pair], (home / "pki" / "ca.pem").read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest_asyncio.fixture
async def channel(home: Path, address: str) -> AsyncIterator[Channel]:
    own = home / "model-server"
    tls = TlsSettings(certificate=own / "tls.pem", key=own / "tls.key", ca=home / "pki" / "ca.pem")
    opened = Channel(PeerSettings(address=address), tls, service="audit")
    yield opened
    await opened.close()


async def shown(channel: Channel) -> bytes:
    """Return the certificate that the server saw."""
    answer: bytes = await channel.get().unary_unary("/test/Mirror")(b"", timeout=10)
    return answer


async def test_a_renewed_certificate_is_shown_without_a_restart(home: Path, channel: Channel) -> None:
    file = home / "model-server" / "tls.pem"
    before = file.read_bytes()
    assert await shown(channel) == before
    assert channel.get() is channel.get()
    setup.renew(home)
    assert await shown(channel) == file.read_bytes() != before


async def test_a_call_under_way_ends_on_the_channel_it_began_on(home: Path, channel: Channel) -> None:
    old = channel.get()
    under_way = old.unary_unary("/test/Mirror")(b"", timeout=10)
    setup.renew(home)
    assert channel.get() is not old
    assert await under_way


async def test_files_that_are_being_replaced_break_nothing(home: Path, channel: Channel) -> None:
    file = home / "model-server" / "tls.pem"
    before = await shown(channel)
    file.rename(file.with_suffix(".away"))
    assert await shown(channel) == before
    file.with_suffix(".away").rename(file)
    setup.renew(home)
    assert await shown(channel) == file.read_bytes() != before

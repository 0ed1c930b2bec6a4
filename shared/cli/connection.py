"""The set-up a command works on, and calls to its services over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
import pydantic
import typer
from google.protobuf.message import Message

from bastide.audit.v1 import audit_pb2_grpc
from bastide.model_server.v1 import catalog_pb2_grpc, inference_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2_grpc, policy_pb2_grpc
from shared.cli.credentials import Credentials
from shared.cli.failures import CallFailed, Failure
from shared.cli.render import Output
from shared.config import ConfigError, Settings, load
from shared.rpc.channel import Channel, PeerSettings, outgoing
from shared.rpc.tls import TlsSettings, first_end

DEFAULT_CLIENT = "cli"
# Deadline of calls that only read or write records.
CALL_SECONDS = 30.0
# Longer than any server lets a stream last: the server's bound ends it, this one a server that hangs.
STREAM_SECONDS = 4000.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  (what a service listens on, not we)

T = TypeVar("T")


class Remote(NamedTuple):
    """A gRPC service and the process that serves it."""

    service: str
    stub: Callable[[grpc.aio.Channel], Any]


AUDIT = Remote("audit", audit_pb2_grpc.AuditServiceStub)
LOG = Remote("audit", audit_pb2_grpc.LogServiceStub)
IDENTITY = Remote("policy-guard", identity_pb2_grpc.IdentityServiceStub)
POLICY = Remote("policy-guard", policy_pb2_grpc.PolicyServiceStub)
CATALOG = Remote("model-server", catalog_pb2_grpc.CatalogServiceStub)
INFERENCE = Remote("model-server", inference_pb2_grpc.InferenceServiceStub)


class ServerTable(Settings):
    """What commands need of a service's `[server]` table; the service itself reads and checks all of it."""

    model_config = pydantic.ConfigDict(extra="ignore")

    listen: str = pydantic.Field(pattern=r"^.+:\d+$")
    probes: str = pydantic.Field(pattern=r"^.+:\d+$")
    tls: TlsSettings
    ports_file: Path | None = None
    drain_seconds: float = 20.0


class _Configuration(Settings):
    model_config = pydantic.ConfigDict(extra="ignore")

    server: ServerTable


@dataclasses.dataclass(frozen=True)
class Home:
    """A folder that `bastide init` made."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether a set-up was made here."""
        return (self.path / "audit" / "audit.toml").is_file()

    def configuration(self, service: str) -> Path:
        """Return the service's configuration file. Raises Failure where there is no set-up."""
        path = self.path / service / f"{service}.toml"
        if not path.is_file():
            raise Failure(f"{self.path} is not a set-up: bastide --home {self.path} init", title="no set-up")
        return path.resolve()

    def server(self, service: str) -> ServerTable:
        """Return the `[server]` table of the service's configuration. Raises Failure where it makes no sense."""
        path = self.configuration(service)
        try:
            return load(_Configuration, file=path, prefix="", environ={}).settings.server
        except ConfigError as error:
            message = f"{path}: {str(error).removeprefix(f'{path}: ')}"
            raise Failure(message, title="configuration refused") from None

    def addresses(self, service: str) -> tuple[str, str]:
        """Return where the service listens: gRPC and probes. Port 0 is looked up in the file the server writes."""
        server = self.server(service)
        hosts, ports = zip(*(address.rsplit(":", 1) for address in (server.listen, server.probes)), strict=True)
        if "0" in ports and server.ports_file is not None and server.ports_file.is_file():
            ports = tuple(server.ports_file.read_text().split())
        grpc_at, probes_at = (f"{_EVERYWHERE.get(host, host)}:{port}" for host, port in zip(hosts, ports, strict=True))
        return grpc_at, probes_at

    def listening(self, service: str) -> bool:
        """Say whether the service's last start went as far as its ports. Whether it still runs is another matter."""
        taken = self.server(service).ports_file
        return taken is None or taken.is_file()

    def certificate_end(self, service: str) -> dt.datetime:
        """Return when the service's certificate ends. Raises OSError where there is none."""
        return first_end(self.server(service).tls.certificate.read_bytes())

    def tls(self, client: str) -> TlsSettings:
        """Return the certificate of `client`. Raises Failure where there is none, or one that has ended."""
        pki = self.path / "pki"
        certificate = pki / "clients" / f"{client}.pem"
        if not certificate.is_file():
            raise Failure(f"there is no client certificate {client!r}: bastide client add {client}")
        if (end := first_end(certificate.read_bytes())) <= dt.datetime.now(dt.UTC):
            raise Failure(
                f"the certificate of client {client!r} ended at {end:%Y-%m-%d %H:%M:%SZ}: bastide renew, "
                "then sign in again",
                title="certificate ended",
            )
        return TlsSettings(
            certificate=certificate,
            key=certificate.with_suffix(".key"),
            ca=pki / "ca.pem",
            trust_domain=self.server("audit").tls.trust_domain,
        )

    @property
    def log_key(self) -> Path:
        """The public key of the audit log."""
        return self.path / "trust" / "log.vkey"

    @property
    def trust_root(self) -> Path:
        """The public keys of decisions and statements."""
        return self.path / "trust" / "trust.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One command: the set-up, who speaks through which certificate, and where to write."""

    home: Home
    output: Output
    person: str
    client: str

    @staticmethod
    def of(context: typer.Context) -> Session:
        """Return the session that the global options describe."""
        session = context.find_root().obj
        if not isinstance(session, Session):
            raise TypeError("the root command makes the session")
        return session

    @property
    def credentials(self) -> Credentials:
        """The tokens of people who signed in."""
        return Credentials(self.home.path / "cli")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end."""
        return asyncio.run(work)

    def ask(
        self, remote: Remote, method: str, request: Message, *, public: bool = False, seconds: float = CALL_SECONDS
    ) -> Any:
        """Return the response of a unary call. `public` calls carry no token. Raises CallFailed, Failure."""
        return self.run(self._ask(remote, method, request, public=public, seconds=seconds))

    def pages(self, remote: Remote, method: str, request: Any, field: str, *, limit: int) -> Any:
        """Return the first page with the items of all pages in `field`, at most `limit` of them."""
        return self.run(self._pages(remote, method, request, field, limit))

    @contextlib.asynccontextmanager
    async def method(self, remote: Remote, name: str, *, public: bool = False) -> AsyncIterator[Callable[..., Any]]:
        """Yield a stub's method, signed in. Callers MUST give each call a `timeout`. Raises CallFailed, Failure."""
        client, metadata = self.client or DEFAULT_CLIENT, outgoing()
        if not public:
            credential = self.credentials.get(self.person)
            # A token is bound to the certificate that it was issued on (RFC 8705).
            client = self.client or credential.client
            metadata = outgoing(authorization=f"Bearer {credential.token}")
        address, _ = self.home.addresses(remote.service)
        channel = Channel(PeerSettings(address=address), self.home.tls(client), service=remote.service)
        try:
            yield functools.partial(getattr(remote.stub(channel.get()), name), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(name, remote.service, address, error) from None
        finally:
            await channel.close()

    async def stream(self, remote: Remote, name: str, request: Message) -> AsyncGenerator[Any, None]:
        """Yield a stream's responses until it ends or a server's longest duration is over.

        Callers MUST close it, and go on behind the last response where they expect more. Raises CallFailed, Failure.
        """
        try:
            async with self.method(remote, name) as call:
                async for response in call(request, timeout=STREAM_SECONDS):
                    yield response
        except CallFailed as failed:
            if failed.error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise

    async def _ask(self, remote: Remote, method: str, request: Message, *, public: bool, seconds: float) -> Any:
        async with self.method(remote, method, public=public) as call:
            return await call(request, timeout=seconds)

    async def _pages(self, remote: Remote, method: str, request: Any, field: str, limit: int) -> Any:
        async with self.method(remote, method) as call:
            first = await call(request, timeout=CALL_SECONDS)
            items, token = getattr(first, field), first.next_page_token
            while token and len(items) < limit:
                request.page_token = token
                page = await call(request, timeout=CALL_SECONDS)
                items.extend(getattr(page, field))
                token = page.next_page_token
        del items[limit:]
        return first

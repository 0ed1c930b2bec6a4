"""The one bootstrap of every service: settings in, a served and drained gRPC server out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import inspect
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pydantic
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from shared import errors, observability
from shared.audit import AuditLog
from shared.config import Settings
from shared.identity.issuers import IssuerSettings
from shared.identity.tokens import TokenVerifier
from shared.observability import ObservabilitySettings
from shared.periodic import repeating
from shared.rpc import layers
from shared.rpc.call import MAX_MESSAGE_BYTES, Call, Owned, compose
from shared.rpc.methods import Method, MethodTable, public
from shared.rpc.probes import Probes
from shared.rpc.tls import Certificates, TlsSettings, server_credentials

log = structlog.get_logger()

_health: Any = health_pb2  # the stubs lag behind the package
_reflection: Any = reflection_pb2
HEALTH: ServiceDescriptor = _health.DESCRIPTOR.services_by_name["Health"]
REFLECTION: ServiceDescriptor = _reflection.DESCRIPTOR.services_by_name["ServerReflection"]
_COMMON: Mapping[str, Mapping[str, Method]] = {
    HEALTH.full_name: {method.name: public() for method in HEALTH.methods},
    REFLECTION.full_name: {"ServerReflectionInfo": public()},
}
_CHECK_SECONDS = 5.0
# Readiness is looked at every second and takes `_CHECK_SECONDS` at most: a loop that misses several looks is stuck.
_STUCK_SECONDS = 30.0
Problems = Callable[[], Awaitable[Mapping[str, str]]]


class ServerSettings(Settings):
    """What every service's server needs."""

    listen: str = pydantic.Field(description="`host:port` for gRPC; port 0 takes a free one.")
    probes: str = pydantic.Field(description="`host:port` for /livez, /readyz and /metrics over HTTP.")
    tls: TlsSettings = pydantic.Field(description="Certificate and trust of this service.")
    issuers: tuple[IssuerSettings, ...] = pydantic.Field(description="Token issuers that are trusted.")
    observability: ObservabilitySettings = pydantic.Field(
        default=ObservabilitySettings(), description="Logs and traces."
    )
    max_concurrent_calls: int = pydantic.Field(
        default=256, ge=1, description="Calls in flight, guarded ones and those of peers each; more are refused."
    )
    max_calls_of_one_caller: int = pydantic.Field(
        default=64, ge=1, description="Guarded calls in flight of one principal; more are refused."
    )
    max_call_seconds: float = pydantic.Field(
        default=600.0, gt=0, le=3600, description="Longest call or stream, whatever deadline the caller sets."
    )
    drain_seconds: float = pydantic.Field(
        default=20.0, ge=0, le=300, description="How long calls may finish after SIGTERM before they are cut."
    )
    ports_file: Path | None = pydantic.Field(
        default=None, description="Where to write the ports that were taken, as `grpc probes`; for supervisors."
    )

    @pydantic.model_validator(mode="after")
    def _each_issuer_once(self) -> ServerSettings:
        names = [item.issuer for item in self.issuers]
        if len(names) != len(set(names)):
            raise ValueError("issuers: each issuer is listed once")
        return self


class Server:
    """Serves servicers under a method table. Servicers implement `Name(request, call)` for each method they have.

    Unary: a coroutine returning the response. Streaming responses: an async generator. Streaming requests: the first
    argument is an async iterator. A method of the table without an attribute answers UNIMPLEMENTED.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        services: Mapping[ServiceDescriptor, Any],
        rows: Mapping[str, Mapping[str, Method]],
        guard: layers.AccessGuard,
        audit: AuditLog,
        verifier: TokenVerifier,
        problems: Problems,
        owned: Owned,
    ) -> None:
        """Compose the chain. `problems` names what keeps the service from being ready; empty means ready."""
        self._settings = settings
        self._problems = problems
        self._found: Mapping[str, str] = {"start": "the service has not looked yet"}
        # Beside the reader of the handshakes, which counts a change as seen only when it has used it.
        self._certificates = Certificates(settings.tls)
        self._owned = owned
        self._draining = False
        self.table = MethodTable({**rows, **_COMMON}, [*services, HEALTH, REFLECTION])
        names = [service.full_name for service in (*services, HEALTH, REFLECTION)]
        servicers = {service.full_name: servicer for service, servicer in services.items()}
        servicers[HEALTH.full_name] = _Health(self._ready, names)
        servicers[REFLECTION.full_name] = _Reflection(names)
        self._servicers = servicers
        self._refusals = layers.Refusals(audit)
        self._authenticate = layers.AuthenticateLayer(
            verifier,
            trust_domain=settings.tls.trust_domain,
            max_concurrent=settings.max_concurrent_calls,
            max_of_one_caller=settings.max_calls_of_one_caller,
        )
        self._chain = compose(
            [
                layers.ContextLayer(max_seconds=settings.max_call_seconds),
                layers.errors_layer,
                layers.AuditLayer(audit, self._refusals, owned),
                self._authenticate,
                layers.AuthoriseLayer(guard, servicers),
            ],
            self._handle,
        )
        self._server = grpc.aio.server(
            options=[
                # The chain refuses above MAX_MESSAGE_BYTES with a reason; this bounds what is buffered at all.
                ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.absolute_max_metadata_size", 16 * 1024),
                ("grpc.max_connection_age_grace_ms", int(settings.drain_seconds * 1000)),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((_Handlers(self.table, self._serve),))
        self._probes = Probes(settings.probes, self._visible_problems, alive=self._alive)
        self._looked = time.monotonic()
        self._work = contextlib.AsyncExitStack()
        self.port = 0

    @property
    def probes_port(self) -> int:
        """The port of the HTTP probes."""
        return self._probes.port

    async def start(self) -> None:
        """Listen. Raises OSError naming the address when it cannot be had."""
        credentials, address = server_credentials(self._settings.tls), self._settings.listen
        try:
            self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise OSError(errno.EADDRINUSE, "cannot be listened on", address) from None
        await self._server.start()
        self._probes.start()
        await self._work.enter_async_context(repeating(self._refusals.flush, seconds=10.0, name="refusals"))
        await self._work.enter_async_context(repeating(self._look, seconds=1.0, name="readiness"))
        if self._settings.ports_file is not None:
            self._settings.ports_file.write_text(f"{self.port} {self.probes_port}\n")
        log.info("listening", port=self.port, probes=self.probes_port)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        await self.start()
        # What was made until now lives as long as the process: a collection need not walk it while a call waits.
        gc.collect()
        gc.freeze()
        await stop.wait()
        await self.stop()

    async def stop(self) -> None:
        """Drain: readiness off, finish calls or cut them at the deadline, end owned tasks, flush refusals."""
        log.info("draining", seconds=self._settings.drain_seconds)
        self._draining = True
        await self._server.stop(self._settings.drain_seconds)
        cut = await self._owned.drain(self._settings.drain_seconds)
        await self._work.aclose()
        try:
            await self._refusals.flush()
        except errors.Error as error:
            log.warning("refusals_not_recorded", reason=error.reason)
        self._probes.close()
        log.info("stopped", cut=cut)

    async def _serve(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        call = Call(
            method=method,
            row=self.table[method],
            descriptor=self.table.descriptors[method],
            call_id=str(uuid.uuid4()),
            context=context,
        )
        await self._chain(call)
        if call.response is not None:
            await call.write(call.response)

    async def _handle(self, call: Call) -> None:
        """Run the servicer's method and write what it answers."""
        servicer = self._servicers[call.descriptor.containing_service.full_name]
        handler = getattr(servicer, call.descriptor.name, None)
        if handler is None:
            raise errors.Unimplemented(f"{call.descriptor.name} is part of the contract but not built yet")
        argument = call.requests() if call.descriptor.client_streaming else call.first
        answer = handler(argument, call)
        if inspect.isawaitable(answer):
            call.response = await answer
            return
        async with contextlib.aclosing(answer):
            async for response in answer:
                await call.write(response)

    def _ready(self) -> bool:
        return not self._found and not self._draining

    def _alive(self) -> bool:
        return time.monotonic() - self._looked < _STUCK_SECONDS

    def _visible_problems(self) -> Mapping[str, str]:
        return {"drain": "the service is stopping"} if self._draining else self._found

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                found = await self._problems()
        except TimeoutError:
            found = {"check": "the readiness check does not answer"}
        except errors.Error as error:
            found = {"check": error.message}
        except Exception as error:  # noqa: BLE001  (a defect in the check must not leave its last answer standing)
            log.error("readiness_check_broken", error=error)
            found = {"check": "the readiness check has failed"}
        if ended := self._certificates.expired():
            found = {**found, "certificate": f"this service's own ended at {ended:%Y-%m-%d %H:%M:%SZ}; renew it"}
        if found != self._found:
            log.info("readiness", problems=dict(found))
        self._found = found
        self._looked = time.monotonic()
        observability.READY.set(self._ready())


class _Handlers(grpc.GenericRpcHandler):
    """Registers every method of the table without parsers, as a stream both ways: on the wire all kinds are one."""

    def __init__(self, table: MethodTable, serve: Callable[[str, Any], Awaitable[None]]) -> None:
        self._handlers = {name: self._handler(name, serve) for name in table}

    @staticmethod
    def _handler(name: str, serve: Callable[[str, Any], Awaitable[None]]) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def method(_requests: AsyncIterator[bytes], context: Any) -> None:
            await serve(name, context)

        return grpc.stream_stream_rpc_method_handler(method)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handlers.get(handler_call_details.method)


class _Health:
    """grpc.health.v1: SERVING while the service is ready."""

    _POLL_SECONDS = 1.0

    def __init__(self, ready: Callable[[], bool], names: list[str]) -> None:
        self._ready = ready
        self._names = frozenset(("", *names))

    def _status(self, name: str) -> health_pb2.HealthCheckResponse:
        if name not in self._names:
            raise errors.NotFound("no such service")
        state = health_pb2.HealthCheckResponse
        return state(status=state.SERVING if self._ready() else state.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, _call: Call) -> Message:
        return self._status(request.service)

    async def List(self, _request: Message, _call: Call) -> Message:
        answer: Message = _health.HealthListResponse(statuses={name: self._status(name) for name in self._names})
        return answer

    async def Watch(self, request: health_pb2.HealthCheckRequest, _call: Call) -> AsyncIterator[Message]:
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield status
            last = status
            await asyncio.sleep(self._POLL_SECONDS)


class _Reflection:
    """grpc.reflection.v1alpha, for grpcurl and its kind."""

    def __init__(self, names: list[str]) -> None:
        self._reflection: Any = reflection.aio.ReflectionServicer(names)

    def ServerReflectionInfo(self, requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Message]:
        answers: AsyncIterator[Message] = self._reflection.ServerReflectionInfo(requests, call.context)
        return answers

"""A service's place on the network, with its real certificate: passes all calls on, until a test has it misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.policy_guard.v1 import guard_pb2


class Fault(enum.Enum):
    """What goes wrong with one answer."""

    DEAD = "dead"  # the connection breaks, and new ones are refused until `revive`
    HUNG = "hung"  # the request is swallowed, or the answer never comes
    SLOW = "slow"  # the service does its work, and its answer comes too late
    GARBAGE = "garbage"  # bytes that are no message
    ERROR = "error"  # a failure of the service's own, with text that nobody may repeat
    FALSE = "false"  # a well-formed answer that is not the one the contract allows


# Longer than any deadline that the tests set for a peer.
LATE_SECONDS = 2.5
CALLER = "model-server"
FOREIGN_TEXT = "foreign exception text 7f3a"
Step = Callable[[bytes, bytes], str]
Falsify = Callable[[bytes], bytes]


class Interposer:
    """Stands on `port`, for the model server to call, before the real service on `target`.

    `step` names what an answer to `method` is, from the bytes of the first request and of the answer; `fail` has the
    answers of one step go wrong. What the service did is counted in `passed`, whatever became of the answer.
    """

    def __init__(self, home: Path, service: str, *, method: str, port: int, target: int, step: Step) -> None:
        self._home = home
        self._service = service
        self._method = method
        self._port = port
        self._target = target
        self._step = step
        self._at = ""
        self._fault: Fault | None = None
        self._falsify: Falsify = bytes
        self._late = LATE_SECONDS
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self.passed: Counter[str] = Counter()

    def fail(self, at: str, fault: Fault, falsify: Falsify = bytes, late: float = LATE_SECONDS) -> None:
        """From now on answers of the step `at` go wrong; "" is every step."""
        self._at, self._fault, self._falsify, self._late = at, fault, falsify, late

    async def revive(self) -> None:
        """Be well again, and up."""
        self._fault = None
        await asyncio.gather(*self._stopping)
        if self._server is None:
            await self.start()

    async def kill(self) -> None:
        """Break all connections and listen no more."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)

    async def start(self) -> None:
        """Listen."""
        read = self._home.joinpath
        ca = read("pki", "ca.pem").read_bytes()
        self._channel = grpc.aio.secure_channel(
            f"127.0.0.1:{self._target}",
            grpc.ssl_channel_credentials(
                ca, read(CALLER, "tls.key").read_bytes(), read(CALLER, "tls.pem").read_bytes()
            ),
            options=[
                ("grpc.ssl_target_name_override", f"{self._service}.bastide.local"),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((_Everything(self._serve),))
        pair = (read(self._service, "tls.key").read_bytes(), read(self._service, "tls.pem").read_bytes())
        self._server.add_secure_port(
            f"127.0.0.1:{self._port}", grpc.ssl_server_credentials([pair], ca, require_client_auth=True)
        )
        await self._server.start()

    async def close(self) -> None:
        """End."""
        await self.kill()
        await asyncio.gather(*self._stopping)
        if self._channel is not None:
            await self._channel.close()

    async def _serve(self, method: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        asked = await anext(requests)
        faulty = method.endswith(f"/{self._method}")
        if faulty and self._hits(self._step(asked, b"")) and self._fault in (Fault.HUNG, Fault.DEAD, Fault.ERROR):
            await self._break(context)

        async def heard() -> AsyncIterator[bytes]:
            yield asked
            async for request in requests:
                yield request

        assert self._channel is not None
        upstream = self._channel.stream_stream(method)(
            heard(), metadata=tuple(context.invocation_metadata()), timeout=context.time_remaining()
        )
        try:
            async for answer in upstream:
                if faulty:
                    step = self._step(asked, answer)
                    self.passed[step] += 1
                    if self._hits(step):
                        answer = await self._wrong(answer, context)
                yield answer
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            upstream.cancel()

    def _hits(self, step: str) -> bool:
        return self._fault is not None and bool(step) and self._at in ("", step)

    async def _wrong(self, answer: bytes, context: Any) -> bytes:
        match self._fault:
            case Fault.SLOW:
                await asyncio.sleep(self._late)
                return answer
            case Fault.GARBAGE:
                return b"\xff\xff\xff\xff"
            case Fault.FALSE:
                return self._falsify(answer)
        await self._break(context)
        return answer

    async def _break(self, context: Any) -> None:
        if self._fault is Fault.ERROR:
            await context.abort(grpc.StatusCode.INTERNAL, FOREIGN_TEXT)
        if self._fault is Fault.DEAD:
            task = asyncio.create_task(self.kill())
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
        await asyncio.Event().wait()


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, serve: Callable[[str, AsyncIterator[bytes], Any], AsyncIterator[bytes]]) -> None:
        self._serve = serve

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def handle(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with contextlib.aclosing(self._serve(method, requests, context)) as answers:
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(handle)


def guard_step(_request: bytes, answer: bytes) -> str:
    """Name a guard's answer as the contract does: `decided`, `reserved`, `released`, `cut`, `closed`."""
    return guard_pb2.GuardInferenceResponse.FromString(answer).WhichOneof("step") or ""


def audit_step(request: bytes, _answer: bytes) -> str:
    """Name an append by the kind of its first record: `AUTHORISED`, `COMPLETED` ..."""
    records = audit_pb2.AppendRecordsRequest.FromString(request).records
    return record_pb2.RecordKind.Name(records[0].kind).removeprefix("RECORD_KIND_") if records else ""

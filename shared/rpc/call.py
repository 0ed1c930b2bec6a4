"""One RPC on its way through the chain."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from bastide.audit.v1 import record_pb2
from bastide.types.v1 import decision_pb2
from shared.errors import Error, InvalidArgument, MalformedRequest, MessageTooLarge, PermissionDenied
from shared.identity.principal import Principal, Workload
from shared.rpc.methods import Auth, Method
from shared.rpc.validation import validate

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

M = TypeVar("M", bound=Message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verified decision: the parsed message, the bytes as signed, and the personal facts behind it."""

    decision: decision_pb2.Decision
    signed: decision_pb2.SignedDecision
    opening: decision_pb2.DecisionOpening

    @property
    def allowed(self) -> bool:
        """Whether the effect is exactly ALLOW."""
        return self.decision.effect == decision_pb2.EFFECT_ALLOW


class Denied(PermissionDenied):
    """Policy denied the call; carries the decision for the record and its public reasons for the caller."""

    def __init__(self, judgement: Judgement) -> None:
        """Refuse with the reasons that policy marked public."""
        self.judgement = judgement
        self.public_reasons = tuple(item for item in judgement.decision.reasons if item.public)
        sentence = "; ".join(item.message for item in self.public_reasons) or "policy denies this call"
        super().__init__(sentence, decision_id=judgement.decision.decision_id)


async def _nothing_allowed() -> None:
    raise RuntimeError("no audit layer around this call")


@dataclasses.dataclass(kw_only=True, eq=False)
class Call:
    """State of one RPC. Layers fill it from the outside in; the handler gets it beside its request."""

    method: str
    row: Method
    descriptor: MethodDescriptor
    call_id: str
    context: grpc.aio.ServicerContext[Any, Any]
    started: float = dataclasses.field(default_factory=lambda: asyncio.get_running_loop().time())
    workload: Workload | None = None
    token: str | None = None
    principal: Principal | None = None
    judgement: Judgement | None = None
    # What facts were gathered about, for a handler whose request does not name it: it MUST act on this and no other.
    judged: Any = None
    resource_name: str = ""
    first: Message | None = None
    inference: record_pb2.InferenceFacts | None = None
    response: Message | None = None
    outcome: Error | None = None
    finished: bool = False
    # A task of the server's own writes the record of what was allowed, and whether it stands.
    recording: bool = False
    recorded: bool = False
    max_seconds: float = 0.0
    allowed: Callable[[], Awaitable[None]] = dataclasses.field(default=_nothing_allowed)

    @property
    def caller(self) -> Workload:
        """The workload at the other end. MUST only be read after authentication."""
        if self.workload is None:
            raise RuntimeError("read before authentication")
        return self.workload

    @property
    def person(self) -> Principal:
        """The principal. MUST only be read in methods that are authorised by policy or session."""
        if self.principal is None:
            raise RuntimeError("no principal in this call")
        return self.principal

    def metadata(self, key: str) -> str | None:
        """Return the one value of a metadata key, None when absent. Raises InvalidArgument when it stands twice."""
        values = [value for name, value in self.context.invocation_metadata() or () if name == key]
        if len(values) > 1:
            raise InvalidArgument("metadata stands more than once", field=f"metadata.{key}")
        return str(values[0]) if values else None

    def remaining(self) -> float | None:
        """Return the seconds that the caller's deadline leaves, None without one."""
        left = self.context.time_remaining()
        return None if left is None or left > 86_400 * 365 else left

    async def read(self) -> Message | None:
        """Return the next request message, parsed and validated, or None at the end of the stream."""
        data = await self.context.read()
        if data is grpc.aio.EOF:
            return None
        return self._parse(data)

    async def requests(self) -> AsyncIterator[Message]:
        """Iterate over the request stream, the first message included."""
        if self.first is not None:
            yield self.first
        while (message := await self.read()) is not None:
            yield message

    async def write(self, response: Message) -> None:
        """Send one response message. Refuses to release anything of a guarded call that nothing allowed."""
        if self.row.auth in (Auth.POLICY, Auth.SESSION) and (self.judgement is None or not self.judgement.allowed):
            raise RuntimeError("a guarded call has no decision")
        await self.context.write(response.SerializeToString())

    def _parse(self, data: bytes) -> Message:
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"requests are at most {MAX_MESSAGE_BYTES} bytes")
        try:
            message = message_factory.GetMessageClass(self.descriptor.input_type).FromString(data)
        except DecodeError:
            raise MalformedRequest(f"the bytes are not a {self.descriptor.input_type.name}") from None
        validate(message)
        return message


current: contextvars.ContextVar[Call] = contextvars.ContextVar("bastide_call")

Next = Callable[[Call], Awaitable[None]]
Layer = Callable[[Call, Next], Awaitable[None]]


def compose(layers: list[Layer], handler: Next) -> Next:
    """Nest `layers`, the first outermost, around `handler`."""
    for layer in reversed(layers):
        inner = handler

        async def step(call: Call, layer: Layer = layer, inner: Next = inner) -> None:
            await layer(call, inner)

        handler = step
    return handler


class Owned:
    """Tasks that outlive the RPC that started them. The server awaits them all before it ends."""

    def __init__(self) -> None:
        """Start with none."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        """Run `work` as a task of the server's own; its errors are the awaiting caller's or `drain`'s."""
        task = asyncio.ensure_future(work)
        if not isinstance(task, asyncio.Task):
            raise TypeError("a coroutine is needed")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # An `Error` is an outcome, told to whoever awaits it; asking for it here keeps asyncio from printing it.
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Error):
            log.error("owned_task_failed", error=error)

    async def drain(self, seconds: float) -> int:
        """Wait for all tasks for at most `seconds`, cancel the rest, return how many were cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:  # one that ends may have started another
                    await asyncio.wait(self._tasks)
        pending = set(self._tasks)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return len(pending)

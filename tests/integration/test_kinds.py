"""One chain for unary calls and all three kinds of streams: shown on a service that has one method of each."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import StatusCode

from bastide.policy_guard.v1 import guard_pb2
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.result import Effect, PolicyResult, Reason
from services.policy_guard.token_issuer import TokenIssuer
from shared.audit import AuditClient
from shared.identity.principal import Workload
from shared.identity.tokens import TokenVerifier
from shared.keys import FileKeyProvider, SigningKey
from shared.outbox import Outbox
from shared.rpc.call import Call, Judgement, Owned
from shared.rpc.channel import Channel
from shared.rpc.methods import read
from shared.rpc.server import Server
from tests.integration.stage import Outcome, explain
from tests.suite import Suite

pytestmark = pytest.mark.asyncio(loop_scope="module")
SERVICE = "bastide_test.v1.KindsService"
# Method -> whether requests and answers are streams.
KINDS = {"Unary": (False, False), "Up": (True, False), "Down": (False, True), "Both": (True, True)}
AUDIENCE = "spiffe://bastide.local/policy-guard"


def _described() -> Any:
    """Return the descriptor of a service that has a method of each kind, taking and giving `Thing {string name}`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="bastide_test/kinds.proto", package="bastide_test.v1", syntax="proto3"
    )
    thing = file.message_type.add(name="Thing")
    thing.field.add(
        name="name",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    service = file.service.add(name="KindsService")
    for name, (up, down) in KINDS.items():
        kind: Any = {"input_type": ".bastide_test.v1.Thing", "output_type": ".bastide_test.v1.Thing"}
        service.method.add(name=name, client_streaming=up, server_streaming=down, **kind)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())  # type: ignore[no-untyped-call]
    return pool.FindServiceByName(SERVICE)


DESCRIPTOR = _described()
Thing: Any = message_factory.GetMessageClass(DESCRIPTOR.methods[0].input_type)


class Servicer:
    """Repeats what it is told."""

    def __init__(self) -> None:
        self.ran = 0

    async def Unary(self, request: Any, _call: Call) -> Any:
        self.ran += 1
        return request

    async def Up(self, requests: AsyncIterator[Any], _call: Call) -> Any:
        self.ran += 1
        return Thing(name=" ".join([item.name async for item in requests]))

    async def Down(self, request: Any, _call: Call) -> AsyncIterator[Any]:
        self.ran += 1
        for _ in range(2):
            yield request

    async def Both(self, requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[Any]:
        self.ran += 1
        async for item in requests:
            yield item


class Guard:
    """Decides as a test says, and signs like the policy guard."""

    def __init__(self, suite: Suite) -> None:
        key = SigningKey.load(suite.settings("policy-guard").decision_key, name="policy-guard/decision")
        self._signer = DecisionSigner(key, clock=lambda: dt.datetime.now(dt.UTC))
        self.effect = Effect.ALLOW
        self.asked: list[str] = []

    async def check(self, call: Call, resource: guard_pb2.Resource) -> Judgement:
        self.asked.append(resource.name)
        reason = Reason(code="TEST", message="The test says so.", public=True)
        result = PolicyResult(effect=self.effect, reasons=(reason,), obligations=None, limits=(), revision="sha256:0")
        return self._signer.sign(
            result,
            policy_input={"action": call.row.action},
            principal=call.person,
            method=call.method,
            audience=AUDIENCE,
        )


class World:
    """The service, with the certificate, the keys and the log of a real one."""

    suite: Suite
    guard: Guard
    servicer: Servicer
    metadata: tuple[tuple[str, str], ...]

    @contextlib.asynccontextmanager
    async def running(self, folder: Path) -> AsyncIterator[World]:
        self.suite = suite = Suite(folder / "home")
        settings = suite.settings("policy-guard")
        self.guard, self.servicer = Guard(suite), Servicer()
        channel = Channel(settings.audit, settings.server.tls, service="audit")

        async def nothing() -> dict[str, str]:
            return {}

        server = Server(
            settings.server,
            services={DESCRIPTOR: self.servicer},
            rows={SERVICE: {name: read(f"test.{name.lower()}", "thing") for name in KINDS}},
            guard=self.guard,
            audit=AuditClient(channel, Outbox(settings.outbox, FileKeyProvider(settings.keys)), timeout=5),
            verifier=TokenVerifier(settings.server.issuers),
            problems=nothing,
            owned=Owned(),
        )
        cli = suite.workload("cli")
        issuer = TokenIssuer(
            SigningKey.load(settings.identity_key, name="policy-guard/identity"),
            issuer=settings.issuer,
            audience=settings.audience,
            lifetime=dt.timedelta(hours=1),
            clock=lambda: dt.datetime.now(dt.UTC),
        )
        workload = Workload(spiffe_id=cli.spiffe_id, certificate_sha256=cli.certificate_sha256)
        issued = issuer.issue_to_workload(workload, tenant="default", roles=["user"])
        self.metadata = (("authorization", f"Bearer {issued.token}"),)
        try:
            await suite.start("audit")
            await server.start()
            yield self
        finally:
            await server.stop()
            await channel.close()
            await suite.close()

    async def ask(
        self,
        name: str,
        sent: Sequence[bytes],
        *,
        metadata: tuple[tuple[str, str], ...] | None = None,
        open_: bool = False,
    ) -> tuple[list[str], Outcome]:
        """Call a method by a stub of its kind; return the names that came back, and how it ended.

        `open_` leaves the client's stream open until then.
        """
        (up, down), path = KINDS[name], f"/{SERVICE}/{name}"
        channel = self.suite.channel("policy-guard")

        over = asyncio.Event()

        async def stream() -> AsyncIterator[bytes]:
            for item in sent:
                yield item
            if open_:
                # What is written to a call that was refused meanwhile, gRPC's client answers itself, with INTERNAL.
                await over.wait()

        options: Any = {"metadata": self.metadata if metadata is None else metadata, "timeout": 20}
        kind: Any = getattr(channel, f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}")
        call = kind(path)(stream() if up else sent[0], **options)
        answers, outcome = list[bytes](), Outcome()
        try:
            if down:
                async for answer in call:
                    answers.append(answer)
            else:
                answers.append(await call)
        except grpc.aio.AioRpcError as error:
            explain(error, outcome)
        finally:
            over.set()
        return [Thing.FromString(answer).name for answer in answers], outcome

    async def kinds_since(self, head: int, name: str) -> list[str]:
        records = await self.suite.records_since(head, method=f"/{SERVICE}/{name}")
        return [record.fields["kind"] for record in records]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with World().running(tmp_path_factory.mktemp("kinds")) as world:
        yield world


@pytest.fixture
def world(started: World) -> World:
    """The service, whose guard allows, and whose method has not run yet."""
    started.guard.effect, started.guard.asked, started.servicer.ran = Effect.ALLOW, [], 0
    return started


A, B = (Thing(name=name).SerializeToString() for name in "ab")
ANSWERS = {"Unary": ["a"], "Up": ["a b"], "Down": ["a", "a"], "Both": ["a", "b"]}


@pytest.mark.parametrize("name", KINDS)
async def test_an_allowed_call_runs_once_on_all_its_messages_and_is_recorded_before(world: World, name: str) -> None:
    head = await world.suite.head()
    answers, outcome = await world.ask(name, [A, B])
    assert (outcome.code, answers) == (StatusCode.OK, ANSWERS[name])
    assert (world.servicer.ran, world.guard.asked) == (1, ["a"])
    assert await world.kinds_since(head, name) == ["access"]


@pytest.mark.parametrize("name", KINDS)
async def test_a_denied_call_runs_nothing_and_is_recorded(world: World, name: str) -> None:
    world.guard.effect = Effect.DENY
    head = await world.suite.head()
    answers, outcome = await world.ask(name, [A, B])
    assert (outcome.code, outcome.details, answers) == (StatusCode.PERMISSION_DENIED, "The test says so.", [])
    assert world.servicer.ran == 0
    assert await world.kinds_since(head, name) == ["denied"]


@pytest.mark.parametrize("name", KINDS)
async def test_a_call_without_a_token_reaches_neither_guard_nor_method(world: World, name: str) -> None:
    answers, outcome = await world.ask(name, [A], metadata=(), open_=True)
    assert (outcome.code, answers) == (StatusCode.UNAUTHENTICATED, [])
    assert (world.servicer.ran, world.guard.asked) == (0, [])


@pytest.mark.parametrize("name", KINDS)
async def test_bytes_that_are_no_message_run_nothing(world: World, name: str) -> None:
    _, outcome = await world.ask(name, [b"\xff"])
    assert outcome.code is StatusCode.INVALID_ARGUMENT
    assert (world.servicer.ran, world.guard.asked) == (0, [])


@pytest.mark.parametrize("name", ["Up", "Both"])
async def test_bytes_that_are_no_message_end_a_stream_that_has_begun(world: World, name: str) -> None:
    answers, outcome = await world.ask(name, [A, b"\xff"], open_=True)
    assert (outcome.code, answers) == (StatusCode.INVALID_ARGUMENT, ["a"] if name == "Both" else [])


@pytest.mark.parametrize("name", ["Up", "Both"])
async def test_a_stream_without_a_message_is_judged_like_any_other(world: World, name: str) -> None:
    answers, outcome = await world.ask(name, [])
    assert (outcome.code, answers) == (StatusCode.OK, [""] if name == "Up" else [])
    assert (world.servicer.ran, world.guard.asked) == (1, [""])


@pytest.mark.parametrize("name", KINDS)
async def test_a_call_that_cannot_be_recorded_runs_nothing(world: World, name: str) -> None:
    await world.suite.stop("audit")
    try:
        answers, outcome = await world.ask(name, [A, B])
    finally:
        await world.suite.start("audit")
    assert (outcome.code, outcome.reason, answers) == (StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", [])
    assert world.servicer.ran == 0

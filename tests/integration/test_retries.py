"""A peer that fails for a moment is asked again, where asking twice does no harm, a few times, and at times of chance."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import stamina.instrumentation
from grpc import StatusCode

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.policy_guard.v1 import guard_pb2
from services.model_server.guard_session import GuardSession
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.result import Effect, PolicyResult, Reason
from shared.audit import AuditClient, AuditRefused, record_of
from shared.errors import AuditUnavailable, GuardUnavailable
from shared.guard import DecisionVerifier, GuardClient
from shared.identity.principal import Kind, Principal, Workload
from shared.keys import FileKeyProvider, SigningKey
from shared.outbox import Outbox
from shared.rpc.call import Call
from shared.rpc.channel import Channel
from shared.rpc.methods import change
from shared.statements import TrustRoot
from tests.fakes.acknowledgements import acknowledged
from tests.suite import Suite

METHOD, ACTION = "/bastide.model_server.v1.CatalogService/CreateRelease", "model_server.release.create"
AUDIENCE = "spiffe://bastide.local/model-server"
WORKLOAD = Workload(spiffe_id="spiffe://bastide.local/client/cli", certificate_sha256=bytes(32))
ADA = Principal(
    subject="ada@example.org", kind=Kind.PERSON, tenant="default", roles=(), amr=(), authenticated_at=None,
    workload=WORKLOAD,
)  # fmt: skip


class Peer(grpc.GenericRpcHandler):
    """A service with its real certificate that fails as it is told, and then answers."""

    def __init__(self, suite: Suite, name: str) -> None:
        self.fails: list[StatusCode] = []
        self.asked: list[bytes] = []
        self.answer: Callable[[bytes], bytes] = lambda _: b""
        self._files = (suite.home / "pki" / "ca.pem", suite.home / name / "tls.pem", suite.home / name / "tls.key")
        self._address = f"127.0.0.1:{suite.grpc[name]}"
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))

    def service(self, handler_call_details: Any) -> Any:
        async def answer(requests: AsyncIterator[bytes], context: Any) -> bytes:
            self.asked.append(await anext(requests))
            if self.fails:
                await context.abort(self.fails.pop(0), "not now")
            return self.answer(self.asked[-1])

        return grpc.stream_unary_rpc_method_handler(answer)

    async def start(self) -> None:
        ca, chain, key = (path.read_bytes() for path in self._files)
        credentials = grpc.ssl_server_credentials([(key, chain)], ca, require_client_auth=True)
        self._server.add_secure_port(self._address, credentials)
        await self._server.start()

    async def close(self) -> None:
        await self._server.stop(0)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Keys and certificates of the services, none of which runs."""
    return Suite(tmp_path / "home")


@pytest.fixture
async def guard(suite: Suite) -> AsyncIterator[Peer]:
    peer = Peer(suite, "policy-guard")
    key = SigningKey.load(suite.settings("policy-guard").decision_key, name="policy-guard/decision")
    reason = Reason(code="ALLOWED", message="It is allowed.", public=True)
    result = PolicyResult(
        effect=Effect.ALLOW, reasons=(reason,), obligations=None, limits=(), revision="sha256:" + "0" * 64
    )
    judged = DecisionSigner(key, clock=lambda: dt.datetime.now(dt.UTC)).sign(
        result, policy_input={"action": ACTION}, principal=ADA, method=METHOD, audience=AUDIENCE
    )
    checked = guard_pb2.CheckAccessResponse(decision=judged.signed, opening=judged.opening)
    peer.answer = lambda _: checked.SerializeToString()
    await peer.start()
    yield peer
    await peer.close()


@pytest.fixture
async def audit(suite: Suite) -> AsyncIterator[Peer]:
    peer = Peer(suite, "audit")
    peer.answer = lambda asked: audit_pb2.AppendRecordsResponse(
        appended=[acknowledged(item.record_id) for item in audit_pb2.AppendRecordsRequest.FromString(asked).records]
    ).SerializeToString()
    await peer.start()
    yield peer
    await peer.close()


@pytest.fixture
def peers(guard: Peer, audit: Peer) -> dict[str, Peer]:
    return {"guard": guard, "audit": audit}


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """Collect how long each repetition was put off, in seconds."""
    found: list[float] = []
    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([lambda details: found.append(details.wait_for)])
    yield found
    stamina.instrumentation.set_on_retry_hooks(before)


async def check(suite: Suite) -> None:
    """Ask the guard for a decision as the model server does."""
    settings = suite.settings("model-server")
    channel = Channel(settings.guard, settings.server.tls, service="policy-guard")
    client = GuardClient(channel, DecisionVerifier(TrustRoot.load(settings.trust), audience=AUDIENCE), timeout=10)
    context: Any = None
    descriptor: Any = None
    call = Call(
        method=METHOD, row=change(ACTION, "name", mfa=True), descriptor=descriptor, call_id="1", context=context,
        workload=WORKLOAD, token="t", principal=ADA,
    )  # fmt: skip
    try:
        assert (await client.check(call, guard_pb2.Resource())).allowed
    finally:
        await channel.close()


async def append(suite: Suite) -> None:
    """Append a record as the model server does."""
    settings = suite.settings("model-server")
    channel = Channel(settings.audit, settings.server.tls, service="audit")
    client = AuditClient(channel, Outbox(settings.outbox, FileKeyProvider(settings.keys)), timeout=10)
    try:
        (appended,) = await client.append([record_of(record_pb2.RECORD_KIND_SYSTEM, call_id="1", method="-")])
    finally:
        await channel.close()
    assert appended.proof


Ask = Callable[[Suite], Awaitable[None]]
ASKED: list[tuple[str, Ask, StatusCode]] = [
    ("guard", check, StatusCode.UNAVAILABLE),
    ("audit", append, StatusCode.UNAVAILABLE),
    ("audit", append, StatusCode.RESOURCE_EXHAUSTED),
]


@pytest.mark.parametrize(("peer", "ask", "code"), ASKED)
@pytest.mark.parametrize("times", [1, 2])
async def test_a_peer_that_fails_for_a_moment_is_asked_the_very_same_again(
    suite: Suite, peers: dict[str, Peer], peer: str, ask: Ask, code: StatusCode, times: int
) -> None:
    asked = peers[peer]
    asked.fails = [code] * times
    await ask(suite)
    assert len(asked.asked) == times + 1
    assert len(set(asked.asked)) == 1


@pytest.mark.parametrize(("peer", "ask", "code"), ASKED)
async def test_a_peer_that_goes_on_failing_is_asked_three_times_and_not_in_step_with_others(
    suite: Suite, peers: dict[str, Peer], peer: str, ask: Ask, code: StatusCode, waits: list[float]
) -> None:
    asked = peers[peer]
    for _ in range(3):
        asked.fails, asked.asked = [code] * 9, []
        with pytest.raises((GuardUnavailable, AuditUnavailable)):
            await ask(suite)
        assert len(asked.asked) == 3
    firsts = waits[::2]
    assert len(set(firsts)) == len(firsts) == 3
    assert max(waits) < 1


@pytest.mark.parametrize(
    ("peer", "ask", "code", "expected"),
    [
        ("guard", check, StatusCode.RESOURCE_EXHAUSTED, GuardUnavailable),
        ("guard", check, StatusCode.PERMISSION_DENIED, GuardUnavailable),
        ("guard", check, StatusCode.INTERNAL, GuardUnavailable),
        ("audit", append, StatusCode.INVALID_ARGUMENT, AuditRefused),
        ("audit", append, StatusCode.ALREADY_EXISTS, AuditRefused),
        ("audit", append, StatusCode.INTERNAL, AuditUnavailable),
    ],
)
async def test_a_failure_that_is_not_of_the_moment_is_not_asked_about_again(
    suite: Suite, peers: dict[str, Peer], peer: str, ask: Ask, code: StatusCode, expected: type[Exception]
) -> None:
    asked = peers[peer]
    asked.fails = [code]
    with pytest.raises(expected):
        await ask(suite)
    assert len(asked.asked) == 1


async def test_a_guard_session_is_not_opened_again_for_it_takes_the_request_id_and_a_budget(
    suite: Suite, guard: Peer
) -> None:
    settings = suite.settings("model-server")
    channel = Channel(settings.guard, settings.server.tls, service="policy-guard")
    guard.fails = [StatusCode.UNAVAILABLE]
    session = GuardSession(channel, timeout=10, lifetime=20)
    try:
        with pytest.raises(GuardUnavailable):
            await session.open(guard_pb2.OpenSession())
    finally:
        session.close()
        await channel.close()
    assert len(guard.asked) == 1

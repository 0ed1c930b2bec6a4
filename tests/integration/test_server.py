"""The server itself: TLS floor, certificates that change under it, foreign clients, probes and drain."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc
from services.policy_guard.identity_service import IdentityService
from shared.identity.authority import CertificateAuthority
from shared.rpc.call import Call
from tests import tools
from tests.suite import Suite

pytestmark = pytest.mark.xdist_group("server")


@pytest_asyncio.fixture
async def audit(tmp_path: Path) -> AsyncIterator[Suite]:
    suite = Suite(tmp_path / "home")
    try:
        await suite.start("audit")
        yield suite
    finally:
        await suite.close()


def presented(suite: Suite, *, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """Return the certificate that the audit service shows a client of ours that speaks at most `most`."""
    pki = suite.home / "pki"
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    context.maximum_version = most
    context.load_cert_chain(pki / "clients" / "cli.pem", pki / "clients" / "cli.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", suite.grpc["audit"]), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="audit.bastide.local") as tls,
    ):
        assert tls.version() == "TLSv1.3"
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


async def checkpoint(suite: Suite) -> str:
    stub = audit_pb2_grpc.LogServiceStub(suite.channel("audit"))
    return (await stub.GetCheckpoint(audit_pb2.GetCheckpointRequest(), timeout=5)).checkpoint


async def read_to_the_end(stream: grpc.aio.UnaryStreamCall) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_replaced_certificate_is_shown_without_a_restart(audit: Suite) -> None:
    before = await asyncio.to_thread(presented, audit)
    authority = CertificateAuthority(audit.home / "pki", trust_domain="bastide.local")
    authority.issue("audit", audit.home / "audit" / "tls", dns="audit.bastide.local")
    assert await asyncio.to_thread(presented, audit) != before
    assert await checkpoint(audit)


async def test_a_certificate_that_ended_is_a_problem_until_it_is_replaced(audit: Suite) -> None:
    def problems() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{audit.probes['audit']}/readyz", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    async def until(ended: bool) -> None:
        async with asyncio.timeout(10):
            while ("own ended at" in await asyncio.to_thread(problems)) is not ended:
                await asyncio.sleep(0.05)

    authority = CertificateAuthority(audit.home / "pki", trust_domain="bastide.local")
    for lifetime, ended in ((dt.timedelta(seconds=-1), True), (dt.timedelta(days=1), False)):
        authority.issue("audit", audit.home / "audit" / "tls", dns="audit.bastide.local", lifetime=lifetime)
        await until(ended)
    assert await checkpoint(audit)


async def test_tls_1_2_is_refused_in_the_handshake(audit: Suite) -> None:
    with pytest.raises(OSError):
        await asyncio.to_thread(presented, audit, most=ssl.TLSVersion.TLSv1_2)


async def test_a_foreign_client_finds_its_way_by_reflection(audit: Suite) -> None:
    program = tools.need("grpcurl")
    pki = audit.home / "pki"
    process = await asyncio.create_subprocess_exec(
        program, "-cacert", str(pki / "ca.pem"), "-cert", str(pki / "clients" / "cli.pem"),
        "-key", str(pki / "clients" / "cli.key"), "-authority", "audit.bastide.local",
        f"127.0.0.1:{audit.grpc['audit']}", "bastide.audit.v1.LogService/GetCheckpoint",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert b"bastide.local/audit" in out, err


async def test_probes_say_live_ready_and_metrics(audit: Suite) -> None:
    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{audit.probes['audit']}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    await checkpoint(audit)
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(get, "/readyz"))[0] != 200:
            await asyncio.sleep(0.05)
    assert (await asyncio.to_thread(get, "/livez"))[0] == 200
    assert 'grpc_method="GetCheckpoint"' in (await asyncio.to_thread(get, "/metrics"))[1]
    assert (await asyncio.to_thread(get, "/etc/passwd"))[0] == 404


async def test_drain_refuses_new_calls_and_ends_long_streams_by_its_deadline(audit: Suite) -> None:
    stream = health_pb2_grpc.HealthStub(audit.channel("audit")).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert await stream.read()
    await asyncio.wait_for(audit.stop("audit"), 20)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await read_to_the_end(stream)
    assert ended.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await checkpoint(audit)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_change_that_the_drain_cuts_has_its_end_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hangs(_self: IdentityService, _request: object, _call: Call) -> None:
        begun.set()
        await asyncio.Event().wait()

    method = "/bastide.policy_guard.v1.IdentityService/CreateUser"
    suite = Suite(tmp_path / "home", overrides={"policy-guard": {"ENGINE": "embedded"}})
    try:
        await suite.start("audit", "policy-guard")
        administrator, _ = await suite.bootstrap()
        monkeypatch.setattr(IdentityService, "CreateUser", hangs)
        asking = asyncio.create_task(suite.person(administrator, "uma@example.org", "user"))
        await asyncio.wait_for(begun.wait(), 10)
        await asyncio.wait_for(suite.stop("policy-guard"), 20)
        with pytest.raises(grpc.aio.AioRpcError):
            await asking
        change, changed = await suite.records_since(0, method=method)
        assert [record.fields["kind"] for record in (change, changed)] == ["change", "changed"]
        assert changed.fields["call_id"] == change.fields["call_id"]
        assert changed.fields["outcome"] == "CANCELLED"
    finally:
        await suite.close()

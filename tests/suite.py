"""The running suite for tests: three real services over mutual TLS in this process, and people to call them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pyotp

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2, identity_pb2_grpc
from bastide.types.v1 import principal_pb2
from services.audit.config import AuditSettings
from services.audit.entry import Record
from services.audit.search import Filter
from services.audit.server import compose as compose_audit
from services.model_server.config import ModelServerSettings
from services.model_server.server import compose as compose_model_server
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.server import compose as compose_policy_guard
from shared import observability
from shared.cli.setup import create
from shared.config import load
from shared.identity.principal import workload_from_certificate
from shared.records.migrations import migrate

PASSWORD = "correct horse battery staple"
DAY = 86_400
PARTS: Mapping[str, tuple[Any, Any, str]] = {
    "audit": (AuditSettings, compose_audit, "services/audit/migrations"),
    "policy-guard": (PolicyGuardSettings, compose_policy_guard, "services/policy_guard/migrations"),
    "model-server": (ModelServerSettings, compose_model_server, "services/model_server/migrations"),
}
ROOT = Path(__file__).parent.parent


_PORTS = range(20_000, 32_000)
"""Below those that systems give to whoever asks for any: a client's socket takes none between choice and use."""


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, none of them twice."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.socket() as item:
            item.bind(("127.0.0.1", port))
            found.append(port)
    assert len(found) == count
    return found


@dataclasses.dataclass(kw_only=True)
class Person:
    """Somebody with a token; `metadata` goes with their calls."""

    subject: str
    totp_secret: str
    token: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


class Suite:
    """Services under one home folder. Start and stop them singly to see what the others do."""

    def __init__(self, home: Path, *, overrides: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.home = home
        self._overrides = overrides or {}
        self._stacks: dict[str, contextlib.AsyncExitStack] = {}
        self.servers: dict[str, Any] = {}
        names = list(PARTS)
        ports = free_ports(2 * len(names))
        self.grpc = dict(zip(names, ports[: len(names)], strict=True))
        self.probes = dict(zip(names, ports[len(names) :], strict=True))
        create(home, clients=("cli", "example-backend", "stranger"))
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._steps: dict[str, float] = {}

    def environ(self, name: str) -> dict[str, str]:
        prefix = f"BASTIDE_{name.replace('-', '_').upper()}"
        return {
            f"{prefix}_SERVER__LISTEN": f"127.0.0.1:{self.grpc[name]}",
            f"{prefix}_SERVER__PROBES": f"127.0.0.1:{self.probes[name]}",
            f"{prefix}_SERVER__DRAIN_SECONDS": "1",
            f"{prefix}_AUDIT__ADDRESS": f"127.0.0.1:{self.grpc['audit']}",
            f"{prefix}_GUARD__ADDRESS": f"127.0.0.1:{self.grpc['policy-guard']}",
            **{f"{prefix}_{key}": value for key, value in self._overrides.get(name, {}).items()},
        }

    def settings(self, name: str) -> Any:
        prefix = f"BASTIDE_{name.replace('-', '_').upper()}"
        file = self.home / name / f"{name}.toml"
        return load(PARTS[name][0], file=file, prefix=prefix, environ=self.environ(name)).settings

    async def start(self, *names: str) -> None:
        for name in names or PARTS:
            settings = self.settings(name)
            await asyncio.to_thread(migrate, settings.records, ROOT / PARTS[name][2])
            stack = contextlib.AsyncExitStack()
            server = await stack.enter_async_context(PARTS[name][1](settings))
            await server.start()
            stack.push_async_callback(server.stop)
            self._stacks[name], self.servers[name] = stack, server

    async def stop(self, *names: str) -> None:
        for name in names or list(reversed(self._stacks)):
            await self._stacks.pop(name).aclose()
            del self.servers[name]

    def channel(self, service: str, client: str = "cli", pki: Path | None = None) -> grpc.aio.Channel:
        key = (service, client)
        if pki is None and key in self._channels:
            return self._channels[key]
        folder = pki or self.home / "pki" / "clients"
        leaf = folder / client if (folder / f"{client}.pem").exists() else self.home / client / "tls"
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{self.grpc[service]}",
            grpc.ssl_channel_credentials(
                (self.home / "pki" / "ca.pem").read_bytes(),
                leaf.with_suffix(".key").read_bytes(),
                leaf.with_suffix(".pem").read_bytes(),
            ),
            options=[
                ("grpc.ssl_target_name_override", f"{service}.bastide.local"),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", 16 * 1024 * 1024),
            ],
        )
        if pki is None:
            self._channels[key] = channel
        return channel

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        await self.stop()

    @property
    def identity(self) -> identity_pb2_grpc.IdentityServiceAsyncStub:
        return identity_pb2_grpc.IdentityServiceStub(self.channel("policy-guard"))

    async def bootstrap(self) -> tuple[Person, Person]:
        """Enrol the first two administrators and sign them in with both factors."""
        from services.policy_guard.server import now
        from services.policy_guard.users import Users
        from shared.records.store import Records

        subjects = ("ada@example.org", "bob@example.org")
        async with Records(self.settings("policy-guard").records) as records:
            codes = await Users(records, clock=now).bootstrap(subjects, tenant="default", roles=("administrator",))
        first, second = [await self.enrol(subject, code.code) for subject, code in zip(subjects, codes, strict=True)]
        return first, second

    async def enrol(self, subject: str, code: str) -> Person:
        started = await self.identity.StartEnrollment(
            identity_pb2.StartEnrollmentRequest(subject=subject, code=code, password=PASSWORD), timeout=10
        )
        secret = pyotp.parse_uri(started.totp_uri).secret
        person = Person(subject=subject, totp_secret=secret)
        await self.identity.ConfirmEnrollment(
            identity_pb2.ConfirmEnrollmentRequest(subject=subject, code=code, totp=self.totp(person)), timeout=10
        )
        return await self.sign_in(person)

    def totp(self, person: Person) -> str:
        """Return a code whose time step was not used yet: the guard takes each once, one step either side of now."""
        now = time.time()
        step = max(now - 30, self._steps.get(person.subject, 0) + 30)
        self._steps[person.subject] = step
        return pyotp.TOTP(person.totp_secret).at(int(step))

    async def sign_in(self, person: Person, *, mfa: bool = True) -> Person:
        answer = await self.identity.SignIn(
            identity_pb2.SignInRequest(
                subject=person.subject, password=PASSWORD, totp=self.totp(person) if mfa else ""
            ),
            timeout=10,
        )
        return dataclasses.replace(person, token=answer.token)

    async def person(self, administrator: Person, subject: str, *roles: str, accept: bool = True) -> Person:
        """Create, enrol and sign in a person with `roles`."""
        created = await self.identity.CreateUser(
            identity_pb2.CreateUserRequest(user=identity_pb2.User(subject=subject, tenant="default", roles=roles)),
            metadata=administrator.metadata,
            timeout=10,
        )
        person = await self.enrol(subject, created.enrollment_code)
        if accept:
            policy = await self.identity.GetUsePolicy(identity_pb2.GetUsePolicyRequest(), timeout=10)
            await self.identity.AcknowledgeUsePolicy(
                identity_pb2.AcknowledgeUsePolicyRequest(version=policy.version), metadata=person.metadata, timeout=10
            )
        return person

    async def backend_token(self, client: str = "example-backend") -> tuple[tuple[str, str], ...]:
        """Return call metadata of a registered backend."""
        stub = identity_pb2_grpc.IdentityServiceStub(self.channel("policy-guard", client))
        issued = await stub.IssueWorkloadToken(identity_pb2.IssueWorkloadTokenRequest(), timeout=10)
        return (("authorization", f"Bearer {issued.token}"),)

    def workload(self, client: str) -> principal_pb2.Workload:
        """Return a client certificate as services report it to the guard."""
        pem = (self.home / "pki" / "clients" / f"{client}.pem").read_bytes()
        found = workload_from_certificate(pem, trust_domain="bastide.local")
        return principal_pb2.Workload(spiffe_id=found.spiffe_id, certificate_sha256=found.certificate_sha256)

    async def head(self) -> int:
        """Return the size of the log; every record so far is below it."""
        return int((await self._log.reader.head()).size)

    async def records_since(self, index: int, *, method: str = "", writer: str = "") -> list[Record]:
        """Return the records from `index` on, oldest first, that match."""
        wanted, found, token = Filter(method=method, writer=writer), list[Record](), ""
        while True:
            page = await self._log.reader.search(wanted, page_size=50, page_token=token)
            found += [record for record in page.records if record.index >= index]
            token = page.next_page_token
            if not token or (page.records and page.records[-1].index < index):
                return found[::-1]

    @property
    def _log(self) -> Any:
        return self.servers["audit"]._servicers["bastide.audit.v1.AuditService"]._log

    @staticmethod
    def handled(method: str) -> float:
        """Return how many calls of `method` any server of this process has ended."""
        _, service, name = method.split("/")
        return sum(
            sample.value
            for metric in observability.RPC_HANDLED.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
            and (sample.labels["grpc_service"], sample.labels["grpc_method"]) == (service, name)
        )

    async def import_model(self, manager: Person, source: str, *, model: str = "tiny") -> str:
        """Import and return the version's resource name."""
        catalog = catalog_pb2_grpc.CatalogServiceStub(self.channel("model-server"))
        job = (
            await catalog.CreateImportJob(
                catalog_pb2.CreateImportJobRequest(
                    model_id=model, source=source, license="Apache-2.0", request_id=os.urandom(8).hex()
                ),
                metadata=manager.metadata,
                timeout=10,
            )
        ).job
        async for _ in catalog.WatchImportJob(
            catalog_pb2.WatchImportJobRequest(name=job.name), metadata=manager.metadata, timeout=120
        ):
            pass
        done = await catalog.GetImportJob(
            catalog_pb2.GetImportJobRequest(name=job.name), metadata=manager.metadata, timeout=10
        )
        assert done.job.version, done.job.status
        return done.job.version

    async def release(self, approver: Person, version: str) -> catalog_pb2.Release:
        """Put one version in force."""
        catalog = catalog_pb2_grpc.CatalogServiceStub(self.channel("model-server"))
        answer = await catalog.CreateRelease(
            catalog_pb2.CreateReleaseRequest(
                parent="/".join(version.split("/")[:2]),
                arms=[catalog_pb2.ReleaseArm(version=version, weight=100)],
                request_id=os.urandom(8).hex(),
            ),
            metadata=approver.metadata,
            timeout=60,
        )
        return answer.release


class ProcessSuite(Suite):
    """The same suite, each service in a process of its own, as operators run it."""

    def __init__(self, home: Path, *, overrides: Mapping[str, Mapping[str, str]] | None = None) -> None:
        super().__init__(home, overrides=overrides)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _command(self, name: str) -> list[str]:
        package = f"services.{name.replace('-', '_')}"
        return [sys.executable, "-m", package, "--config", str(self.home / name / f"{name}.toml")]

    async def start(self, *names: str) -> None:
        for name in names or PARTS:
            environ = {**os.environ, **self.environ(name)}
            migration = await asyncio.create_subprocess_exec(
                *self._command(name), "migrate", env=environ, stdout=subprocess.DEVNULL
            )
            assert await migration.wait() == 0
            with (self.home / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(self._command(name), env=environ, stderr=log, cwd=ROOT)
        for name in names or PARTS:
            await self.ready(name)

    def problems(self, name: str) -> str:
        """Return what /readyz says is wrong; empty when ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probes[name]}/readyz", timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return "not listening"

    async def ready(self, name: str, seconds: float = 120.0) -> None:
        async with asyncio.timeout(seconds):
            while await asyncio.to_thread(self.problems, name):
                assert self.processes[name].poll() is None, f"{name} ended; see {self.home / f'{name}.log'}"
                await asyncio.sleep(0.2)

    async def stop(self, *names: str) -> None:
        for name in names or list(reversed(self.processes)):
            process = self.processes.pop(name)
            process.terminate()
            await asyncio.to_thread(process.wait, 60)

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def running(home: Path, **overrides: Mapping[str, str]) -> AsyncIterator[Suite]:
    """Yield the whole suite, started."""
    suite = Suite(home, overrides={name.replace("_", "-"): value for name, value in overrides.items()})
    try:
        await suite.start()
        yield suite
    finally:
        await suite.close()

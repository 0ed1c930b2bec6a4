"""The opa engine: a supervised `opa run --server` for each bundle, on a unix socket that only this user can reach.

OPA's API lets whoever reaches it write policies, so the socket and the bundle lie in a fresh 0700 directory. OPA is
told to ask nobody for versions and to fail on builtin errors, as the embedded engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from opa_client.opa_async import AsyncOpaClient

from services.policy_guard import documents
from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.result import Question
from shared import errors
from shared.child import ChildUnavailable, tether
from shared.child.supervisor import Restart, Supervisor

_MAX_REPLY_BYTES = 1 << 20
_MAX_CONNECTIONS = 64
MAX_MEMORY = 1 << 30
"""Bytes of memory of one OPA; beyond it OPA ends, and is started anew."""
_HEALTH_TIMEOUT = 1.0
_HEALTH_INTERVAL = 0.02
_QUERY = {"strict-builtin-errors": "true"}


class _Response(aiohttp.ClientResponse):
    """A reply of bounded length, parsed as strict JSON."""

    async def read(self) -> bytes:
        try:
            await self.content.readexactly(_MAX_REPLY_BYTES + 1)
        except asyncio.IncompleteReadError as whole:
            self._body = whole.partial
            return whole.partial
        raise aiohttp.ClientPayloadError("the reply is over its limit")

    async def json(self, **_: Any) -> Any:
        return documents.parse_json(await self.read(), where="reply")


class _Client(AsyncOpaClient):  # type: ignore[misc]
    """opa-python-client over a unix socket. It would retry an evaluation error for 0.9 s: `retries=0`."""

    def __init__(self, socket: Path) -> None:
        super().__init__(host="opa", retries=0)
        self._socket = socket

    async def _init_session(self) -> None:
        self._connector = aiohttp.UnixConnector(path=str(self._socket), limit=_MAX_CONNECTIONS)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            response_class=_Response,
            # Every use is under its caller's deadline.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_HEALTH_TIMEOUT),
        )


class OpaEvaluator:
    """A bundle in an OPA server of its own (`services.policy_guard.engine.Evaluator`)."""

    def __init__(self, binary: Path, directory: Path) -> None:
        """Use `start`."""
        self._binary = binary
        self._directory = directory
        self._socket = directory / "opa.sock"
        self._client = _Client(self._socket)
        self._suspicion: asyncio.Task[None] | None = None
        self._supervisor = Supervisor("opa", spawn=self._spawn, probe=self._healthy, restart=Restart())

    async def evaluate(self, question: Question, document: Mapping[str, Any], *, deadline: float) -> object:
        """Return the rule's value. Raises GuardUnavailable; an OPA that hangs or died is replaced."""
        package, _, rule = question.rpartition(".")
        process: Process | None = None
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    process = await self._supervisor.process()
                    try:
                        reply = await self._client.query_rule(dict(document), package, rule, query_params=_QUERY)
                        break
                    except aiohttp.ClientConnectorError:
                        # Nothing was sent: OPA has just died, and the supervisor is about to notice.
                        await asyncio.sleep(_HEALTH_INTERVAL)
        except TimeoutError:
            self._suspect(process)
            raise errors.GuardUnavailable("OPA gave no answer in time") from None
        except (aiohttp.ClientError, ChildUnavailable, BundleError, OSError, ValueError, TypeError):
            raise errors.GuardUnavailable("OPA gave no answer") from None
        if not isinstance(reply, dict) or set(reply) != {"result"}:
            raise errors.GuardUnavailable("OPA gave no single result")
        return reply["result"]

    async def start(self) -> None:
        """Start the server and wait until it is healthy. Raises ChildUnavailable."""
        await self._client._init_session()
        await self._supervisor.start()

    async def close(self) -> None:
        """End the server and remove its directory."""
        if self._suspicion is not None:
            self._suspicion.cancel()
            await asyncio.wait([self._suspicion])
        await self._supervisor.close()
        await self._client.close_connection()
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def _suspect(self, process: Process | None) -> None:
        """Replace an OPA that is hung rather than slow at one question: it does not answer its health check."""
        if process is not None and (self._suspicion is None or self._suspicion.done()):
            self._suspicion = asyncio.create_task(self._check(process), name="check a slow opa")

    async def _check(self, process: Process) -> None:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT):
                healthy = await self._client.check_health()
        except TimeoutError:
            healthy = False
        if not healthy:
            self._supervisor.condemn(process)

    async def _spawn(self) -> Process:
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(MAX_MEMORY), str(self._binary)),
            *("run", "--server", "--addr", f"unix://{self._socket}", "--unix-socket-perm", "600"),
            *("--bundle", str(self._directory / "bundle.tar.gz"), "--disable-telemetry", "--log-level", "error"),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,  # an evaluation error that OPA logs may quote the input
            env={"HOME": str(self._directory), "PATH": os.defpath, "GOMEMLIMIT": str(MAX_MEMORY * 3 // 4)},
            cwd=self._directory,
            process_group=0,
        )

    async def _healthy(self, process: Process) -> None:
        while not await self._client.check_health():
            if process.returncode is not None:
                raise ChildUnavailable("opa ended at its start")
            await asyncio.sleep(_HEALTH_INTERVAL)


async def start(bundle: Bundle, *, binary: Path) -> OpaEvaluator:
    """Start an OPA server with the bundle's rules and data. Raises GuardUnavailable."""
    try:
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="bastide-opa-"))
        await asyncio.to_thread((directory / "bundle.tar.gz").write_bytes, bundle.archive(tests=False))
    except OSError:
        raise errors.GuardUnavailable("OPA's directory could not be made") from None
    evaluator = OpaEvaluator(binary, directory)
    try:
        await evaluator.start()
    except BaseException as failure:
        await evaluator.close()
        if isinstance(failure, ChildUnavailable):
            raise errors.GuardUnavailable("OPA did not start with this bundle") from None
        raise
    return evaluator

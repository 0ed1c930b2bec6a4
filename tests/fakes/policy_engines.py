"""Policy engines that misbehave: the programs that the guard runs are real, with a fault between it and them.

What goes wrong stands in a file, so that a running process can be told: see `Mode`. Faults concern the question about
inference alone; the guard needs the others to judge the test's own calls. Imported in the interpreter's child too,
whose memory is limited: keep the imports light.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.child import tether
from tests import signals

QUESTION = "inference"
# Longer than the deadline that the tests set for a decision.
LATE_SECONDS = 2.0
FOREIGN_TEXT = "foreign interpreter text 91bc"


class Mode(enum.Enum):
    """What a question about inference meets."""

    WELL = "well"
    ABSENT = "absent"  # the program ends as soon as it is started
    SLOW = "slow"
    GARBAGE = "garbage"
    ERROR = "error"
    UNDEFINED = "undefined"
    SURPLUS = "surplus"
    OTHER_REVISION = "other-revision"
    BARE_ALLOW = "bare-allow"


FALSE = (Mode.UNDEFINED, Mode.SURPLUS, Mode.OTHER_REVISION, Mode.BARE_ALLOW)


class Engines:
    """Writes the two programs to `folder`; `module` and `opa` name them."""

    module = "misbehaving_interpreter"

    def __init__(self, folder: Path, real_opa: str | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.opa = folder / "opa"
        self._mode = folder / "mode"
        self._real = real_opa
        self.set(Mode.WELL)
        (folder / f"{self.module}.py").write_text(
            "from pathlib import Path\nfrom tests.fakes import policy_engines\n"
            f"def evaluator(setup):\n    return policy_engines.evaluator(setup, Path({str(self._mode)!r}))\n"
        )
        path = os.pathsep.join(item for item in sys.path if item)
        self.opa.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path[:0] = {path.split(os.pathsep)!r}\n"
            "from pathlib import Path\nfrom tests.fakes import policy_engines\n"
            f"policy_engines.serve(Path({str(self._mode)!r}), {real_opa!r})\n"
        )
        self.opa.chmod(self.opa.stat().st_mode | stat.S_IXUSR)

    def set(self, mode: Mode) -> None:
        """Behave so from the next question on."""
        self._mode.write_text(mode.value)

    def signal(self, engine: str, number: signal.Signals) -> int:
        """Send a signal to the engine's program: OPA itself, not what stands before it. Return how many got it."""
        program = f"{self.module}:evaluator\0{os.getpid()}\0" if engine == "embedded" else f"{self._real}\0run\0"
        found = 0
        for process in Path("/proc").iterdir():
            try:
                line = (process / "cmdline").read_text() if process.name.isdigit() else ""
                if program in line and str(self.folder) in (process / "environ").read_text():
                    signals.send(int(process.name), number)
                    found += 1
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found


def false_value(mode: Mode, value: dict[str, Any]) -> object:
    """Return what policy did not say."""
    match mode:
        case Mode.SURPLUS:
            return {**value, "also": True}
        case Mode.OTHER_REVISION:
            return {**value, "revision": "sha256:" + "0" * 64}
        case _:
            return {"effect": "ALLOW", "reasons": value["reasons"]}


def evaluator(setup: bytes, mode_file: Path) -> Callable[[bytes], bytes]:
    """Wrap the embedded engine's evaluator."""
    from services.policy_guard import interpreter

    if mode_file.read_text() == Mode.ABSENT.value:
        raise RuntimeError(FOREIGN_TEXT)
    real = interpreter.evaluator(setup)

    def evaluate(request: bytes) -> bytes:
        mode = Mode(mode_file.read_text())
        if QUESTION not in json.loads(request)["rule"] or mode in (Mode.WELL, Mode.ABSENT):
            return real(request)
        match mode:
            case Mode.SLOW:
                time.sleep(LATE_SECONDS)
                return real(request)
            case Mode.GARBAGE:
                return b'{"effect": "ALLOW", '
            case Mode.ERROR:
                raise RuntimeError(FOREIGN_TEXT)
            case Mode.UNDEFINED:
                return b'"<undefined>"'
        return json.dumps(false_value(mode, json.loads(real(request)))).encode()

    return evaluate


def serve(mode_file: Path, real: str) -> None:
    """Stand before a real OPA, on the socket that the guard asked for."""
    import aiohttp
    from aiohttp import web

    if mode_file.read_text() == Mode.ABSENT.value:
        raise SystemExit(1)
    socket = sys.argv[sys.argv.index("--addr") + 1].removeprefix("unix://")
    behind = f"{socket}.real"
    arguments = [item.replace(f"unix://{socket}", f"unix://{behind}") for item in sys.argv[1:]]
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(1 << 30), real, *arguments],
        env={**os.environ, "BASTIDE_TEST": str(mode_file.parent)},
    )

    def ended(*_: object) -> None:
        if child.poll() is not None:  # or else it was stopped or continued
            os._exit(1)

    signal.signal(signal.SIGCHLD, ended)

    async def forward(request: web.Request) -> web.Response:
        mode = Mode(mode_file.read_text())
        body = await request.read()
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=behind)) as session,
            session.request(request.method, f"http://opa{request.path_qs}", data=body) as reply,
        ):
            answer, status = await reply.read(), reply.status
        if QUESTION not in request.path or mode in (Mode.WELL, Mode.ABSENT):
            return web.Response(status=status, body=answer, content_type="application/json")
        match mode:
            case Mode.SLOW:
                await asyncio.sleep(LATE_SECONDS)
            case Mode.GARBAGE:
                answer = b'{"result": {"effect": "ALLOW", '
            case Mode.ERROR:
                answer, status = json.dumps({"code": "internal_error", "message": FOREIGN_TEXT}).encode(), 500
            case Mode.UNDEFINED:
                answer = b"{}"
            case _:
                answer = json.dumps({"result": false_value(mode, json.loads(answer)["result"])}).encode()
        return web.Response(status=status, body=answer, content_type="application/json")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", forward)
    web.run_app(application, path=socket, print=None)

"""One service as a child process that outlives the command: start, readiness, stop; found again by its pid file."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from shared.cli.failures import UNAVAILABLE, Failure

_POLL_SECONDS = 0.1
_PROBE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readiness:
    """What `/readyz` answered. Not reachable: `problems` says so."""

    ready: bool
    problems: dict[str, str]


def readiness(address: str) -> Readiness:
    """Ask the probes listener at `host:port`."""
    connection = http.client.HTTPConnection(address, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        problems = json.loads(response.read(65_536)).get("problems", {})
        return Readiness(ready=response.status == 200, problems=problems)
    except (OSError, http.client.HTTPException, ValueError):
        return Readiness(ready=False, problems={"probes": f"no answer at {address}"})
    finally:
        connection.close()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to start and stop the processes of `folder`. Raises Failure when another command holds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Failure("another `bastide up` or `down` is at work here", title="not done") from None
    finally:
        os.close(descriptor)


class Process:
    """A command that runs at most once, known by `<folder>/<name>.pid`; its output goes to `<folder>/<name>.log`.

    Callers MUST hold `exclusive(folder)` around `start` and `stop`.
    """

    def __init__(self, name: str, command: tuple[str, ...], folder: Path) -> None:
        """Describe it; nothing is started. `command` MUST be the exact argument list it will run with."""
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._folder = folder
        self._pid_file = folder / f"{name}.pid"
        self._child: subprocess.Popen[bytes] | None = None

    def pid(self) -> int | None:
        """Return the pid if the process that was recorded lives and is ours, by its command line."""
        if self._child is not None:
            # Our own child needs no recognising; its command line is empty for a moment while it starts.
            return self._child.pid if self._child.poll() is None else None
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        except (OSError, ValueError):
            return None
        return pid if [os.fsdecode(word) for word in words] == list(self._command) else None

    def start(self) -> int:
        """Start it in a session of its own and return its pid. Callers MUST see `pid()` None first."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pid_file.write_text(f"{self._child.pid}\n")
        return self._child.pid

    def wait_ready(self, probe: Iterator[Readiness], *, seconds: float) -> None:
        """Wait until `probe` says ready. Raises Failure when the process ends or `seconds` are over."""
        deadline = time.monotonic() + seconds
        for found in probe:
            alive = self.pid() is not None
            if found.ready and alive:
                return
            if not alive:
                raise Failure(f"it ended; its last words in {self.log}:\n{self.tail()}", title=f"{self.name} failed")
            if time.monotonic() > deadline:
                problems = "; ".join(f"{key}: {text}" for key, text in found.problems.items())
                raise Failure(
                    f"not ready after {seconds:g} s: {problems}\nlog: {self.log}",
                    title=f"{self.name} is not ready",
                    exit_code=UNAVAILABLE,
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, *, drain_seconds: float) -> str:
        """End it with SIGTERM, after `drain_seconds` with SIGKILL. Returns `stopped`, `killed` or `not running`."""
        pid = self.pid()
        outcome = "not running"
        if pid is not None:
            outcome = "stopped"
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            if not self._gone(drain_seconds):
                outcome = "killed"
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._gone(drain_seconds)
        self._pid_file.unlink(missing_ok=True)
        return outcome

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 16_384))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

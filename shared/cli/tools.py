"""The services' own commands (`python -m services.<name> --config ... <command>`), run as child processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from shared.cli.connection import Home
from shared.cli.failures import UNAVAILABLE, Failure


def tool_command(home: Home, service: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command line of a service, without arguments the one that serves."""
    module = f"services.{service.replace('-', '_')}"
    return (sys.executable, "-m", module, "--config", str(home.configuration(service)), *arguments)


def run_tool(
    home: Home, service: str, arguments: Sequence[str], *, seconds: float, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a service's command and return its output. With `check`, raises Failure unless it exits with 0."""
    try:
        finished = subprocess.run(
            tool_command(home, service, arguments), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{service} {arguments[0]} took longer than {seconds:g} s", exit_code=UNAVAILABLE) from None
    if check and finished.returncode:
        last = "\n".join((finished.stderr or finished.stdout).strip().splitlines()[-8:])
        raise Failure(last or "it says nothing", title=f"{service} {arguments[0]} failed ({finished.returncode})")
    return finished


def pass_through(home: Home, service: str, arguments: Sequence[str]) -> int:
    """Run a service's command on this command's own streams and return its exit code."""
    return subprocess.run(tool_command(home, service, arguments), check=False).returncode

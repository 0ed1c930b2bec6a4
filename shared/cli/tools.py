"""The services' own commands (`python -m services.<name> <command>`), run as child processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from shared.cli.connection import Home
from shared.cli.failures import UNAVAILABLE, Failure

_LAST_LINES = 8
# By the reason of a refused command; the service's name is filled in.
_ADVICE = {"DATABASE_IN_USE": "stop it first: bastide down {service}"}


def serve_command(home: Home, service: str) -> tuple[str, ...]:
    """Return the command line that serves."""
    return (*_module(service), "--config", str(home.configuration(service)))


def run_tool(home: Home, service: str, *arguments: str, seconds: float) -> None:
    """Run a service's command. Raises Failure with its last words unless it exits with 0."""
    finished = _run([*serve_command(home, service), *arguments], seconds)
    if finished.returncode:
        raise Failure(_last_words(finished), title=f"{service} {arguments[0]} failed ({finished.returncode})")


def ask_tool(home: Home | None, service: str, *arguments: str, seconds: float) -> dict[str, Any]:
    """Run a service's command and return the JSON object it prints; without a home, unconfigured.

    Raises Failure with what the object calls `error`, or with the last words of a command that prints none.
    """
    configured = _module(service) if home is None else serve_command(home, service)
    finished = _run([*configured, *arguments], seconds)
    # A command without configuration logs to standard output, in lines before its answer.
    text = finished.stdout[max(0, finished.stdout.find("{")) :]
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        raise Failure(_last_words(finished), title=f"{arguments[0]} failed ({finished.returncode})") from None
    if "error" in document:
        reason = document.get("reason", "-")
        lines = [document["error"], *([_ADVICE[reason].format(service=service)] if reason in _ADVICE else ())]
        raise Failure("\n".join(lines), title=f"{arguments[0]} refused: {reason}")
    return document


def _module(service: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"services.{service.replace('-', '_')}")


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"no end after {seconds:g} s", title="took too long", exit_code=UNAVAILABLE) from None


def _last_words(finished: subprocess.CompletedProcess[str]) -> str:
    lines = (finished.stderr or finished.stdout).strip().splitlines()
    if any(line.startswith("Traceback ") for line in lines):
        return lines[-1]
    return "\n".join(lines[-_LAST_LINES:]) or "it says nothing"

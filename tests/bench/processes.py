"""Processes that the measurements need beside the suite's; each ends with its block, by its own id."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.suite import ROOT


@contextlib.contextmanager
def child(*command: str, environ: Mapping[str, str] | None = None, log: Path | None = None) -> Iterator[Any]:
    """Run a process for the length of the block and yield it. Its output is a pipe, or goes to `log`."""
    with contextlib.ExitStack() as stack:
        output = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
        errors = None if log is None else subprocess.STDOUT
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors, text=True, cwd=ROOT, env=environ
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def canned(*, held: bool = False) -> Iterator[tuple[str, Any]]:
    """Run the canned backend; yield the root of its API and its process."""
    with child(sys.executable, "-m", "tests.bench.canned", *(["--held"] if held else [])) as process:
        yield f"{process.stdout.readline().strip()}/v1", process


def ask(process: Any, question: object) -> Any:
    """Send a line of JSON and return the line that answers it; blocks."""
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())

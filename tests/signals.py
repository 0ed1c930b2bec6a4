"""Signals whose effect has set in when they return."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

SECONDS = 5.0


def send(pid: int, number: signal.Signals) -> None:
    """Send `number` to process `pid`; after SIGSTOP, none of its threads runs any more.

    kill(2) returns before the threads of a process stop, and one of them may still answer.
    """
    os.kill(pid, number)
    deadline = time.monotonic() + SECONDS
    while number is signal.SIGSTOP and not _stopped(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} does not stop")
        time.sleep(0.001)


def _stopped(pid: int) -> bool:
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)

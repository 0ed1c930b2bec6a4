"""Processes that outlive the command, found again by their pid file."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.cli.failures import Failure
from shared.cli.supervisor import Process, Readiness, exclusive, readiness

READY = Readiness(ready=True, problems={})
NOT_READY = Readiness(ready=False, problems={"store": "still opening"})
OBEDIENT = "import time; print('here', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.stop(drain_seconds=0.0)


def begin(processes: list[Process], folder: Path, script: str) -> Process:
    process = Process("dummy", (sys.executable, "-c", script), folder)
    processes.append(process)
    process.start()
    return process


def says_here(process: Process) -> Iterator[Readiness]:
    return (READY if "here" in process.tail() else NOT_READY for _ in itertools.count())


def test_a_process_is_found_again_by_another_command(processes: list[Process], tmp_path: Path) -> None:
    process = begin(processes, tmp_path, OBEDIENT)
    process.wait_ready(says_here(process), seconds=30)
    again = Process("dummy", (sys.executable, "-c", OBEDIENT), tmp_path)
    assert again.pid() == process.pid() is not None


def test_a_process_that_ended_is_not_ready_whoever_answers_in_its_place(
    processes: list[Process], tmp_path: Path
) -> None:
    process = begin(processes, tmp_path, "raise SystemExit('in use')")
    while process.pid() is not None:
        pass
    with pytest.raises(Failure, match="in use"):
        process.wait_ready(itertools.repeat(READY), seconds=30)


def test_stop_ends_a_process(processes: list[Process], tmp_path: Path) -> None:
    process = begin(processes, tmp_path, OBEDIENT)
    process.wait_ready(says_here(process), seconds=30)
    assert process.stop(drain_seconds=30) == "stopped"
    assert process.pid() is None
    assert process.stop(drain_seconds=30) == "not running"


def test_a_process_that_ignores_the_signal_is_killed(processes: list[Process], tmp_path: Path) -> None:
    process = begin(processes, tmp_path, STUBBORN)
    process.wait_ready(says_here(process), seconds=30)
    pid = process.pid()
    assert process.stop(drain_seconds=0.2) == "killed"
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()


def test_a_pid_that_somebody_else_has_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dummy.pid").write_text(str(os.getpid()))
    process = Process("dummy", (sys.executable, "-c", OBEDIENT), tmp_path)
    assert process.pid() is None
    assert process.stop(drain_seconds=0.0) == "not running"  # this very test would be gone


def test_a_process_that_ends_before_it_is_ready_is_told_with_its_last_words(
    processes: list[Process], tmp_path: Path
) -> None:
    process = begin(processes, tmp_path, "raise SystemExit('no such table')")
    with pytest.raises(Failure, match="no such table"):
        process.wait_ready(itertools.repeat(NOT_READY), seconds=30)


def test_a_process_that_never_gets_ready_is_told_with_its_problems(processes: list[Process], tmp_path: Path) -> None:
    process = begin(processes, tmp_path, OBEDIENT)
    with pytest.raises(Failure, match="still opening") as caught:
        process.wait_ready(itertools.repeat(NOT_READY), seconds=0.0)
    assert caught.value.exit_code == 3


def test_the_log_is_private(processes: list[Process], tmp_path: Path) -> None:
    assert begin(processes, tmp_path, OBEDIENT).log.stat().st_mode & 0o077 == 0


def test_only_one_command_starts_and_stops_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"), pytest.raises(Failure, match="at work here"), exclusive(tmp_path / "run"):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_probes_that_do_not_answer_are_a_problem() -> None:
    found = readiness("127.0.0.1:1")
    assert not found.ready
    assert "no answer" in found.problems["probes"]

"""Core dumps are off: they would hold what is only ever written as ciphertext."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

ALLOW = "import os, resource as r; hard = r.getrlimit(r.RLIMIT_CORE)[1]; r.setrlimit(r.RLIMIT_CORE, (hard, hard)); "
FORBID = "from shared.cores import forbid_core_dumps; forbid_core_dumps(); "
# What a service starts crashes as well: exec keeps the limits.
CRASH = "os.execv(sys.executable, [sys.executable, '-c', 'import os; os.abort()'])"

pytestmark = pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="cores are forbidden here")


def ended(code: str) -> int:
    """Run `code` where cores are allowed; return its wait status."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", f"import sys; {ALLOW}{code}"], environment)
    return os.waitpid(pid, 0)[1]


def test_a_process_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    status = ended(f"os.chdir({str(tmp_path)!r}); {FORBID}{CRASH}")
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_the_one_that_crash_collectors_respect_too() -> None:
    assert ended(f"{FORBID}{FORBID}sys.exit(r.getrlimit(r.RLIMIT_CORE) != (1, 1))") == 0

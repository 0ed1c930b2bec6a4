"""Run a program that dies with its parent: `python -I -S tether.py PARENT_PID BYTES PROGRAM [ARGUMENT ...]`.

It and what it starts have `BYTES` of memory each (RLIMIT_DATA: what Linux counts there is what can be written, so that
address space that a runtime only reserves, as Go's does, is free).

A service killed with SIGKILL cannot clean up; Linux's PR_SET_PDEATHSIG (prctl(2)) survives execve and does. A
shim sets it because `preexec_fn` is unsafe in a process with threads. Off Linux the program runs untethered.
This file imports nothing but the standard library, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL to this process when the thread that forked it ends.

    Raises SystemExit where `parent`, the expected process id, is already gone, and OSError where prctl fails.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the parent process is gone")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - the service names the program; no shell, no user input

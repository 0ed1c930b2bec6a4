"""`python -m tests.twice PYTEST-ARGUMENTS`: how CI runs tests, where a machine that stood still is no verdict.

Few failing tests are run once more, one after the other and in a process of their own. Those that pass then are named
as FLAKY, which is a defect, of the test or of what it tests; those that fail again, and any other trouble, fail the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MOST = 3


def main(arguments: list[str]) -> int:
    """Return the exit status of pytest, or 0 where at most `MOST` tests failed and pass alone."""
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryDirectory() as folder:
        remembering = ["-o", f"cache_dir={folder}"]
        status = subprocess.run([*pytest, *arguments, *remembering], check=False).returncode
        failed = Path(folder) / "v/cache/lastfailed"
        names = list(json.loads(failed.read_text())) if status == 1 and failed.exists() else []
    if not 1 <= len(names) <= MOST:
        return status
    print("\nfailed, and run once more:", *names, sep="\n  ", flush=True)
    again = subprocess.run([*pytest, "--timeout", "600", *names], check=False).returncode
    if again == 0:
        print("FLAKY, passed the second time:", *names, sep="\n  ", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

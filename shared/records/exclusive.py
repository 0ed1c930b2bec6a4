"""One process for each SQLite database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from shared.records.errors import DatabaseInUse, RecordsMisconfigured


class ExclusiveLock:
    """An advisory lock on `<path>.lock`, which the kernel drops when the process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once; raises `DatabaseInUse` if another holder, in any process, has it."""
        lock = path.with_name(f"{path.name}.lock")
        try:
            self._file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            raise RecordsMisconfigured("the lock file beside the database cannot be opened") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise DatabaseInUse("another process has this SQLite database open, and only one may") from None

    def release(self) -> None:
        """Let go. The file stays: removing it would let two holders lock two files of one name."""
        os.close(self._file)

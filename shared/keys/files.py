"""Key and trust files: read only while nobody else could have changed or seen them, written atomically.

"Atomic" is POSIX rename(2)/link(2) within one directory; "durable" means that the file and then its directory
are fsynced before the call returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from shared import errors

PRIVATE = 0o177  # anything beyond owner read and write
WRITABLE_BY_OTHERS = 0o022
_MAX_SIZE = 1 << 20


class KeyFileRefused(errors.FailedPrecondition):
    """A key or trust file is missing, malformed, owned by someone else, or open to others."""

    reason = "KEY_FILE_REFUSED"


def read(path: Path, *, forbidden_mode: int) -> bytes:
    """Return the content of `path`, at most 1 MiB.

    Raises `KeyFileRefused` unless it is a regular file that belongs to this process's user or root and has no
    permission bit of `forbidden_mode`. The checks are made on the open file, so a swap cannot slip past them.
    """
    try:
        # Non-blocking, so that a FIFO put in the file's place cannot hang the opener.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileRefused(f"{path.name} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileRefused(f"{path.name} is not a regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise KeyFileRefused(f"{path.name} belongs to another user")
        if status.st_mode & forbidden_mode:
            raise KeyFileRefused(f"{path.name} has wider permissions than it may have: {0o666 & ~forbidden_mode:04o}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(_MAX_SIZE + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_SIZE:
        raise KeyFileRefused(f"{path.name} is too large")
    return content


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the one lock (flock(2)) for changes to files in `directory`; `Aborted` if another holds it now."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise KeyFileRefused("the directory of the key file cannot be opened") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise errors.Aborted("keys are being changed by another process") from None
    finally:
        os.close(descriptor)


def create(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600, atomically and durably.

    Raises `AlreadyExists` rather than replace one, `Aborted` as `locked` does.
    """
    with locked(path.parent):
        _publish(path, content, Path.hardlink_to)  # unlike rename(2), link(2) fails where the name is taken


def replace(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in place of `path`, atomically and durably. Callers MUST hold `locked`."""
    _publish(path, content, lambda target, source: source.replace(target))


def fsync_directory(path: Path) -> None:
    """Make the entries of directory `path` durable: fsync(2) of a file does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(path: Path, content: bytes, publish: Callable[[Path, Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.new")  # one name, so that a crash leaves at most one copy
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            publish(path, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(path.parent)
    except FileExistsError:
        raise errors.AlreadyExists(f"{path.name} exists") from None
    except OSError:
        raise KeyFileRefused(f"{path.name} cannot be written") from None

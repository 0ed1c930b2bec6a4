"""Records that the audit log could not take yet: sealed on disk until they are delivered or set aside."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import Gauge

from bastide.audit.v1 import record_pb2
from shared.errors import Unavailable
from shared.keys import KeyProvider, files, seal, unseal

USE = "outbox"
PURPOSE = "audit-record"
MAX_RECORDS = 10_000
_WAITING = ".sealed"
_ASIDE = ".aside"

RECORDS = Gauge(
    "bastide_outbox_records",
    "Records of what has happened that the audit log does not have: `waiting` for it, or set `aside` for a person.",
    ["state"],
)
OLDEST_AGE = Gauge(
    "bastide_outbox_oldest_age_seconds", "How long the oldest record that waits for the audit log has waited; 0: none."
)


class OutboxFull(Unavailable):
    """Too many records wait; nothing new may happen until the audit log takes them."""

    reason = "OUTBOX_FULL"


class Outbox:
    """A folder of sealed records. What `put` wrote is durable when it returns and stays until `delete`."""

    def __init__(self, folder: Path, keys: KeyProvider, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Keep records in `folder`, which is this process's alone and made where it is missing, sealed by `keys`.

        `clock` gives nanoseconds since 1970. Raises OSError where the folder cannot be had.
        """
        if not folder.exists():
            folder.mkdir(mode=0o700)
            files.fsync_directory(folder.parent)
        self._folder = folder
        self._keys = keys
        self._clock = clock
        self._writing = asyncio.Lock()
        self._looking = threading.Lock()
        self._count = 0
        self._oldest: int | None = None
        self._look()
        OLDEST_AGE.set_function(self._oldest_age)

    def check(self) -> None:
        """Raise OutboxFull when the record of something new might find no room."""
        if self._count >= MAX_RECORDS:
            raise OutboxFull("too many records wait for the audit log", retry_after=5.0)

    async def put(self, record: record_pb2.Record) -> None:
        """Keep `record` until it is deleted or set aside."""
        async with self._writing:
            await asyncio.to_thread(self._write, record)

    async def waiting(self, most: int) -> Sequence[str]:
        """Return the names of up to `most` records, oldest first."""
        return (await asyncio.to_thread(self._look))[:most]

    async def read(self, name: str) -> record_pb2.Record:
        """Return the record called `name`. Raises DataLoss when its bytes are not what was put there."""
        content = await asyncio.to_thread((self._folder / name).read_bytes)
        return record_pb2.Record.FromString(unseal(content, self._keys, use=USE, purpose=PURPOSE, name=name))

    async def delete(self, name: str) -> None:
        """Forget the record called `name`, durably."""
        await asyncio.to_thread(self._settle, name, aside=False)

    async def set_aside(self, name: str) -> None:
        """Keep the record called `name` for a person to look at; it waits no more."""
        await asyncio.to_thread(self._settle, name, aside=True)

    def _write(self, record: record_pb2.Record) -> None:
        name = f"{self._clock():020d}-{record.record_id}{_WAITING}"
        sealed = seal(record.SerializeToString(), self._keys, use=USE, purpose=PURPOSE, name=name)
        files.create(self._folder / name, sealed)
        self._look()

    def _settle(self, name: str, *, aside: bool) -> None:
        path = self._folder / name
        if aside:
            path.rename(path.with_suffix(_ASIDE))
        else:
            path.unlink()
        files.fsync_directory(self._folder)
        self._look()

    def _look(self) -> list[str]:
        """Take note of what is there and return the names of what waits, oldest first."""
        with self._looking:  # or an older look could overwrite a newer one
            names = sorted(path.name for path in self._folder.iterdir())
            waiting = [name for name in names if name.endswith(_WAITING)]
            self._count = len(waiting)
            # Whatever else a person put there is no record and is set aside when it is read.
            self._oldest = next((int(name[:20]) for name in waiting if name[:20].isdecimal()), None)
            RECORDS.labels("waiting").set(self._count)
            RECORDS.labels("aside").set(sum(name.endswith(_ASIDE) for name in names))
        return waiting

    def _oldest_age(self) -> float:
        oldest = self._oldest
        return 0.0 if oldest is None else max(0.0, (self._clock() - oldest) / 1e9)

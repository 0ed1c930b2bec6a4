"""Records that the audit log could not take yet: sealed on disk, delivered in order, deleted when acknowledged."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bastide.audit.v1 import record_pb2
from shared.audit import AuditLog
from shared.errors import Unavailable
from shared.keys import KeyProvider, files, seal, unseal

USE = "outbox"
PURPOSE = "audit-record"
MAX_RECORDS = 10_000
_BATCH = 64


class OutboxFull(Unavailable):
    """Too many records wait; calls are refused until the audit log takes them."""

    reason = "OUTBOX_FULL"


class Outbox:
    """A folder of sealed records. `put` is durable when it returns."""

    def __init__(self, folder: Path, keys: KeyProvider, audit: AuditLog) -> None:
        """Keep records in `folder`, which exists, until `audit` acknowledges them."""
        self._folder = folder
        self._keys = keys
        self._audit = audit
        self._delivering = asyncio.Lock()

    async def put(self, record: record_pb2.Record) -> None:
        """Keep `record` until it is delivered. Raises OutboxFull."""
        await asyncio.to_thread(self._write, record)

    async def check(self) -> None:
        """Raise OutboxFull when another call's record might not find room."""
        if await asyncio.to_thread(lambda: len(self._waiting())) >= MAX_RECORDS:
            raise OutboxFull("too many records wait for the audit log", retry_after=5.0)

    async def deliver(self) -> int:
        """Deliver what waits, oldest first; return how many were. Raises AuditUnavailable; the rest stays."""
        delivered = 0
        async with self._delivering:
            while names := (await asyncio.to_thread(self._waiting))[:_BATCH]:
                records = [await asyncio.to_thread(self._read, name) for name in names]
                await self._audit.append(records)
                await asyncio.to_thread(self._delete, names)
                delivered += len(names)
        return delivered

    def _waiting(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if path.suffix == ".sealed")

    def _write(self, record: record_pb2.Record) -> None:
        name = f"{time.time_ns():020d}-{record.record_id}.sealed"
        sealed = seal(record.SerializeToString(), self._keys, use=USE, purpose=PURPOSE, name=name)
        files.create(self._folder / name, sealed)

    def _read(self, name: str) -> record_pb2.Record:
        content = (self._folder / name).read_bytes()
        return record_pb2.Record.FromString(unseal(content, self._keys, use=USE, purpose=PURPOSE, name=name))

    def _delete(self, names: list[str]) -> None:
        for name in names:
            (self._folder / name).unlink()
        files.fsync_directory(self._folder)

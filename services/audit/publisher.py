"""Publishes the log as a C2SP tlog-tiles directory, from which anyone can verify it without this service."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import Gauge
from sqlalchemy import select

from services.audit.errors import LogCorrupt, WrongLog
from services.audit.reader import LogReader
from services.audit.tables import entries
from services.audit.tiles import Tiles
from shared.errors import DataLoss, FailedPrecondition
from shared.records.store import Records
from shared.transparency.checkpoint import Checkpoint, verify_checkpoint
from shared.transparency.merkle import HASH_SIZE, Range
from shared.transparency.note import MAX_NOTE_BYTES, Verifier
from shared.transparency.tiles import (
    TILE_WIDTH,
    TileId,
    bundle_path,
    encode_bundle,
    tile_path,
    tiles_between,
)

PUBLISHED_ENTRIES = Gauge("bastide_log_published_entries", "Size of the tree that the published directory shows.")
PUBLISHED_AT = Gauge(
    "bastide_log_published_timestamp_seconds", "When this process last brought the directory up to date or found it so."
)


class Publisher:
    """Brings the directory up to the newest checkpoint, whatever an earlier run left half done."""

    def __init__(self, records: Records, reader: LogReader, log: Verifier, directory: Path) -> None:
        """Publish below `directory`, which is created; one log to a directory."""
        self._records = records
        self._reader = reader
        self._log = log
        self._directory = directory
        self._tiles = Tiles(cached=0)

    async def publish(self) -> Checkpoint | None:
        """Write what the directory lacks, its `checkpoint` last, and return the checkpoint it then has.

        None says that another publisher is at work on the directory. Every file appears whole or not at all and
        is on disk before the checkpoint that needs it. Raises `LogCorrupt` if the published log is not a prefix of
        the stored one (as after restoring an old backup: the log MUST NOT go on then), `WrongLog`,
        `RecordsUnavailable`, or `FailedPrecondition` where the directory cannot be written.
        """
        try:
            await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True)
            with _exclusive(self._directory) as free:
                shown = await self._publish() if free else None
        except OSError as error:
            raise FailedPrecondition("the published directory cannot be written") from error
        if shown is not None:
            PUBLISHED_ENTRIES.set(shown.size)
            PUBLISHED_AT.set_to_current_time()
        return shown

    async def _publish(self) -> Checkpoint:
        published = await asyncio.to_thread(self._published)
        head = await self._reader.head()
        if published is not None:
            await self._check_prefix(published, head.size)
            if head.size == published.size:
                return published
        filled: list[str] = []
        for tile, width in tiles_between(published.size if published else 0, head.size):
            await self._write_tile(tile, width)
            if width == TILE_WIDTH:
                filled.append(tile_path(tile, TILE_WIDTH))
                if tile.level == 0:
                    filled.append(bundle_path(tile.number, TILE_WIDTH))
        await asyncio.to_thread(_write, self._directory / "checkpoint", head.checkpoint.encode())
        await asyncio.to_thread(self._drop_partials, filled)
        return verify_checkpoint(head.checkpoint, self._log)

    async def _write_tile(self, tile: TileId, width: int) -> None:
        async with self._records.read() as connection:
            hashes = (await self._tiles.load(connection, [tile])).get(tile, b"")[: width * HASH_SIZE]
            leaves: list[bytes] = []
            if tile.level == 0:
                start = tile.number * TILE_WIDTH
                index = entries.c.entry_index
                query = select(entries.c.leaf).where(index >= start, index < start + width).order_by(index)
                leaves = list(await connection.scalars(query))
        if len(hashes) != width * HASH_SIZE or (tile.level == 0 and len(leaves) != width):
            raise LogCorrupt("the store lacks part of the tree that was signed")
        if tile.level == 0:
            path = self._directory / bundle_path(tile.number, width)
            await asyncio.to_thread(_write, path, encode_bundle(leaves))
        await asyncio.to_thread(_write, self._directory / tile_path(tile, width), hashes)

    def _published(self) -> Checkpoint | None:
        try:
            with (self._directory / "checkpoint").open("rb") as file:
                note = file.read(MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            return verify_checkpoint(note.decode(errors="replace"), self._log)
        except DataLoss:
            raise WrongLog("the published directory is not of this log") from None

    async def _check_prefix(self, published: Checkpoint, size: int) -> None:
        if published.size > size:
            raise LogCorrupt("the published log is ahead of the store: the store was rolled back")
        async with self._records.read() as connection:
            roots = await self._tiles.read(connection, [Range(0, published.size)])
        if roots != [published.root]:
            raise LogCorrupt("the published log is not a prefix of the stored one")

    def _drop_partials(self, filled: list[str]) -> None:
        for path in filled:
            partials = self._directory / f"{path}.p"
            if partials.is_dir():
                shutil.rmtree(partials)


@contextmanager
def _exclusive(directory: Path) -> Iterator[bool]:
    """Yield whether this publisher is the only one; the lock ends with the process."""
    file = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

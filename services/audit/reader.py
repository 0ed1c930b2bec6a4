"""Reads the log: entries, searches, proofs and the live tail. Any replica may, at any time."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from services.audit.entry import Record
from services.audit.errors import LogCorrupt
from services.audit.search import Filter, decode_page_token, encode_page_token
from services.audit.store import RECORD_COLUMNS, Head, read_head, to_record
from services.audit.tables import entries
from services.audit.tiles import Tiles
from services.audit.wakeup import Wakeup
from shared.errors import InvalidArgument, NotFound
from shared.records.store import Records
from shared.transparency.errors import Unverified
from shared.transparency.merkle import consistency_plan, inclusion_plan, verify_inclusion
from shared.transparency.proof import TlogProof
from shared.transparency.tiles import TileId, tile_width

MAX_PAGE_SIZE = 500
# Beside the other fields of 500 entries it leaves a response below the 4 MiB that any gRPC client takes.
MAX_PAGE_BYTES = 3 * 1024 * 1024
# How many entries one query may look at: about a second's work, whatever it looks for.
MAX_SCANNED = 100_000
_TAIL_PAGE = 256


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of a search's entries, and the token for the next; empty on the last page."""

    records: tuple[Record, ...]
    next_page_token: str


class LogReader:
    """Reads a log that has been opened. Every method raises `RecordsUnavailable` where the store fails."""

    def __init__(self, records: Records, tiles: Tiles, grown: Wakeup, *, poll_seconds: float = 1.0) -> None:
        """Read from `records`; `poll_seconds` is how late another replica's entries may reach a tail."""
        self._records = records
        self._tiles = tiles
        self._grown = grown
        self._poll = poll_seconds

    async def head(self) -> Head:
        """Return the newest signed tree."""
        async with self._records.read() as connection:
            found = await read_head(connection)
        if found is None:
            raise LogCorrupt("the log has no head")
        return found

    async def get(self, index: int) -> Record:
        """Return an entry; raises `NotFound`."""
        page = await self._select(Filter(), after=index - 1, limit=1, descending=False)
        if index < 0 or not page or page[0].index != index:
            raise NotFound("the log has no entry of that index")
        return page[0]

    async def newest(self, wanted: Filter) -> Record:
        """Return the last entry that matches, as of a call or decision; raises `NotFound`."""
        found = await self._select(wanted, after=None, limit=1, descending=True)
        if not found:
            raise NotFound("the log has no such entry")
        return found[0]

    async def search(self, wanted: Filter, *, page_size: int, page_token: str = "", descending: bool = True) -> Page:
        """Return one page in index order: at most 500 entries, and 3 MiB of leaves, out of at most 100,000 looked at.

        A page may hold less than was asked for, or nothing, and more may follow all the same: only an empty token
        is the end. Pages are stable: what is appended meanwhile never moves an entry to another page. Raises
        `InvalidArgument` on a bad size, or a token of another filter or order.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidArgument("a page has 1 to 500 entries", field="page_size")
        digest = wanted.digest(descending=descending)
        after = decode_page_token(page_token, digest) if page_token else None
        end, last = (await self.head()).size, None
        if not wanted.keyed:
            first = (end if descending else -1) if after is None else min(after, end)
            last = max(first - MAX_SCANNED, 0) if descending else min(first + MAX_SCANNED, end - 1)
        found = await self._select(wanted, after=after, limit=page_size + 1, descending=descending, last=last)
        sizes = itertools.accumulate(len(record.leaf) for record in found[:page_size])
        records = tuple(record for record, size in zip(found, sizes, strict=False) if size <= MAX_PAGE_BYTES)
        following = ""
        if len(found) > len(records):
            following = encode_page_token(records[-1].index, digest)
        elif last is not None and 0 < last < end - 1:
            following = encode_page_token(last, digest)
        return Page(records=records, next_page_token=following)

    async def tail(self, from_index: int, wanted: Filter | None = None) -> AsyncIterator[Record]:
        """Yield matching entries from `from_index` on, for ever, each as soon as it is committed.

        A slow consumer costs no memory: entries are read when it asks. Callers MUST close the iterator.
        """
        following = from_index
        while True:
            generation = self._grown.generation
            end = (await self.head()).size
            while following < end:
                last = min(following + MAX_SCANNED, end) - 1
                found = await self._select(
                    wanted or Filter(), after=following - 1, limit=_TAIL_PAGE, descending=False, last=last
                )
                for record in found:
                    yield record
                following = (found[-1].index if len(found) == _TAIL_PAGE else last) + 1
            await self._grown.wait(generation, self._poll)

    async def inclusion(self, index: int, tree_size: int) -> tuple[bytes, ...]:
        """Return the audit path of an entry in the tree of `tree_size`; raises `InvalidArgument`."""
        if not 0 <= index < tree_size <= (await self.head()).size:
            raise InvalidArgument("the index or the tree lies beyond the log", field="tree_size")
        async with self._records.read() as connection:
            return tuple(await self._tiles.read(connection, inclusion_plan(index, tree_size)))

    async def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """Return the proof that tree `second` extends tree `first`; raises `InvalidArgument`."""
        if not 0 <= first <= second <= (await self.head()).size:
            raise InvalidArgument("the sizes are out of order or beyond the log", field="second")
        async with self._records.read() as connection:
            return tuple(await self._tiles.read(connection, consistency_plan(first, second)))

    async def prove(self, record: Record) -> TlogProof:
        """Return the proof of an entry to the newest checkpoint; raises `LogCorrupt` if it would not verify."""
        head = await self.head()
        path = await self.inclusion(record.index, head.size)
        try:
            verify_inclusion(record.leaf_hash, record.index, head.size, path, head.root)
        except Unverified as error:
            raise LogCorrupt("a stored entry is not in the tree that was signed") from error
        return TlogProof(index=record.index, hashes=path, checkpoint=head.checkpoint)

    async def tile(self, tile: TileId) -> bytes:
        """Return the tile's hashes as of the newest checkpoint; raises `NotFound`."""
        width = tile_width(tile.level, tile.number, (await self.head()).size)
        async with self._records.read() as connection:
            stored = (await self._tiles.load(connection, [tile])).get(tile, b"")
        if not width:
            raise NotFound("the tree has no such tile")
        if len(stored) < width * 32:
            raise LogCorrupt("a tile is missing from the store")
        return stored[: width * 32]

    async def _select(
        self, wanted: Filter, *, after: int | None, limit: int, descending: bool, last: int | None = None
    ) -> Sequence[Record]:
        index = entries.c.entry_index
        query = select(*RECORD_COLUMNS).where(*wanted.conditions()).limit(limit)
        if after is not None:
            query = query.where(index < after if descending else index > after)
        if last is not None:
            query = query.where(index >= last if descending else index <= last)
        async with self._records.read() as connection:
            rows = await connection.execute(query.order_by(index.desc() if descending else index))
            return [to_record(row) for row in rows]

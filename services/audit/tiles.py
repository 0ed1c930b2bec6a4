"""Reads the tree's hashes out of the store, a tile at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

from sqlalchemy import select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.errors import LogCorrupt
from services.audit.tables import hash_tiles
from shared.transparency.errors import Malformed
from shared.transparency.merkle import HASH_SIZE, Range, fold
from shared.transparency.tiles import TILE_WIDTH, TileId, TileReader, tiles_of
from shared.transparency.tree import Tree, right_edge

_UPSERT = text(
    "INSERT INTO hash_tiles (level, number, hashes) VALUES (:level, :number, :hashes) "
    "ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes"
)


class Tiles:
    """The stored tiles; full ones never change, so the newest used stay in memory (8 KiB each)."""

    def __init__(self, *, cached: int = 1024) -> None:
        """Keep at most `cached` full tiles."""
        self._cached = cached
        self._full: OrderedDict[TileId, bytes] = OrderedDict()

    async def load(self, connection: AsyncConnection, tiles: Collection[TileId]) -> dict[TileId, bytes]:
        """Return those of `tiles` that the store has, at the width it has them."""
        found = {tile: self._full[tile] for tile in tiles if tile in self._full}
        for tile in found:
            self._full.move_to_end(tile)
        missing = [tuple(tile) for tile in tiles if tile not in found]
        if missing:
            columns = hash_tiles.c
            rows = await connection.execute(
                select(columns.level, columns.number, columns.hashes).where(
                    tuple_(columns.level, columns.number).in_(missing)
                )
            )
            for level, number, hashes in rows:
                found[TileId(level, number)] = hashes
                self._remember(TileId(level, number), hashes)
        return found

    async def read(self, connection: AsyncConnection, plan: list[Range]) -> list[bytes]:
        """Return the hash of each range of `plan`; raises `LogCorrupt` where the store lacks a tile of it."""
        reader = TileReader(await self.load(connection, tiles_of(plan)))
        try:
            return [fold(reader, leaves) for leaves in plan]
        except Malformed as error:
            raise LogCorrupt(error.message) from error

    async def resume(self, connection: AsyncConnection, size: int, root: bytes) -> Tree:
        """Return the tree of `size` leaves, ready to grow; raises `LogCorrupt` unless its root is `root`."""
        edge = right_edge(size)
        stored = await self.load(connection, [tile for tile, _ in edge])
        if any(len(stored.get(tile, b"")) != width * HASH_SIZE for tile, width in edge):
            raise LogCorrupt("the right edge of the tree is not in the store")
        tree = Tree(size, stored)
        if tree.root() != root:
            raise LogCorrupt("the stored tree does not have the root that was signed")
        return tree

    async def store(self, connection: AsyncConnection, changed: Mapping[TileId, bytes]) -> None:
        """Write `changed`. They count as stored only once the transaction is committed."""
        rows = [{"level": t.level, "number": t.number, "hashes": hashes} for t, hashes in changed.items()]
        await connection.execute(_UPSERT, rows)

    def _remember(self, tile: TileId, hashes: bytes) -> None:
        if len(hashes) < TILE_WIDTH * HASH_SIZE:
            return
        self._full[tile] = hashes
        if len(self._full) > self._cached:
            self._full.popitem(last=False)

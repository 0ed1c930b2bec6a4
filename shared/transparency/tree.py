"""A growing tree that keeps only its right edge in memory."""

from __future__ import annotations

from collections.abc import Mapping

from shared.transparency.merkle import HASH_SIZE, Node, Range, fold, hash_children
from shared.transparency.tiles import MAX_LEVEL, TILE_HEIGHT, TILE_WIDTH, TileId, TileReader

# As many as the tiles of a right edge of four levels, some 4 billion leaves, have.
_MAX_INNER = 4 * TILE_WIDTH


def _tile_root(tile: bytes) -> bytes:
    read = TileReader({TileId(0, 0): tile})
    return hash_children(read(Node(TILE_HEIGHT - 1, 0)), read(Node(TILE_HEIGHT - 1, 1)))


def right_edge(size: int) -> list[tuple[TileId, int]]:
    """Return (tile, width) of the partial tile of each level that a tree of `size` leaves ends in, if any."""
    edge: list[tuple[TileId, int]] = []
    for level in range(MAX_LEVEL + 1):
        count = size >> (TILE_HEIGHT * level)
        if count == 0:
            break
        if count % TILE_WIDTH:
            edge.append((TileId(level, count // TILE_WIDTH), count % TILE_WIDTH))
    return edge


class Tree:
    """An append-only Merkle tree of tiles.

    Between `take`s at most 255 hashes a level stay in memory, and a bounded number of the nodes above them.
    """

    def __init__(self, size: int = 0, edge: Mapping[TileId, bytes] | None = None) -> None:
        """Resume a tree of `size` leaves from the tiles of `right_edge(size)`; wider ones are cut."""
        self.size = size
        self._tiles = {tile: (edge or {})[tile][: width * HASH_SIZE] for tile, width in right_edge(size)}
        self._dirty: set[TileId] = set()
        self._inner: dict[Node, bytes] = {}

    def append(self, leaf_hash: bytes) -> int:
        """Add a leaf and return its index."""
        index = self.size
        self.size += 1
        level, position, value = 0, index, leaf_hash
        while True:
            tile = TileId(level, position // TILE_WIDTH)
            data = self._tiles.get(tile, b"") + value
            self._tiles[tile] = data
            self._dirty.add(tile)
            if len(data) < TILE_WIDTH * HASH_SIZE:
                return index
            level, position, value = level + 1, tile.number, _tile_root(data)

    def reader(self) -> TileReader:
        """Return a reader over the right edge and what was appended since `take`, as it is now."""
        return TileReader(dict(self._tiles), self._inner)

    def root(self) -> bytes:
        """Return the root hash of the tree as it is now."""
        # The perfect subtrees that make up the whole tree all lie in the partial tile of their level.
        return fold(TileReader(self._tiles, self._inner), Range(0, self.size))

    def edge(self, tile: TileId) -> bytes:
        """Return the hashes of a tile of `right_edge(size)`."""
        return self._tiles[tile]

    def take(self) -> dict[TileId, bytes]:
        """Return the tiles that changed since the last call, and forget all but the right edge."""
        changed = {tile: self._tiles[tile] for tile in sorted(self._dirty)}
        self._dirty.clear()
        self._tiles = {tile: self._tiles[tile] for tile, _ in right_edge(self.size)}
        if len(self._inner) > _MAX_INNER:
            self._inner = {}
        return changed

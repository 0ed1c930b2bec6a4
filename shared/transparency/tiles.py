"""Tiles and entry bundles of a log, and where they lie (c2sp.org/tlog-tiles)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from shared.transparency.errors import Malformed
from shared.transparency.merkle import HASH_SIZE, Node, Range, decompose, hash_children

TILE_WIDTH = 256
TILE_HEIGHT = 8
MAX_LEAF_BYTES = 2**16 - 1
MAX_LEVEL = 63


class TileId(NamedTuple):
    """Tile `number` of `level`, whatever its width."""

    level: int
    number: int


def tile_of(node: Node) -> TileId:
    """Return the tile from which the hash of `node` is computed."""
    level, height = divmod(node.height, TILE_HEIGHT)
    return TileId(level, (node.position << height) // TILE_WIDTH)


def tiles_of(plan: Iterable[Range]) -> set[TileId]:
    """Return every tile that reading `plan` needs."""
    return {tile_of(node) for leaves in plan for node in decompose(leaves)}


def tile_width(level: int, index: int, size: int) -> int:
    """Return how many hashes (level 0: also entries) the tile has in a tree of `size` leaves, 0 to 256."""
    return min(max((size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH, 0), TILE_WIDTH)


def tiles_between(old: int, new: int) -> Iterator[tuple[TileId, int]]:
    """Yield (tile, width) of each tile that a tree of `new` leaves has beyond one of `old`, leaves first."""
    for level in range(MAX_LEVEL + 1):
        end = new >> (TILE_HEIGHT * level)
        start = old >> (TILE_HEIGHT * level)
        if end == 0:
            return
        if end == start:
            continue
        for index in range(start // TILE_WIDTH, (end - 1) // TILE_WIDTH + 1):
            yield TileId(level, index), tile_width(level, index, new)


def _index_path(index: int, width: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def tile_path(tile: TileId, width: int) -> str:
    """Return the path of a tile of `width` hashes (1 to 256) below the log's root."""
    return f"tile/{tile.level}/{_index_path(tile.number, width)}"


def bundle_path(index: int, width: int) -> str:
    """Return the path of an entry bundle of `width` entries (1 to 256) below the log's root."""
    return f"tile/entries/{_index_path(index, width)}"


def encode_bundle(leaves: Sequence[bytes]) -> bytes:
    """Return the entry bundle of `leaves`, each at most 65,535 bytes."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """Return the `width` leaves of a bundle; raises `Malformed` if it holds fewer, more or a torn one."""
    leaves: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data) or len(leaves) == width:
            raise Malformed("the entry bundle has a torn entry or too many")
        leaves.append(data[at + 2 : end])
        at = end
    if len(leaves) != width:
        raise Malformed("the entry bundle has too few entries")
    return leaves


class TileReader:
    """Reads the hashes of perfect subtrees out of tiles that the caller has fetched (`tiles_of`).

    It remembers inner nodes, so that proofs for neighbouring leaves share their work; its memory is bounded
    by 256 hashes for each tile it was given.
    """

    def __init__(self, tiles: Mapping[TileId, bytes], inner: dict[Node, bytes] | None = None) -> None:
        """Take tiles as concatenated hashes; they may be wider than the tree that is read requires.

        `inner` holds inner nodes that are known already and takes those that are computed: perfect subtrees never
        change, so that readers of one growing tree may share it.
        """
        self._tiles = tiles
        self._inner = {} if inner is None else inner

    def __call__(self, node: Node) -> bytes:
        """Return the hash of `node`; raises `Malformed` if its tile is missing or too short."""
        level, height = divmod(node.height, TILE_HEIGHT)
        if height == 0:
            index, offset = divmod(node.position, TILE_WIDTH)
            start = offset * HASH_SIZE
            value = self._tiles.get(TileId(level, index), b"")[start : start + HASH_SIZE]
            if len(value) != HASH_SIZE:
                raise Malformed(f"tile {level}/{index} lacks hash {offset}")
            return value
        known = self._inner.get(node)
        if known is None:
            left = self(Node(node.height - 1, node.position * 2))
            known = hash_children(left, self(Node(node.height - 1, node.position * 2 + 1)))
            self._inner[node] = known
        return known

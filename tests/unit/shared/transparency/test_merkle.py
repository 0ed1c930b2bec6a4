"""The tree against RFC 6962: the reference definitions, the known vectors, and proofs that were tampered with."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transparency import merkle
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.merkle import Range
from shared.transparency.tiles import TileId, TileReader, tile_width, tiles_between, tiles_of
from shared.transparency.tree import Tree, right_edge

# The leaves and roots of the RFC 6962 reference implementation's test suite.
VECTOR_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
VECTOR_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaf(index: int) -> bytes:
    return f"leaf {index}".encode()


def reference_root(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + reference_root(leaves[:k]) + reference_root(leaves[k:])).digest()


def reference_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH as RFC 6962 section 2.1.1 writes it."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*reference_path(m, leaves[:k]), reference_root(leaves[k:])]
    return [*reference_path(m - k, leaves[k:]), reference_root(leaves[:k])]


def reference_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF as RFC 6962 section 2.1.2 writes it."""
    if m == len(leaves):
        return [] if whole else [reference_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*reference_subproof(m, leaves[:k], whole), reference_root(leaves[k:])]
    return [*reference_subproof(m - k, leaves[k:], False), reference_root(leaves[:k])]


def grow(size: int) -> tuple[Tree, dict[TileId, bytes]]:
    """A tree and every tile it ever changed, as a store would hold them."""
    tree, tiles = Tree(), {}
    for index in range(size):
        tree.append(merkle.hash_leaf(leaf(index)))
        if index % 7 == 0:
            tiles.update(tree.take())
    tiles.update(tree.take())
    return tree, tiles


LARGE = 70_000


@pytest.fixture(scope="module")
def large() -> tuple[Tree, dict[TileId, bytes]]:
    return grow(LARGE)


def proof(tiles: dict[TileId, bytes], plan: list[Range]) -> list[bytes]:
    read = TileReader({tile: tiles[tile] for tile in tiles_of(plan)})
    return [merkle.fold(read, leaves) for leaves in plan]


@pytest.mark.parametrize("size", range(1, 9))
def test_known_vectors_give_the_known_roots(size: int) -> None:
    tree = Tree()
    for data in VECTOR_LEAVES[:size]:
        tree.append(merkle.hash_leaf(data))
    assert tree.root().hex() == VECTOR_ROOTS[size - 1]


def test_known_vectors_give_the_known_proofs() -> None:
    tree = Tree()
    for data in VECTOR_LEAVES:
        tree.append(merkle.hash_leaf(data))
    tiles = tree.take()
    assert [h.hex()[:16] for h in proof(tiles, merkle.inclusion_plan(0, 8))] == [
        "96a296d224f285c6",
        "5f083f0a1a33ca07",
        "6b47aaf29ee3c2af",
    ]
    assert [h.hex()[:16] for h in proof(tiles, merkle.consistency_plan(6, 8))] == [
        "0ebc5d3437fbe2db",
        "ca854ea128ed050b",
        "d37ee418976dd957",
    ]


def test_empty_tree_has_the_hash_of_nothing() -> None:
    assert Tree().root() == merkle.EMPTY_ROOT == reference_root([])


@given(st.integers(1, 600), st.data())
def test_proofs_equal_the_definitions_and_verify(size: int, data: st.DataObject) -> None:
    leaves = [leaf(i) for i in range(size)]
    tree, tiles = grow(size)
    root = reference_root(leaves)
    assert tree.root() == root
    index = data.draw(st.integers(0, size - 1))
    path = proof(tiles, merkle.inclusion_plan(index, size))
    assert path == reference_path(index, leaves)
    merkle.verify_inclusion(merkle.hash_leaf(leaves[index]), index, size, path, root)
    first = data.draw(st.integers(1, size))
    steps = proof(tiles, merkle.consistency_plan(first, size))
    assert steps == reference_subproof(first, leaves, True)
    merkle.verify_consistency(first, reference_root(leaves[:first]), size, root, steps)


@given(st.data())
def test_proofs_across_levels_verify(large: tuple[Tree, dict[TileId, bytes]], data: st.DataObject) -> None:
    _, tiles = large
    size = data.draw(st.integers(1, LARGE))
    first = data.draw(st.integers(0, size))
    index = data.draw(st.integers(0, size - 1))

    def root(n: int) -> bytes:
        return proof(tiles, [Range(0, n)])[0]

    path = proof(tiles, merkle.inclusion_plan(index, size))
    merkle.verify_inclusion(merkle.hash_leaf(leaf(index)), index, size, path, root(size))
    steps = proof(tiles, merkle.consistency_plan(first, size))
    merkle.verify_consistency(first, root(first), size, root(size), steps)
    assert len(path) <= merkle.MAX_PROOF_HASHES
    if first not in (0, size):
        with pytest.raises(Unverified):
            merkle.verify_consistency(first, root(first - 1), size, root(size), steps)


@given(st.integers(2, 300), st.data())
def test_a_changed_inclusion_proof_is_refused(size: int, data: st.DataObject) -> None:
    tree, tiles = grow(size)
    index = data.draw(st.integers(0, size - 1))
    path = proof(tiles, merkle.inclusion_plan(index, size))
    leaf_hash = merkle.hash_leaf(leaf(index))
    at = data.draw(st.integers(0, len(path) - 1))
    wrong = bytes([path[at][0] ^ data.draw(st.integers(1, 255))]) + path[at][1:]
    for index_, size_, path_, hash_ in (
        (index, size, [*path[:at], wrong, *path[at + 1 :]], leaf_hash),
        (index, size, path[:-1], leaf_hash),
        (index, size, [*path, path[0]], leaf_hash),
        (index, size, path, merkle.hash_leaf(b"another")),
        ((index + 1) % size, size, path, leaf_hash),
        (size, size, path, leaf_hash),
        (-1, size, path, leaf_hash),
    ):
        with pytest.raises(Unverified):
            merkle.verify_inclusion(hash_, index_, size_, path_, tree.root())


@given(st.integers(2, 300), st.data())
def test_a_changed_consistency_proof_is_refused(size: int, data: st.DataObject) -> None:
    leaves = [leaf(i) for i in range(size)]
    _, tiles = grow(size)
    first = data.draw(st.integers(1, size - 1))
    old, new = reference_root(leaves[:first]), reference_root(leaves)
    steps = proof(tiles, merkle.consistency_plan(first, size))
    forged = reference_root([*leaves[: first - 1], b"forged", *leaves[first:]])
    for first_, old_, new_, steps_ in (
        (first, old, forged, steps),
        (first, reference_root([b"x"]), new, steps),
        (first, old, new, steps[:-1]),
        (first, old, new, [*steps, steps[0]]),
        (first, old, new, []),
        (size + 1, old, new, steps),
        (0, old, new, steps),
        (size, old, new, steps),
    ):
        with pytest.raises(Unverified):
            merkle.verify_consistency(first_, old_, size, new_, steps_)


@given(st.integers(0, 70_000), st.lists(st.integers(1, 700), max_size=4))
def test_a_tree_resumed_from_its_right_edge_goes_on_as_if_never_stopped(
    large: tuple[Tree, dict[TileId, bytes]], size: int, steps: list[int]
) -> None:
    _, tiles = large
    for step in steps:
        if size + step > LARGE:
            return
        # Stored tiles may already be wider than the resumed tree: they must be cut.
        tree = Tree(size, {tile: tiles[tile] for tile, _ in right_edge(size)})
        for index in range(size, size + step):
            assert tree.append(merkle.hash_leaf(leaf(index))) == index
        assert tree.root() == proof(tiles, [Range(0, size + step)])[0]
        changed = tree.take()
        expected = dict(tiles_between(size, size + step))
        assert {tile: len(hashes) // 32 for tile, hashes in changed.items()} == expected
        assert all(tiles[tile].startswith(hashes) for tile, hashes in changed.items())
        size += step


def test_the_specification_example_has_the_tiles_it_lists() -> None:
    # c2sp.org/tlog-tiles, "Partial Tiles": a tree of size 70,000.
    widths: dict[int, list[int]] = {}
    for tile, width in tiles_between(0, 70_000):
        widths.setdefault(tile.level, []).append(width)
    assert widths == {0: [256] * 273 + [112], 1: [256, 17], 2: [1]}
    assert [(tile.level, width) for tile, width in tiles_between(0, 256)] == [(0, 256), (1, 1)]
    assert tile_width(0, 2, 512) == 0


def test_a_tile_that_lacks_hashes_is_named() -> None:
    tiles = grow(300)[1]
    tiles[TileId(0, 1)] = tiles[TileId(0, 1)][:-1]
    with pytest.raises(Malformed, match="tile 0/1 lacks hash 43"):
        proof(tiles, [Range(0, 300)])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 3), (0, 2**63)])
def test_a_plan_outside_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError):
        merkle.inclusion_plan(index, size)
    with pytest.raises(ValueError):
        merkle.consistency_plan(size + 1, size)

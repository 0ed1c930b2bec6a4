"""Checks a published tlog-tiles directory from the log's public key alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.transparency.checkpoint import Checkpoint, verify_checkpoint
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.merkle import HASH_SIZE, hash_leaf
from shared.transparency.note import MAX_NOTE_BYTES, Verifier
from shared.transparency.tiles import (
    MAX_LEAF_BYTES,
    TILE_WIDTH,
    TileId,
    bundle_path,
    decode_bundle,
    encode_bundle,
    tile_path,
    tile_width,
)
from shared.transparency.tree import Tree, right_edge

_MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_LEAF_BYTES)


@dataclass(frozen=True, kw_only=True)
class VerifiedDirectory:
    """What was found right: the signed tree, and how many tiles and entry bundles were read to show it."""

    checkpoint: Checkpoint
    tiles: int
    bundles: int


def verify_directory(
    path: Path,
    vkey: str,
    on_entry: Callable[[int, bytes], None] | None = None,
    *,
    kept: Checkpoint | None = None,
) -> VerifiedDirectory:
    """Recompute the whole tree below `path` from its entry bundles and compare every tile and the checkpoint.

    Superseded partial tiles and bundles that were left in place must agree with the tree too. Whatever lies
    beyond the checkpoint's size is ignored: a log writes tiles first, and may grow meanwhile, so that a partial tile
    gives way to the full one. `on_entry` sees (index, leaf) of entries that are not yet proven; use what it gathered
    only after this returns. With `kept`, which the caller has verified, its tree must be a prefix of this one: nothing
    else shows that a log was not cut short or rewritten together with its signature. Memory: one bundle.

    Raises `Malformed` or `Unverified` naming the first thing that is wrong and the file it is in.
    """
    log = Verifier.parse(vkey)
    note = _read(path, "checkpoint", MAX_NOTE_BYTES)
    try:
        checkpoint = verify_checkpoint(note.decode(), log)
    except UnicodeDecodeError:
        raise Malformed("checkpoint: not UTF-8") from None
    except (Malformed, Unverified) as error:
        raise type(error)(f"checkpoint: {error.message}") from None
    if kept is not None and kept.size > checkpoint.size:
        raise Unverified(f"checkpoint: of {checkpoint.size} entries, fewer than the {kept.size} of the kept one")
    tree = Tree()
    tiles = bundles = 0
    for index in range(-(-checkpoint.size // TILE_WIDTH)):
        width = tile_width(0, index, checkpoint.size)
        name, data = _read_grown(path, bundle_path(index, width), bundle_path(index, TILE_WIDTH), _MAX_BUNDLE_BYTES)
        try:
            leaves = decode_bundle(data, width if name == bundle_path(index, width) else TILE_WIDTH)[:width]
        except Malformed as error:
            raise Malformed(f"{name}: {error.message}") from None
        for leaf in leaves:
            position = tree.append(hash_leaf(leaf))
            if on_entry is not None:
                on_entry(position, leaf)
            if kept is not None and tree.size == kept.size and tree.root() != kept.root:
                raise Unverified(f"{name}: the first {kept.size} entries are not those of the kept checkpoint")
        _check_partials(path, bundle_path(index, TILE_WIDTH), [encode_bundle([leaf]) for leaf in leaves])
        bundles += 1
        for tile, hashes in tree.take().items():
            if len(hashes) == TILE_WIDTH * HASH_SIZE:
                _check_tile(path, tile, hashes)
                tiles += 1
    edge = right_edge(tree.size)
    for tile, _ in edge:
        _check_tile(path, tile, tree.edge(tile))
    if tree.root() != checkpoint.root:
        raise Unverified("checkpoint: its root is not that of the entries")
    return VerifiedDirectory(checkpoint=checkpoint, tiles=tiles + len(edge), bundles=bundles)


def _find(path: Path, name: str, limit: int) -> bytes | None:
    """The content of a resource, None where there is none."""
    try:
        with (path / name).open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError:
        raise Unverified(f"{name}: missing or unreadable") from None
    if len(data) > limit:
        raise Malformed(f"{name}: too large")
    return data


def _read(path: Path, name: str, limit: int) -> bytes:
    data = _find(path, name, limit)
    if data is None:
        raise Unverified(f"{name}: missing or unreadable")
    return data


def _read_grown(path: Path, name: str, full: str, limit: int) -> tuple[str, bytes]:
    """Return the resource `name`, or `full` by which the log has replaced it, and which of them it is."""
    for found in (name, full):
        if (data := _find(path, found, limit)) is not None:
            return found, data
    raise Unverified(f"{name}: missing or unreadable")


def _check_tile(path: Path, tile: TileId, data: bytes) -> None:
    hashes = [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]
    full = tile_path(tile, TILE_WIDTH)
    name, stored = _read_grown(path, tile_path(tile, len(hashes)), full, TILE_WIDTH * HASH_SIZE)
    if name == full:
        stored = stored[: len(data)]
    if len(stored) != len(data):
        raise Unverified(f"{name}: has {len(stored)} bytes, not {len(data)}")
    for at, value in enumerate(hashes):
        if stored[at * HASH_SIZE : (at + 1) * HASH_SIZE] != value:
            raise Unverified(f"{name}: hash {at} is not that of the entries")
    _check_partials(path, full, hashes)


def _check_partials(path: Path, full: str, parts: list[bytes]) -> None:
    """Compare every partial resource beside `full` that is narrower than `parts` with its prefix of them."""
    try:
        files = sorted(file.name for file in (path / f"{full}.p").iterdir())
    except FileNotFoundError:
        return
    except OSError:
        raise Unverified(f"{full}.p: unreadable") from None
    for file in files:
        width = int(file) if file.isascii() and file.isdigit() else 0
        name = f"{full}.p/{file}"
        if 0 < width < len(parts):
            stored = _find(path, name, _MAX_BUNDLE_BYTES)
            # One that is gone by now was dropped by a log that grew.
            if stored is not None and stored != b"".join(parts[:width]):
                raise Unverified(f"{name}: disagrees with the tree that followed it")

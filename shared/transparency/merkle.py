"""Merkle tree hashing and proofs (RFC 6962 section 2.1, RFC 9162 section 2.1), SHA-256.

Proofs are made in two steps, so that this module never waits for storage: a *plan* names the perfect subtrees
whose hashes a proof needs, the caller reads them, and `fold` turns them into the proof's hashes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shared.transparency.errors import Unverified

HASH_SIZE = 32
MAX_TREE_SIZE = 2**63 - 1
# A proof in a tree of at most 2**63 leaves never has more hashes than this (RFC 9162 section 2.1.4).
MAX_PROOF_HASHES = 64

EMPTY_ROOT = hashlib.sha256(b"").digest()


class Node(NamedTuple):
    """The root of the perfect subtree over leaves [position * 2**height, (position + 1) * 2**height)."""

    height: int
    position: int


class Range(NamedTuple):
    """The leaves from `start` up to, not including, `end`."""

    start: int
    end: int


NodeReader = Callable[[Node], bytes]


def hash_leaf(leaf: bytes) -> bytes:
    """Return MTH({leaf})."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def hash_children(left: bytes, right: bytes) -> bytes:
    """Return the hash of the inner node over `left` and `right`."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def decompose(leaves: Range) -> list[Node]:
    """Return the perfect subtrees that make up `leaves`, left to right, largest first.

    `leaves` MUST be a subtree of an RFC 6962 tree, as every range of a plan is: its start is a multiple of
    the smallest power of two that is not less than its length.
    """
    nodes: list[Node] = []
    start = leaves.start
    while start < leaves.end:
        height = (leaves.end - start).bit_length() - 1
        nodes.append(Node(height, start >> height))
        start += 1 << height
    return nodes


def fold(read: NodeReader, leaves: Range) -> bytes:
    """Return MTH of `leaves`, reading each perfect subtree once."""
    hashes = [read(node) for node in decompose(leaves)]
    if not hashes:
        return EMPTY_ROOT
    root = hashes.pop()
    while hashes:
        root = hash_children(hashes.pop(), root)
    return root


def _split(size: int) -> int:
    """The largest power of two less than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_plan(index: int, size: int) -> list[Range]:
    """Return the subtrees of PATH(index, D[size]), leaf's sibling first (RFC 6962 section 2.1.1).

    Raises `ValueError` unless 0 <= index < size.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ValueError("the index is outside the tree")
    plan: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            plan.append(Range(middle, end))
            end = middle
        else:
            plan.append(Range(start, middle))
            start = middle
    plan.reverse()
    return plan


def consistency_plan(first: int, second: int) -> list[Range]:
    """Return the subtrees of PROOF(first, D[second]), in proof order (RFC 6962 section 2.1.2).

    The proof from the empty tree, and from a tree to itself, is empty. Raises `ValueError` unless
    0 <= first <= second.
    """
    if not 0 <= first <= second <= MAX_TREE_SIZE:
        raise ValueError("the first tree is larger than the second")
    if first in (0, second):
        return []
    plan: list[Range] = []
    start, end = 0, second
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            plan.append(Range(middle, end))
            end = middle
        else:
            plan.append(Range(start, middle))
            start = middle
    if start:
        plan.append(Range(start, end))
    plan.reverse()
    return plan


def root_from_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that `proof` leads to (RFC 9162 section 2.1.3.2). Raises `Unverified` on its shape."""
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise Unverified("the index is outside the tree")
    position, last, root = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise Unverified("the inclusion proof is too long")
        if position & 1 or position == last:
            root = hash_children(sibling, root)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            root = hash_children(root, sibling)
        position >>= 1
        last >>= 1
    if last:
        raise Unverified("the inclusion proof is too short")
    return root


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf_hash` is leaf `index` of the tree (`size`, `root`); raises `Unverified` if not."""
    if not hmac.compare_digest(root_from_inclusion(leaf_hash, index, size, proof), root):
        raise Unverified("the inclusion proof does not lead to the root")


def verify_consistency(first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the second tree extends the first (RFC 9162 section 2.1.4.2); raises `Unverified` if not."""
    if not 0 <= first <= second <= MAX_TREE_SIZE:
        raise Unverified("the first tree is larger than the second")
    if first in (0, second):
        known = EMPTY_ROOT if first == 0 else second_root
        if proof or not hmac.compare_digest(first_root, known):
            raise Unverified("the trees are not consistent")
        return
    hashes = list(proof)
    if first & (first - 1) == 0:
        hashes.insert(0, first_root)
    if not hashes:
        raise Unverified("the consistency proof is empty")
    position, last = first - 1, second - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise Unverified("the consistency proof is too long")
        if position & 1 or position == last:
            old, new = hash_children(sibling, old), hash_children(sibling, new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new = hash_children(new, sibling)
        position >>= 1
        last >>= 1
    if last or not (hmac.compare_digest(old, first_root) and hmac.compare_digest(new, second_root)):
        raise Unverified("the trees are not consistent")

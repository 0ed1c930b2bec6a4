"""Signed tree heads (c2sp.org/tlog-checkpoint)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.transparency.encoding import decode_decimal, decode_hash, encode_base64
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.merkle import EMPTY_ROOT, HASH_SIZE, MAX_TREE_SIZE
from shared.transparency.note import Signer, Verifier, open_note


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tree that a log vouches for: its origin, number of leaves and root hash."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.origin or "\n" in self.origin or not 0 <= self.size <= MAX_TREE_SIZE:
            raise Malformed("a checkpoint has an origin and a size")
        if len(self.root) != HASH_SIZE or (self.size == 0 and self.root != EMPTY_ROOT):
            raise Malformed("a checkpoint has the root of its tree")
        if any(not line or "\n" in line for line in self.extensions):
            raise Malformed("an extension line is not empty")

    @property
    def text(self) -> str:
        """The text that is signed."""
        lines = (self.origin, str(self.size), encode_base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Parse the signed text; raises `Malformed`. Trust nothing in it before `verify_checkpoint`."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop():
            raise Malformed("a checkpoint has three lines or more, each ended")
        return cls(
            origin=lines[0],
            size=decode_decimal(lines[1]),
            root=decode_hash(lines[2]),
            extensions=tuple(lines[3:]),
        )


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """Return the signed note. The signer MUST never sign two inconsistent trees; its name is the origin."""
    if checkpoint.origin != signer.name:
        raise ValueError("a log signs checkpoints of its own origin")
    return signer.sign(checkpoint.text)


def verify_checkpoint(note: str, log: Verifier) -> Checkpoint:
    """Return the checkpoint if `log` signed it and it bears the log's name as origin; else raises."""
    checkpoint = Checkpoint.parse(open_note(note, [log]))
    if checkpoint.origin != log.name:
        raise Unverified("the checkpoint is of another log")
    return checkpoint

"""Self-contained inclusion proofs (c2sp.org/tlog-proof@v1)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.transparency.checkpoint import Checkpoint, verify_checkpoint
from shared.transparency.encoding import decode_base64, decode_decimal, decode_hash, encode_base64
from shared.transparency.errors import Malformed
from shared.transparency.merkle import MAX_PROOF_HASHES, hash_leaf, verify_inclusion
from shared.transparency.note import MAX_NOTE_BYTES, Verifier

_HEADER = "c2sp.org/tlog-proof@v1"
MAX_EXTRA_BYTES = 64 * 1024
MAX_PROOF_BYTES = 2 * MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES


@dataclass(frozen=True, kw_only=True)
class TlogProof:
    """Where a leaf lies, the hashes from it to the root, and the signed checkpoint of that root.

    `extra` is not authenticated by anything in the proof.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def encode(self) -> str:
        """Return the text form."""
        extra = "" if self.extra is None else f"extra {encode_base64(self.extra)}\n"
        hashes = "".join(f"{encode_base64(h)}\n" for h in self.hashes)
        return f"{_HEADER}\n{extra}index {self.index}\n{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> TlogProof:
        """Parse the text form; raises `Malformed`. Nothing in it is to be trusted before `verify`."""
        if len(text) > MAX_PROOF_BYTES:
            raise Malformed("the proof is too large")
        head, separator, checkpoint = text.partition("\n\n")
        if not separator or not checkpoint:
            raise Malformed("a proof ends in a checkpoint")
        lines = head.split("\n")
        if lines[0] != _HEADER:
            raise Malformed("not a tlog-proof of version 1")
        del lines[0]
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "))
            if len(extra) > MAX_EXTRA_BYTES:
                raise Malformed("the extra data is too large")
        if not lines or not lines[0].startswith("index "):
            raise Malformed("a proof names its index")
        if len(lines) > 1 + MAX_PROOF_HASHES:
            raise Malformed("a proof has too many hashes")
        return cls(
            index=decode_decimal(lines[0].removeprefix("index ")),
            hashes=tuple(decode_hash(line) for line in lines[1:]),
            checkpoint=checkpoint,
            extra=extra,
        )

    def check(self, leaf: bytes) -> Checkpoint:
        """Return the checkpoint under which `leaf` lies at `index`, whoever signed it, if anybody; raises otherwise.

        For those who have no key and trust the sender: it shows no more than that what was sent belongs together.
        """
        text, _, _ = self.checkpoint.rpartition("\n\n")
        return self._prove(leaf, Checkpoint.parse(f"{text}\n"))

    def verify(self, leaf: bytes, log: Verifier) -> Checkpoint:
        """Return the checkpoint under which `leaf` lies at `index` in `log`; raises otherwise."""
        return self._prove(leaf, verify_checkpoint(self.checkpoint, log))

    def _prove(self, leaf: bytes, checkpoint: Checkpoint) -> Checkpoint:
        verify_inclusion(hash_leaf(leaf), self.index, checkpoint.size, self.hashes, checkpoint.root)
        return checkpoint

"""What a verifier of the log can find wrong."""

from __future__ import annotations

from shared.errors import DataLoss


class Malformed(DataLoss):
    """The bytes are not the format they claim to be."""

    reason = "MALFORMED_PROOF"


class Unverified(DataLoss):
    """A signature, hash or proof does not verify; nothing it speaks about may be trusted."""

    reason = "UNVERIFIED"

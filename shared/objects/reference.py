"""References to objects, as contracts and statements carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import errors

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEY_ID = re.compile(r"[!-~]{1,255}")
_MAX_URI_SIZE = 2048
_MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """Names one object: where it lies, what its plaintext is, and which master key wraps its data key.

    `digest` is `sha256:` and the hex digest of the plaintext, `size` the plaintext's in bytes. Raises
    `InvalidArgument` where a field is malformed.
    """

    uri: str
    digest: str
    size: int
    key_id: str

    def __post_init__(self) -> None:
        """Check every field, for references arrive from outside."""
        if not 0 < len(self.uri) <= _MAX_URI_SIZE:
            raise errors.InvalidArgument("a URI has at most 2048 characters", field="uri")
        if not _DIGEST.fullmatch(self.digest):
            raise errors.InvalidArgument("a digest is sha256: and 64 hex digits", field="digest")
        if not 0 <= self.size <= _MAX_SIZE:
            raise errors.InvalidArgument("a size is a number of bytes", field="size")
        if not _KEY_ID.fullmatch(self.key_id):
            raise errors.InvalidArgument("a key id is 1 to 255 printable characters", field="key_id")

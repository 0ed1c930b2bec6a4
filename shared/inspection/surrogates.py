"""Stand-ins for values that a model must not see, which can be turned back in its answer."""

from __future__ import annotations

import base64
import hmac

SURROGATE_PATTERN = r"<[A-Z][A-Z0-9_]{2,40}:[a-z2-7]{16}>"


class Surrogates:
    """The stand-ins of one call: the same for the same value, different for different ones, meaningless elsewhere.

    A surrogate is a keyed hash (HMAC-SHA256 cut to 80 bits), so that a model cannot make up one that resolves.
    """

    def __init__(self, key: bytes) -> None:
        """Use `key`, at least 32 random bytes that MUST be made for this call alone. Raises ValueError on fewer."""
        if len(key) < 32:
            raise ValueError("a key has at least 32 bytes")
        self._key = key
        self._values: dict[str, str] = {}

    def issue(self, kind: str, value: str) -> str:
        """Return the surrogate of `value`."""
        attempt = 0
        while True:
            digest = hmac.digest(self._key, f"{kind}\0{attempt}\0{value}".encode("utf-8", "surrogatepass"), "sha256")
            surrogate = f"<{kind}:{base64.b32encode(digest[:10]).decode().lower()}>"
            if self._values.setdefault(surrogate, value) == value:
                return surrogate
            attempt += 1

    def value(self, surrogate: str) -> str | None:
        """Return the value of a surrogate that was issued here, else None."""
        return self._values.get(surrogate)

"""Tells request ids that are certainly new from those that the store must be asked about.

Nearly all are new, and a read costs more than the rest of a reservation. Two Bloom filters (Bloom, CACM 13(7), 1970),
one a period; together they hold what was added for at least one period. Fixed memory, 8 MiB.
"""

from __future__ import annotations

import struct

_BITS = 1 << 25
_POSITIONS = struct.Struct(">4Q")


class RequestFilter:
    """Keys MUST be uniformly random, at least 32 bytes: a cryptographic hash. A million a period give 0.02 % doubt."""

    def __init__(self, *, period: int, now: int) -> None:
        """Hold keys for at least `period` microseconds from `now` on."""
        self._period = period
        self._turned_at = now
        self._current = bytearray(_BITS // 8)
        self._previous = bytearray(_BITS // 8)

    def add(self, key: bytes, now: int) -> None:
        """Remember `key`."""
        if now - self._turned_at >= self._period:
            self._previous, self._current = self._current, bytearray(_BITS // 8)
            self._turned_at = now
        for position in _POSITIONS.unpack_from(key):
            self._current[position % _BITS // 8] |= 1 << position % 8

    def may_hold(self, key: bytes) -> bool:
        """Return False only if `key` was not added within the period."""
        positions = _POSITIONS.unpack_from(key)
        return any(
            all(bits[position % _BITS // 8] >> position % 8 & 1 for position in positions)
            for bits in (self._current, self._previous)
        )

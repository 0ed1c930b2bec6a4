"""Passwords: argon2id (RFC 9106), off the event loop, a few at a time."""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from shared.errors import ResourceExhausted

T = TypeVar("T")


class Passwords:
    """Hashes and verifies passwords."""

    def __init__(self, hasher: PasswordHasher | None = None, *, concurrency: int = 2, waiting: int = 64) -> None:
        """Take `hasher` (RFC 9106's low-memory choice, 64 MiB each); blocks for one hash.

        `concurrency` bounds threads and memory, `waiting` the calls that queue for them.
        """
        self._hasher = hasher or PasswordHasher()
        self._slots = asyncio.Semaphore(concurrency)
        self._most = concurrency + waiting
        self._pending = 0
        self._nobodys = self._hasher.hash(secrets.token_hex(32))

    async def hash(self, password: str) -> str:
        """Return the PHC string to store. Raises `ResourceExhausted` when too many wait."""
        return await self._run(lambda: self._hasher.hash(_encode(password)))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Return whether `password` made the `stored` hash. None, for nobody, takes as long and is False.

        Raises `ResourceExhausted` when too many wait.
        """

        def check() -> bool:
            try:
                return self._hasher.verify(self._nobodys if stored is None else stored, _encode(password))
            except (VerificationError, InvalidHashError):
                return False

        return await self._run(check) and stored is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._pending >= self._most:
            raise ResourceExhausted("too many sign-ins at once", retry_after=1.0)
        self._pending += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work)
        finally:
            self._pending -= 1


def _encode(password: str) -> bytes:
    # One password typed on two keyboards must be one password (NIST SP 800-63B, 5.1.1.2).
    return unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")

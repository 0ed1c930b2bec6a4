"""An authenticator in a file, for scripts: a TOTP secret (RFC 6238, SHA-1, 6 digits, 30 s) and the last step used."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from shared.cli.failures import Failure
from shared.keys import files

_STEP_SECONDS = 30
# A server accepts the step after the current one (clocks differ), so that one code need not be waited for.
_AHEAD = 1


def secret_of(uri: str) -> str:
    """Return the base 32 secret of an `otpauth://totp/` URI. Raises Failure."""
    parts = urllib.parse.urlsplit(uri)
    found = urllib.parse.parse_qs(parts.query).get("secret", [])
    if parts.scheme != "otpauth" or len(found) != 1:
        raise Failure("the answer holds no TOTP secret")
    return found[0]


class Authenticator:
    """Gives codes out of a file of mode 0600. A code works once, so the step of the last one is kept there too."""

    def __init__(
        self, path: Path, *, now: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Use the file at `path`."""
        self._path = path
        self._now = now
        self._sleep = sleep

    def create(self, secret: str) -> None:
        """Keep a new secret in place of an older one."""
        self._write(secret, 0)

    def code(self) -> str:
        """Return a code that was not given out before; waits for its time if it must (under a minute)."""
        words = files.read(self._path, forbidden_mode=files.PRIVATE).decode().split()
        if not 1 <= len(words) <= 2:
            raise Failure(f"{self._path} does not hold a TOTP secret")
        last = int(words[1]) if len(words) == 2 else 0
        step = max(int(self._now()) // _STEP_SECONDS, last + 1)
        early = (step - _AHEAD) * _STEP_SECONDS - self._now()
        if early > 0:
            self._sleep(early)
        try:
            key = base64.b32decode(words[0], casefold=True)
        except binascii.Error:
            raise Failure(f"{self._path} does not hold a TOTP secret") from None
        self._write(words[0], step)
        generator = TOTP(key, 6, SHA1(), _STEP_SECONDS, enforce_key_length=False)  # noqa: S303
        return generator.generate(step * _STEP_SECONDS).decode()

    def _write(self, secret: str, step: int) -> None:
        folder = self._path.resolve().parent
        with files.locked(folder):
            files.replace(folder / self._path.name, f"{secret}\n{step}\n".encode())

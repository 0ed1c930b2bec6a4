"""Master keys: what wraps data keys, and the one that lives in a file.

A *data key* encrypts one object; a *master key* only ever wraps data keys (NIST SP 800-57 part 1, 5.3.5).
Each *use* (`objects`, `outbox`, `sealed`) has master keys of its own, so that one use's key opens nothing of
another.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

import pydantic
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared import errors
from shared.keys import files

KEY_SIZE = 32
NONCE_SIZE = 12

_UseName = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
_KeyId = Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_Material = Annotated[bytes, pydantic.Field(min_length=KEY_SIZE, max_length=KEY_SIZE)]


class KeyDestroyed(errors.FailedPrecondition):
    """The master key was destroyed on purpose: what it wrapped can never be read again."""

    reason = "KEY_DESTROYED"


class UnknownUse(errors.FailedPrecondition):
    """The key provider holds no master key for this use."""

    reason = "UNKNOWN_KEY_USE"


@dataclass(frozen=True, kw_only=True)
class WrappedKey:
    """A data key encrypted under the master key `key_id`; safe to store beside the data.

    A provider MUST keep ids to 255 ASCII characters and ciphertexts to 65,535 bytes.
    """

    key_id: str
    ciphertext: bytes


class KeyProvider(Protocol):
    """Holds master keys and wraps data keys of 32 bytes under them; a file, a KMS, an HSM or Vault.

    `context` is authenticated, not stored: the same bytes MUST be given to unwrap. Every method may block for
    a round trip. All raise `UnknownUse` for a use the provider was not set up with.
    """

    def current_key_id(self, use: str) -> str:
        """Return the id of the master key that new wraps of `use` get."""

    def wrap(self, use: str, data_key: bytes, *, context: bytes) -> WrappedKey:
        """Encrypt `data_key` under the current master key of `use`."""

    def unwrap(self, use: str, wrapped: WrappedKey, *, context: bytes) -> bytes:
        """Return the data key. Raises `DataLoss` if anything differs from the wrap, `KeyDestroyed` if so."""

    def rewrap(self, use: str, wrapped: WrappedKey, *, context: bytes) -> WrappedKey:
        """Return the same data key under the current master key; raises as `unwrap` does."""

    def rotate(self, use: str) -> str:
        """Make a new master key current and return its id; older ones go on unwrapping."""

    def destroy(self, use: str, key_id: str) -> None:
        """Erase a master key for good. Raises `FailedPrecondition` for the current one: rotate first."""


_STRICT = pydantic.ConfigDict(
    frozen=True,
    extra="forbid",
    strict=True,
    hide_input_in_errors=True,
    val_json_bytes="base64",
    ser_json_bytes="base64",
)


class _Use(pydantic.BaseModel):
    model_config = _STRICT
    current: _KeyId
    keys: dict[_KeyId, _Material | None]  # None: destroyed; the id stays to tell that from damage

    @pydantic.model_validator(mode="after")
    def _current_key_is_there(self) -> Self:
        if self.keys.get(self.current) is None:
            raise ValueError("the current key is missing")
        return self


class _KeyFile(pydantic.BaseModel):
    model_config = _STRICT
    version: Literal[1] = 1
    uses: dict[_UseName, _Use]


class FileKeyProvider:
    """Master keys in one JSON file of mode 0600, the default where there is no KMS.

    The file is read at each call, so that a rotation or destruction by another process holds at once. Keys
    are wrapped with AES-256-GCM under random nonces; a master key MUST be rotated before 2**32 wraps (NIST SP
    800-38D, 8.3). Destroying removes a key from the file; copies in backups or in a disk's spare blocks are
    the operator's to erase.
    """

    def __init__(self, path: Path) -> None:
        """Open the key file at `path`; raises `KeyFileRefused` where it is not ours alone or malformed."""
        # Of a link, what it leads to: a rotation must not put a file in the link's place and leave the other behind.
        self._path = path.resolve()
        self._load()

    @classmethod
    def create(cls, path: Path, uses: Iterable[str]) -> Self:
        """Write a new key file with one master key for each of `uses`. Raises `AlreadyExists`."""
        try:
            content = _dump({use: _add_key(use, {}) for use in uses})
        except ValueError:
            raise errors.InvalidArgument("a use is a short lower-case word", field="uses") from None
        files.create(path, content)
        return cls(path)

    def current_key_id(self, use: str) -> str:
        """See `KeyProvider`."""
        return self._use(use).current

    def wrap(self, use: str, data_key: bytes, *, context: bytes) -> WrappedKey:
        """See `KeyProvider`."""
        if len(data_key) != KEY_SIZE:
            raise errors.InvalidArgument("a data key has 32 bytes", field="data_key")
        keys = self._use(use)
        nonce = secrets.token_bytes(NONCE_SIZE)
        cipher = AESGCM(_material(keys, keys.current))
        ciphertext = cipher.encrypt(nonce, data_key, _associated_data(use, keys.current, context))
        return WrappedKey(key_id=keys.current, ciphertext=nonce + ciphertext)

    def unwrap(self, use: str, wrapped: WrappedKey, *, context: bytes) -> bytes:
        """See `KeyProvider`."""
        cipher = AESGCM(_material(self._use(use), wrapped.key_id))
        nonce, ciphertext = wrapped.ciphertext[:NONCE_SIZE], wrapped.ciphertext[NONCE_SIZE:]
        try:
            return cipher.decrypt(nonce, ciphertext, _associated_data(use, wrapped.key_id, context))
        except (InvalidTag, ValueError):  # ValueError: the nonce is cut short
            raise errors.DataLoss("a wrapped key does not authenticate") from None

    def rewrap(self, use: str, wrapped: WrappedKey, *, context: bytes) -> WrappedKey:
        """See `KeyProvider`."""
        return self.wrap(use, self.unwrap(use, wrapped, context=context), context=context)

    def rotate(self, use: str) -> str:
        """See `KeyProvider`. Raises `Aborted` while another process changes the file."""
        # Two changes at once would lose a key, and with it whatever it had wrapped by then.
        with files.locked(self._path.parent):
            changed = _add_key(use, self._use(use).keys)
            self._store(use, changed)
        return changed.current

    def destroy(self, use: str, key_id: str) -> None:
        """See `KeyProvider`. Raises `Aborted` while another process changes the file."""
        with files.locked(self._path.parent):
            keys = self._use(use)
            if key_id == keys.current:
                raise errors.FailedPrecondition("the current master key cannot be destroyed; rotate first")
            if key_id not in keys.keys:
                raise errors.NotFound("no such master key")
            self._store(use, _Use(current=keys.current, keys={**keys.keys, key_id: None}))

    def _load(self) -> dict[str, _Use]:
        content = files.read(self._path, forbidden_mode=files.PRIVATE)
        try:
            return _KeyFile.model_validate_json(content).uses
        except ValueError:
            raise files.KeyFileRefused(f"{self._path.name} is not a key file") from None

    def _use(self, use: str) -> _Use:
        keys = self._load().get(use)
        if keys is None:
            raise UnknownUse("no master key for this use")
        return keys

    def _store(self, use: str, changed: _Use) -> None:
        files.replace(self._path, _dump({**self._load(), use: changed}))


def _add_key(use: str, keys: dict[str, bytes | None]) -> _Use:
    key_id = f"{use}-{secrets.token_hex(8)}"
    return _Use(current=key_id, keys={**keys, key_id: secrets.token_bytes(KEY_SIZE)})


def _dump(uses: dict[str, _Use]) -> bytes:
    return _KeyFile(uses=uses).model_dump_json(indent=2).encode()


def _material(keys: _Use, key_id: str) -> bytes:
    if key_id not in keys.keys:
        raise errors.DataLoss("a wrapped key names a master key that never was")
    material = keys.keys[key_id]
    if material is None:
        raise KeyDestroyed("the master key was destroyed")
    return material


def _associated_data(use: str, key_id: str, context: bytes) -> bytes:
    # Neither a use nor a key id can hold a newline, so no two triples give the same bytes.
    return b"bastide-wrap-v1\n%b\n%b\n%b" % (use.encode(), key_id.encode(), context)

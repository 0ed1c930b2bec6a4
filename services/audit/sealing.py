"""Keys of persons: wrapped by the key provider, and used with AES-256-GCM (NIST SP 800-38D)."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import DataLoss
from shared.keys import KeyProvider, WrappedKey

USE = "persons"
_NONCE = 12


class ProviderWrap:
    """Wraps persons' keys under the key provider's master key for that one use."""

    def __init__(self, keys: KeyProvider) -> None:
        """Wrap with `keys`."""
        self._keys = keys

    def wrap(self, key: bytes, context: str) -> bytes:
        """See `people.KeyWrap`."""
        wrapped = self._keys.wrap(USE, key, context=context.encode())
        return wrapped.key_id.encode() + b"\0" + wrapped.ciphertext

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """See `people.KeyWrap`."""
        key_id, _, ciphertext = wrapped.partition(b"\0")
        return self._keys.unwrap(
            USE, WrappedKey(key_id=key_id.decode(errors="replace"), ciphertext=ciphertext), context=context.encode()
        )


class PersonCipher:
    """AES-256-GCM under a person's key; a random nonce suffices for the few records one person leaves (< 2**32)."""

    def seal(self, key: bytes, plaintext: bytes, context: str) -> bytes:
        """See `people.Cipher`."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(key).encrypt(nonce, plaintext, context.encode())

    def unseal(self, key: bytes, ciphertext: bytes, context: str) -> bytes:
        """See `people.Cipher`."""
        try:
            return AESGCM(key).decrypt(ciphertext[:_NONCE], ciphertext[_NONCE:], context.encode())
        except InvalidTag:
            raise DataLoss("sealed content does not authenticate") from None

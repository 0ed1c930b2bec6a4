"""Keys and what they encrypt: master keys, envelope encryption, signing keys.

Plaintext keys exist in memory only. Everything here blocks; async callers use `asyncio.to_thread`.
"""

from shared.keys.envelope import Encrypted, decrypt, encrypt, seal, unseal
from shared.keys.files import KeyFileRefused
from shared.keys.provider import FileKeyProvider, KeyDestroyed, KeyProvider, UnknownUse, WrappedKey
from shared.keys.signing import SigningKey

__all__ = [
    "Encrypted",
    "FileKeyProvider",
    "KeyDestroyed",
    "KeyFileRefused",
    "KeyProvider",
    "SigningKey",
    "UnknownUse",
    "WrappedKey",
    "decrypt",
    "encrypt",
    "seal",
    "unseal",
]

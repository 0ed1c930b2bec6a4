"""Authenticated encryption of a byte stream in chunks: the STREAM construction over AES-256-GCM.

Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015 (IACR ePrint 2015/189). A chunk's nonce is its position (11 bytes, big-endian)
and a flag that is 1 for the last chunk alone, as in the age format (C2SP age, "Payload"). All chunks but the
last are full, so reordered, repeated, dropped, cut or appended chunks meet the wrong nonce or the wrong tag.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared import errors

TAG_SIZE = 16


def encrypt(plaintext: Iterable[bytes], *, key: bytes, associated_data: bytes, chunk_size: int) -> Iterator[bytes]:
    """Yield the ciphertext of `plaintext`, however that is cut, in chunks of `chunk_size` + 16 bytes.

    `key` (32 bytes) MUST be random and used for this one stream: nonces start at zero.
    """
    cipher = AESGCM(key)
    for position, (chunk, last) in enumerate(_cut(plaintext, chunk_size)):
        yield cipher.encrypt(_nonce(position, last=last), chunk, associated_data)


def decrypt(ciphertext: Iterable[bytes], *, key: bytes, associated_data: bytes, chunk_size: int) -> Iterator[bytes]:
    """Yield the plaintext; every chunk yielded is authentic and in its place.

    Callers MUST exhaust the iterator before they act on the data: until then the end may be missing. Raises
    `DataLoss` at the first chunk that is not what was written.
    """
    cipher = AESGCM(key)
    for position, (chunk, last) in enumerate(_cut(ciphertext, chunk_size + TAG_SIZE)):
        try:
            yield cipher.decrypt(_nonce(position, last=last), chunk, associated_data)
        except InvalidTag:
            raise errors.DataLoss("stored bytes do not authenticate") from None


def _nonce(position: int, *, last: bool) -> bytes:
    return position.to_bytes(11, "big") + bytes([last])


def _cut(pieces: Iterable[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Yield chunks of `size` bytes and whether each is the last, which is empty only if there is nothing."""
    buffer = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), size):  # bounds the buffer at twice `size`, whatever the pieces
            buffer += view[start : start + size]
            if len(buffer) > size:
                yield bytes(buffer[:size]), False
                del buffer[:size]
    yield bytes(buffer), True

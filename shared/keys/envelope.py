"""Envelope encryption: a stream under a data key of its own, which a header carries wrapped.

    "BASTIDE" 01 | chunk size, 4 bytes | length of key id, 1 | length of wrapped key, 2 | key id | wrapped key

Integers are big-endian; the chunks of `shared.keys.stream` follow. The header, the purpose and the name are
associated data of every chunk, so that an object given in another's place, or for another purpose, does not
decrypt.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from shared import errors
from shared.keys import stream
from shared.keys.provider import KEY_SIZE, KeyProvider, WrappedKey

CHUNK_SIZE = 64 * 1024
MAX_SEALED_SIZE = 1 << 20

_MAX_CHUNK_SIZE = 1 << 20
_MAGIC = b"BASTIDE\x01"
_PREFIX = struct.Struct(">8sIBH")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What stands before the chunks; trustworthy only once a chunk has decrypted."""

    chunk_size: int
    wrapped: WrappedKey

    def __bytes__(self) -> bytes:
        """Return the header's wire form."""
        key_id, wrapped = self.wrapped.key_id.encode("ascii"), self.wrapped.ciphertext
        return _PREFIX.pack(_MAGIC, self.chunk_size, len(key_id), len(wrapped)) + key_id + wrapped

    def unwrap(self, keys: KeyProvider, *, use: str, purpose: str, name: str) -> bytes:
        """Return the data key; raises as `KeyProvider.unwrap` does."""
        return keys.unwrap(use, self.wrapped, context=_context(purpose, name))

    def decrypt(self, body: Iterable[bytes], data_key: bytes, *, purpose: str, name: str) -> Iterator[bytes]:
        """Yield the plaintext of the chunks in `body`; see `stream.decrypt` for what callers MUST do."""
        associated_data = bytes(self) + _context(purpose, name)
        return stream.decrypt(body, key=data_key, associated_data=associated_data, chunk_size=self.chunk_size)


@dataclass(frozen=True, kw_only=True)
class Encrypted:
    """A ciphertext to be read once, and the master key that its data key is wrapped under."""

    key_id: str
    chunks: Iterator[bytes]


def encrypt(
    plaintext: Iterable[bytes],
    keys: KeyProvider,
    *,
    use: str,
    purpose: str,
    name: str,
    chunk_size: int = CHUNK_SIZE,
) -> Encrypted:
    """Encrypt `plaintext` under a fresh data key, bound to `purpose` and `name`; memory is a few chunks."""
    if not 0 < chunk_size <= _MAX_CHUNK_SIZE:
        raise errors.InvalidArgument("a chunk has 1 byte to 1 MiB", field="chunk_size")
    data_key = secrets.token_bytes(KEY_SIZE)
    context = _context(purpose, name)
    wrapped = keys.wrap(use, data_key, context=context)
    header = bytes(Header(chunk_size=chunk_size, wrapped=wrapped))
    body = stream.encrypt(plaintext, key=data_key, associated_data=header + context, chunk_size=chunk_size)
    return Encrypted(key_id=wrapped.key_id, chunks=chain([header], body))


def decrypt(ciphertext: Iterable[bytes], keys: KeyProvider, *, use: str, purpose: str, name: str) -> Iterator[bytes]:
    """Yield what `encrypt` was given; every chunk yielded is authentic and in its place.

    Callers MUST exhaust the iterator before they act on the data: until then the end may be missing. Raises
    `DataLoss` if a byte, the order, the length, the purpose or the name differs, `KeyDestroyed` if it was.
    """
    header, body = read_header(ciphertext)
    data_key = header.unwrap(keys, use=use, purpose=purpose, name=name)
    yield from header.decrypt(body, data_key, purpose=purpose, name=name)


def read_header(ciphertext: Iterable[bytes]) -> tuple[Header, Iterator[bytes]]:
    """Return the header and the rest of `ciphertext`. Raises `DataLoss` where there is no header."""
    source = iter(ciphertext)
    start = bytearray()
    _fill(start, source, _PREFIX.size)
    magic, chunk_size, id_size, wrapped_size = _PREFIX.unpack_from(start)
    if magic != _MAGIC or not 0 < chunk_size <= _MAX_CHUNK_SIZE:
        raise errors.DataLoss("stored bytes are not an encrypted object")
    wrapped_at = _PREFIX.size + id_size
    body_at = wrapped_at + wrapped_size
    _fill(start, source, body_at)
    try:
        key_id = start[_PREFIX.size : wrapped_at].decode("ascii")
    except UnicodeDecodeError:
        raise errors.DataLoss("stored bytes are not an encrypted object") from None
    wrapped = WrappedKey(key_id=key_id, ciphertext=bytes(start[wrapped_at:body_at]))
    return Header(chunk_size=chunk_size, wrapped=wrapped), chain([bytes(start[body_at:])], source)


def seal(value: bytes, keys: KeyProvider, *, use: str, purpose: str, name: str) -> bytes:
    """Return `value` (at most 1 MiB) encrypted for one database field; about 130 bytes longer.

    `name` MUST be what identifies the row, so that a value moved to another row does not open.
    """
    if len(value) > MAX_SEALED_SIZE:
        raise errors.InvalidArgument("a sealed value has at most 1 MiB", field="value")
    return b"".join(encrypt([value], keys, use=use, purpose=purpose, name=name).chunks)


def unseal(sealed: bytes, keys: KeyProvider, *, use: str, purpose: str, name: str) -> bytes:
    """Return the whole value, authenticated to its end; raises as `decrypt` does."""
    return b"".join(decrypt([sealed], keys, use=use, purpose=purpose, name=name))


def _fill(buffer: bytearray, source: Iterator[bytes], size: int) -> None:
    while len(buffer) < size:
        piece = next(source, None)
        if piece is None:
            raise errors.DataLoss("stored bytes end within the header")
        buffer += piece


def _context(purpose: str, name: str) -> bytes:
    encoded = purpose.encode()
    return struct.pack(">Q", len(encoded)) + encoded + name.encode()

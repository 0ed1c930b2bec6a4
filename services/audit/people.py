"""Who is behind a pseudonym, and what is sealed under that person's key, until the person is erased."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass
from typing import Protocol

from cachetools import TTLCache
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.entry import Sealed
from services.audit.errors import Erased
from services.audit.tables import entries, person_keys, pseudonyms, sealed
from shared.errors import NotFound
from shared.records.store import Records

_CACHED = 4096
_CACHE_SECONDS = 60.0
# Below this AES costs less than a hop to a thread.
_INLINE_BYTES = 64 * 1024


class KeyWrap(Protocol):
    """Wraps keys under a master key that lives apart from the database. Called on a thread; may block."""

    def wrap(self, key: bytes, context: str) -> bytes:
        """Encrypt a 32-byte key, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        """Return the key; raises `DataLoss` if anything differs."""


class Cipher(Protocol):
    """Authenticated encryption with a 32-byte key; `context` is bound, not stored. Called on a thread."""

    def seal(self, key: bytes, plaintext: bytes, context: str) -> bytes:
        """Return the ciphertext, under a nonce of its own."""

    def unseal(self, key: bytes, ciphertext: bytes, context: str) -> bytes:
        """Return the plaintext; raises `DataLoss` if anything differs."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A calling principal, by its tenant and its name there."""

    tenant: str
    principal: str

    def encode(self) -> bytes:
        """Return the pair without ambiguity."""
        return b"%d:%b%b" % (len(self.tenant.encode()), self.tenant.encode(), self.principal.encode())


class People:
    """Pseudonyms and keys. A pseudonym is random: without its row it leads to nobody."""

    def __init__(self, records: Records, keys: KeyWrap, cipher: Cipher, lookup_key: bytes) -> None:
        """Keep rows in `records`; `lookup_key` (32 secret bytes) makes the hash by which a person is found."""
        if len(lookup_key) != 32:
            raise ValueError("the lookup key has 32 bytes")
        self._records = records
        self._keys = keys
        self._cipher = cipher
        self._lookup_key = lookup_key
        # Every record needs both. What is sealed under a key that another replica has destroyed meanwhile can be read
        # by nobody, so that a short memory costs no erasure.
        self._pseudonyms: TTLCache[Person, str] = TTLCache(_CACHED, _CACHE_SECONDS)
        self._known_keys: TTLCache[str, bytes] = TTLCache(_CACHED, _CACHE_SECONDS)

    async def pseudonym(self, person: Person) -> str:
        """Return the person's pseudonym, making it and the person's key at the first call.

        After an erasure the same person gets a new one. Raises `RecordsUnavailable`.
        """
        if (known := self._pseudonyms.get(person)) is not None:
            return known
        found = await self.find(person)
        if found is not None:
            self._pseudonyms[person] = found
            return found
        new, key = secrets.token_hex(16), secrets.token_bytes(32)
        name = await asyncio.to_thread(self._cipher.seal, key, person.encode(), f"pseudonym/{new}")
        wrapped = await asyncio.to_thread(self._keys.wrap, key, f"person/{new}")
        try:
            async with self._records.write() as connection:
                row = {"lookup": self._lookup(person), "pseudonym": new, "name": name}
                await connection.execute(insert(pseudonyms).values(row))
                await connection.execute(insert(person_keys).values(pseudonym=new, wrapped=wrapped))
        except IntegrityError:
            # Another call was first.
            return await self.pseudonym(person)
        return new

    async def find(self, person: Person) -> str | None:
        """Return the person's pseudonym if there is one, and make none."""
        async with self._records.read() as connection:
            query = select(pseudonyms.c.pseudonym).where(pseudonyms.c.lookup == self._lookup(person))
            return (await connection.execute(query)).scalar_one_or_none()

    async def identify(self, pseudonym: str) -> Person:
        """Return who a pseudonym stands for; raises `Erased`, or `NotFound` if it never stood for anyone."""
        async with self._records.read() as connection:
            query = select(pseudonyms.c.name).where(pseudonyms.c.pseudonym == pseudonym)
            name = (await connection.execute(query)).scalar_one_or_none()
            known = name is not None or await _was_used(connection, pseudonym)
        if name is None:
            raise Erased("the person was erased") if known else NotFound("no such pseudonym")
        key = await self._key(pseudonym)
        text = await asyncio.to_thread(self._cipher.unseal, key, name, f"pseudonym/{pseudonym}")
        size, _, rest = text.partition(b":")
        return Person(tenant=rest[: int(size)].decode(), principal=rest[int(size) :].decode())

    async def seal(self, pseudonym: str, writer: str, record_id: str, name: str, content: bytes) -> Sealed:
        """Seal `content` for the entry that (writer, record_id) will be; raises `Erased`."""
        key = self._known_keys.get(pseudonym)
        if key is None:
            key = self._known_keys[pseudonym] = await self._key(pseudonym)
        context = _context(writer, record_id, name)
        if len(content) <= _INLINE_BYTES:
            ciphertext, tag = self._seal(key, content, context)
        else:
            ciphertext, tag = await asyncio.to_thread(self._seal, key, content, context)
        return Sealed(name=name, pseudonym=pseudonym, ciphertext=ciphertext, tag=tag)

    async def unseal(self, index: int, name: str) -> bytes:
        """Return the content sealed beside an entry; raises `NotFound`, or `Erased` once its person was."""
        query = (
            select(sealed.c.pseudonym, sealed.c.ciphertext, entries.c.writer, entries.c.record_id)
            .join(entries, entries.c.entry_index == sealed.c.entry_index)
            .where(sealed.c.entry_index == index, sealed.c.name == name)
        )
        async with self._records.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound("nothing of that name is sealed beside that entry")
        context = _context(row.writer, row.record_id, name)
        key = await self._key(row.pseudonym)
        return await asyncio.to_thread(self._cipher.unseal, key, row.ciphertext, context)

    async def erase(self, person: Person) -> str | None:
        """Destroy the person's key and pseudonym; return the pseudonym that was, None if there was none.

        When this returns nothing that was sealed for the person can be read again from this database. Copies
        of the key table in backups are the operator's to expire. Raises `RecordsUnavailable`; callers MUST
        repeat it until it returns: each call also scrubs what an interrupted one left.
        """
        async with self._records.write() as connection:
            where = pseudonyms.c.lookup == self._lookup(person)
            found = (await connection.execute(select(pseudonyms.c.pseudonym).where(where))).scalar_one_or_none()
            if found is not None:
                await connection.execute(delete(pseudonyms).where(where))
                await connection.execute(delete(person_keys).where(person_keys.c.pseudonym == found))
        self._pseudonyms.clear()
        self._known_keys.clear()
        await self._records.scrub()
        return found

    async def _key(self, pseudonym: str) -> bytes:
        async with self._records.read() as connection:
            query = select(person_keys.c.wrapped).where(person_keys.c.pseudonym == pseudonym)
            wrapped = (await connection.execute(query)).scalar_one_or_none()
        if wrapped is None:
            raise Erased("the person was erased")
        return await asyncio.to_thread(self._keys.unwrap, wrapped, f"person/{pseudonym}")

    def _seal(self, key: bytes, content: bytes, context: str) -> tuple[bytes, bytes]:
        # A key of its own: the cipher's is for the cipher alone.
        tagging = hmac.digest(key, b"content tag", "sha256")
        return self._cipher.seal(key, content, context), hmac.digest(
            tagging, context.encode() + b"\0" + content, "sha256"
        )

    def _lookup(self, person: Person) -> bytes:
        return hmac.digest(self._lookup_key, person.encode(), "sha256")


def _context(writer: str, record_id: str, name: str) -> str:
    return f"sealed/{name}/{len(writer)}:{writer}/{record_id}"


async def _was_used(connection: AsyncConnection, pseudonym: str) -> bool:
    query = select(entries.c.entry_index).where(entries.c.principal == pseudonym).limit(1)
    return (await connection.execute(query)).first() is not None

"""Pseudonyms, sealed content, and what is left of either after an erasure."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import select, text

from services.audit.errors import Erased
from services.audit.log import Log
from services.audit.people import People, Person
from services.audit.tables import person_keys, pseudonyms
from shared.errors import DataLoss, NotFound
from shared.records.store import Records
from tests.unit.audit.conftest import SIGNER, entry

ALICE = Person(tenant="acme", principal="alice@acme.example")
BOB = Person(tenant="acme", principal="bob@acme.example")


class Aead:
    """A key wrap and a cipher over the same primitive, for keys of their own."""

    def __init__(self) -> None:
        self._master = secrets.token_bytes(32)

    def wrap(self, key: bytes, context: str) -> bytes:
        return self.seal(self._master, key, context)

    def unwrap(self, wrapped: bytes, context: str) -> bytes:
        return self.unseal(self._master, wrapped, context)

    def seal(self, key: bytes, plaintext: bytes, context: str) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + AESGCM(key).encrypt(nonce, plaintext, context.encode())

    def unseal(self, key: bytes, ciphertext: bytes, context: str) -> bytes:
        try:
            return AESGCM(key).decrypt(ciphertext[:12], ciphertext[12:], context.encode())
        except InvalidTag:
            raise DataLoss("does not authenticate") from None


@pytest.fixture
def aead() -> Aead:
    return Aead()


@pytest.fixture
def people(records: Records, aead: Aead) -> People:
    return People(records, aead, aead, bytes(32))


async def store(log: Log, people: People, number: int, person: Person, content: bytes) -> int:
    pseudonym = await people.pseudonym(person)
    part = await people.seal(pseudonym, "model_server", f"record-{number}", "text", content)
    appended = await log.append(entry(number, principal=pseudonym, sealed=(part,)), within=10)
    assert content not in appended.leaf
    return appended.index


async def test_a_person_keeps_one_pseudonym_that_says_nothing(people: People) -> None:
    first, again, *others = await asyncio.gather(
        people.pseudonym(ALICE),
        people.pseudonym(ALICE),
        people.pseudonym(BOB),
        people.pseudonym(Person(tenant="globex", principal=ALICE.principal)),
        people.pseudonym(Person(tenant="acmea", principal="lice@acme.example")),
    )
    assert first == again == await people.find(ALICE)
    assert len({first, *others}) == 4
    assert await people.identify(first) == ALICE
    assert await people.find(Person(tenant="acme", principal="carol")) is None


async def test_sealed_content_is_read_back_beside_its_entry_only(log: Log, people: People, records: Records) -> None:
    index = await store(log, people, 1, ALICE, b"a prompt")
    other = await store(log, people, 2, ALICE, b"another prompt")
    assert await people.unseal(index, "text") == b"a prompt"
    with pytest.raises(NotFound):
        await people.unseal(index, "opening")
    async with records.write() as connection:
        move = "UPDATE sealed SET ciphertext = (SELECT ciphertext FROM sealed WHERE entry_index = :a) WHERE entry_index = :b"
        await connection.execute(text(move), {"a": index, "b": other})
    with pytest.raises(DataLoss):
        await people.unseal(other, "text")


async def test_an_erased_persons_content_is_unreadable_and_the_log_still_verifies(log: Log, people: People) -> None:
    index = await store(log, people, 1, ALICE, b"alice's prompt")
    kept = await store(log, people, 2, BOB, b"bob's prompt")
    pseudonym = await people.pseudonym(ALICE)
    assert await people.erase(ALICE) == pseudonym
    with pytest.raises(Erased):
        await people.unseal(index, "text")
    with pytest.raises(Erased):
        await people.identify(pseudonym)
    with pytest.raises(Erased):
        await people.seal(pseudonym, "model_server", "record-3", "text", b"late")
    assert await people.unseal(kept, "text") == b"bob's prompt"
    record = await log.reader.get(index)
    (await log.reader.prove(record)).verify(record.leaf, SIGNER.verifier)
    assert await people.erase(ALICE) is None
    assert await people.pseudonym(ALICE) != pseudonym
    with pytest.raises(NotFound) as caught:
        await people.identify("0" * 32)
    assert not isinstance(caught.value, Erased)


async def test_nothing_of_an_erased_key_or_name_stays_in_sqlites_files(
    log: Log, people: People, records: Records, url: str
) -> None:
    if records.dialect != "sqlite":
        pytest.skip("PostgreSQL reclaims dead rows by VACUUM, in its own time")
    await store(log, people, 1, ALICE, b"a prompt")
    pseudonym = await people.pseudonym(ALICE)
    async with records.read() as connection:
        wrapped = (await connection.execute(select(person_keys.c.wrapped))).scalar_one()
        name = (await connection.execute(select(pseudonyms.c.name))).scalar_one()
    path = Path(url.removeprefix("sqlite:///"))

    def stored() -> bytes:
        return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))

    assert wrapped in stored()
    assert name in stored()
    assert await people.erase(ALICE) == pseudonym
    assert wrapped not in stored()
    assert name not in stored()


async def test_names_are_stored_as_ciphertext_and_keyed_hash_only(
    people: People, records: Records, aead: Aead, url: str
) -> None:
    pseudonym = await people.pseudonym(ALICE)
    if records.dialect == "sqlite":
        path = Path(url.removeprefix("sqlite:///"))
        for file in path.parent.glob(f"{path.name}*"):
            assert b"alice" not in file.read_bytes()
    assert await People(records, aead, aead, b"1" * 32).find(ALICE) is None
    assert await People(records, aead, aead, bytes(32)).identify(pseudonym) == ALICE
    with pytest.raises(ValueError):
        People(records, aead, aead, b"short")

"""The tables of the log. The record database is the source of truth; the tlog-tiles directory is made from it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)


def _text(name: str) -> Column[str]:
    return Column(name, String(255))


# One row: the newest signed tree. Its row lock orders writers; its size is what they compare and swap.
head = Table(
    "head",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary(32), nullable=False),
    Column("checkpoint", String, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("entry_index", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),  # microseconds since 1970 UTC
    Column("writer", String(255), nullable=False),
    Column("record_id", String(255), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("leaf_hash", LargeBinary(32), nullable=False),
    Column("kind", String(255), nullable=False),
    _text("call_id"),
    _text("decision_id"),
    _text("tenant"),
    _text("principal"),
    _text("model"),
    _text("method"),
    _text("outcome"),
    UniqueConstraint("writer", "record_id"),
)

for _name in ("call_id", "decision_id", "tenant", "principal", "model"):
    _column = entries.c[_name]
    Index(
        f"ix_entries_{_name}",
        _column,
        entries.c.entry_index,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )
Index("ix_entries_kind", entries.c.kind, entries.c.entry_index)
Index("ix_entries_time", entries.c.time)

# Tiles of hashes (C2SP tlog-tiles); the rightmost of each level grows in place.
hash_tiles = Table(
    "hash_tiles",
    metadata,
    Column("level", SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)

# Calls that were opened and have no end yet.
leases = Table(
    "leases",
    metadata,
    Column("entry_index", BigInteger, ForeignKey("entries.entry_index"), primary_key=True, autoincrement=False),
    Column("writer", String(255), nullable=False),
    Column("call_id", String(255), nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("ix_leases_call_id", "call_id"),
    Index("ix_leases_expires", "expires"),
)

# Content kept outside the leaf, as ciphertext under a person's key.
sealed = Table(
    "sealed",
    metadata,
    Column("entry_index", BigInteger, ForeignKey("entries.entry_index"), primary_key=True, autoincrement=False),
    Column("name", String(255), primary_key=True),
    Column("pseudonym", String(255), nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
    Index("ix_sealed_pseudonym", "pseudonym"),
)

# Who a pseudonym is: `lookup` is a keyed hash, `name` is sealed under the person's own key. Erasing deletes the row.
pseudonyms = Table(
    "pseudonyms",
    metadata,
    Column("lookup", LargeBinary(32), primary_key=True),
    Column("pseudonym", String(64), nullable=False, unique=True),
    Column("name", LargeBinary, nullable=False),
)

# One random key for each person, wrapped. Erasing deletes the row, and with it all that it sealed.
person_keys = Table(
    "person_keys",
    metadata,
    Column("pseudonym", String(64), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
)

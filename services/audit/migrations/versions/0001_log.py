"""The log: entries, tiles, head, leases, sealed content and people."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "head",
        sa.Column("id", sa.SmallInteger, autoincrement=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("checkpoint", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_head"),
    )
    op.create_table(
        "entries",
        sa.Column("entry_index", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("writer", sa.String(255), nullable=False),
        sa.Column("record_id", sa.String(255), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("kind", sa.String(255), nullable=False),
        *(
            sa.Column(name, sa.String(255))
            for name in ("call_id", "decision_id", "tenant", "principal", "model", "method", "outcome")
        ),
        sa.PrimaryKeyConstraint("entry_index", name="pk_entries"),
        sa.UniqueConstraint("writer", "record_id", name="uq_entries_writer_record_id"),
    )
    for name in ("call_id", "decision_id", "tenant", "principal", "model"):
        op.create_index(
            f"ix_entries_{name}",
            "entries",
            [name, "entry_index"],
            sqlite_where=sa.column(name).is_not(None),
            postgresql_where=sa.column(name).is_not(None),
        )
    op.create_index("ix_entries_kind", "entries", ["kind", "entry_index"])
    op.create_index("ix_entries_time", "entries", ["time"])
    op.create_table(
        "hash_tiles",
        sa.Column("level", sa.SmallInteger, autoincrement=False),
        sa.Column("number", sa.BigInteger, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name="pk_hash_tiles"),
    )
    op.create_table(
        "leases",
        sa.Column("entry_index", sa.BigInteger, autoincrement=False),
        sa.Column("writer", sa.String(255), nullable=False),
        sa.Column("call_id", sa.String(255), nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("entry_index", name="pk_leases"),
        sa.ForeignKeyConstraint(["entry_index"], ["entries.entry_index"], name="fk_leases_entry_index"),
    )
    op.create_index("ix_leases_call_id", "leases", ["call_id"])
    op.create_index("ix_leases_expires", "leases", ["expires"])
    op.create_table(
        "sealed",
        sa.Column("entry_index", sa.BigInteger, autoincrement=False),
        sa.Column("name", sa.String(255)),
        sa.Column("pseudonym", sa.String(255), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("entry_index", "name", name="pk_sealed"),
        sa.ForeignKeyConstraint(["entry_index"], ["entries.entry_index"], name="fk_sealed_entry_index"),
    )
    op.create_index("ix_sealed_pseudonym", "sealed", ["pseudonym"])
    op.create_table(
        "pseudonyms",
        sa.Column("lookup", sa.LargeBinary(32)),
        sa.Column("pseudonym", sa.String(64), nullable=False),
        sa.Column("name", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("lookup", name="pk_pseudonyms"),
        sa.UniqueConstraint("pseudonym", name="uq_pseudonyms_pseudonym"),
    )
    op.create_table(
        "person_keys",
        sa.Column("pseudonym", sa.String(64)),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("pseudonym", name="pk_person_keys"),
    )

"""The guard: people, credentials, guesses, budgets, policy revisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _of_user(table: str, *columns: sa.Column[object], key: tuple[str, ...] = ("subject",)) -> None:
    op.create_table(
        table,
        sa.Column("subject", sa.String(255)),
        *columns,
        sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["subject"], ["users.subject"], name=f"fk_{table}_subject"),
    )


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "users",
        sa.Column("subject", sa.String(255)),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_users"),
    )
    _of_user(
        "credentials",
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("totp_secret", sa.LargeBinary, nullable=False),
        sa.Column("totp_step", sa.BigInteger, nullable=False),
    )
    _of_user(
        "enrolments",
        sa.Column("code_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("password_hash", sa.String(255)),
        sa.Column("totp_secret", sa.LargeBinary),
    )
    _of_user("known_workloads", sa.Column("spiffe_id", sa.String(255)), key=("subject", "spiffe_id"))
    op.create_table(
        "acknowledgements",
        sa.Column("subject", sa.String(255)),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("acknowledged_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_acknowledgements"),
    )
    op.create_table(
        "guesses",
        sa.Column("key", sa.LargeBinary(32)),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("blocked_until", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_guesses"),
    )
    op.create_index("ix_guesses_last_at", "guesses", ["last_at"])
    op.create_table(
        "counters",
        sa.Column("key", sa.String(64)),
        sa.Column("window", sa.BigInteger, nullable=False),
        sa.Column("slots", sa.JSON, nullable=False),
        sa.Column("forget_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_counters"),
    )
    op.create_table(
        "reservations",
        sa.Column("call_id", sa.String(64)),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("charges", sa.JSON, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.BigInteger),
        sa.Column("forget_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("call_id", name="pk_reservations"),
    )
    op.create_table(
        "request_ids",
        sa.Column("key", sa.LargeBinary(32)),
        sa.Column("forget_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_request_ids"),
    )
    for table in ("counters", "reservations", "request_ids"):
        op.create_index(f"ix_{table}_forget_at", table, ["forget_at"])
    op.create_table(
        "revisions",
        sa.Column("digest", sa.String(128)),
        sa.Column("bundle", sa.LargeBinary, nullable=False),
        sa.Column("proposer", sa.String(255), nullable=False),
        sa.Column("note", sa.String(1024), nullable=False),
        sa.Column("proposed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_revisions"),
    )
    op.create_index("ix_revisions_proposed_at", "revisions", ["proposed_at", "digest"])
    op.create_table(
        "activations",
        sa.Column("number", sa.Integer, autoincrement=False),
        sa.Column("digest", sa.String(128), nullable=False),
        sa.Column("previous", sa.Integer),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("activator", sa.String(255), nullable=False),
        sa.Column("activated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_activations"),
        sa.ForeignKeyConstraint(["digest"], ["revisions.digest"], name="fk_activations_digest"),
        sa.ForeignKeyConstraint(["previous"], ["activations.number"], name="fk_activations_previous"),
    )
    op.create_index("ix_activations_digest", "activations", ["digest", "number"])

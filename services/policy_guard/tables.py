"""The tables of the guard: people and their credentials, guesses, budgets, policy revisions."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
)

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


def to_micros(instant: dt.datetime) -> int:
    """Return microseconds since 1970 UTC of an aware datetime, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> dt.datetime:
    """Return the instant, in UTC."""
    return _EPOCH + micros * _MICROSECOND


class Instant(TypeDecorator[dt.datetime]):
    """An aware datetime, stored as microseconds since 1970 UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """To the database."""
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> dt.datetime | None:  # noqa: ARG002
        """From the database."""
        return None if value is None else from_micros(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)


def _subject() -> Column[str]:
    return Column("subject", String(255), ForeignKey("users.subject"), primary_key=True)


users = Table(
    "users",
    metadata,
    Column("subject", String(255), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("roles", JSON, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
)

# Present once enrolment is complete.
credentials = Table(
    "credentials",
    metadata,
    _subject(),
    Column("password_hash", String(255), nullable=False),  # argon2id, PHC string format
    Column("totp_secret", LargeBinary, nullable=False),  # sealed
    Column("totp_step", BigInteger, nullable=False),  # newest time step whose code was used (RFC 6238, 5.2)
)

# Present from the issue of a code to its use.
enrolments = Table(
    "enrolments",
    metadata,
    _subject(),
    Column("code_hash", LargeBinary(32), nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("password_hash", String(255)),
    Column("totp_secret", LargeBinary),
)

# Of anyone with a token, also of people whom another identity provider signs in.
acknowledgements = Table(
    "acknowledgements",
    metadata,
    Column("subject", String(255), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("acknowledged_at", Instant, nullable=False),
)

# Workloads through which a person signed in with both factors.
known_workloads = Table(
    "known_workloads",
    metadata,
    _subject(),
    Column("spiffe_id", String(255), primary_key=True),
)

# Failed guesses, by a hash of whom they are held against.
guesses = Table(
    "guesses",
    metadata,
    Column("key", LargeBinary(32), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("blocked_until", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),  # up to when forgetting is counted in
    Index("ix_guesses_last_at", "last_at"),
)

# Consumption in the slots of one sliding window.
counters = Table(
    "counters",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("window", BigInteger, nullable=False),  # microseconds
    Column("slots", JSON, nullable=False),  # slot number -> units
    Column("forget_at", Instant, nullable=False),
    Index("ix_counters_forget_at", "forget_at"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("call_id", String(64), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("charges", JSON, nullable=False),  # [counter key, slot number] of each token counter that was charged
    Column("expires_at", Instant, nullable=False),
    Column("settled", BigInteger),
    Column("forget_at", Instant, nullable=False),
    Index("ix_reservations_forget_at", "forget_at"),
)

# Request ids that may not be used again, by a hash of principal and id.
request_ids = Table(
    "request_ids",
    metadata,
    Column("key", LargeBinary(32), primary_key=True),
    Column("forget_at", Instant, nullable=False),
    Index("ix_request_ids_forget_at", "forget_at"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("digest", String(128), primary_key=True),
    Column("bundle", LargeBinary, nullable=False),
    Column("proposer", String(255), nullable=False),
    Column("note", String(1024), nullable=False),
    Column("proposed_at", Instant, nullable=False),
    Index("ix_revisions_proposed_at", "proposed_at", "digest"),
)

# The history of what was in force; the row with the highest number is. Its primary key is what activations race for.
activations = Table(
    "activations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(128), ForeignKey("revisions.digest"), nullable=False),
    Column("previous", Integer, ForeignKey("activations.number")),  # where a rollback of this one leads
    Column("kind", String(16), nullable=False),
    Column("activator", String(255), nullable=False),
    Column("activated_at", Instant, nullable=False),
    Index("ix_activations_digest", "digest", "number"),
)

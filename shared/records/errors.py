"""What can be wrong with a record store."""

from __future__ import annotations

from shared.errors import FailedPrecondition, Unavailable


class RecordsUnavailable(Unavailable):
    """The database did not do the work in time or at all; whether it committed is not known."""

    reason = "RECORDS_UNAVAILABLE"


class RecordsMisconfigured(FailedPrecondition):
    """The URL names no database that this suite may use."""

    reason = "RECORDS_MISCONFIGURED"


class DatabaseInUse(FailedPrecondition):
    """Another process serves this SQLite database; more than one replica needs PostgreSQL."""

    reason = "DATABASE_IN_USE"


class SchemaMismatch(FailedPrecondition):
    """The database's schema is neither this server's nor the one before; the message says what to run."""

    reason = "SCHEMA_MISMATCH"

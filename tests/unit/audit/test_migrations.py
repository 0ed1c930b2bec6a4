"""The migrated schema is the one that the code speaks of."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from services.audit.migrations import SCRIPTS
from services.audit.tables import metadata
from shared.records.migrations import check_schema
from shared.records.store import Records


async def test_migrations_lead_to_the_tables(records: Records) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    async with records.read() as connection:
        assert await connection.run_sync(differences) == []
    await check_schema(records, SCRIPTS, "audit")

"""The migrations make the tables that the code uses."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.tables import metadata
from shared.records.migrations import check_schema
from shared.records.store import Records


async def test_the_migrated_schema_is_the_one_of_the_tables(records: Records) -> None:
    async with records.read() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), metadata)
        )
    assert differences == []


async def test_this_server_accepts_the_schema_at_its_head(records: Records) -> None:
    await check_schema(records, SCRIPTS, "policy_guard")

"""Schema versions: explicit migration, and a check before serving."""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, text

from shared.records.errors import SchemaMismatch
from shared.records.store import Records

# Any constant will do: PostgreSQL's advisory locks are numbers, one space for each database.
_MIGRATION_LOCK = 0x62617374_69646521


def migrate(url: str, script_location: Path, revision: str = "head", *, deadline: float = 600.0) -> str:
    """Bring the database at `url` to `revision` in one transaction; return the revision it is at.

    For a command line, not for a server: it runs an event loop of its own. Two that run at once wait for each
    other. Raises `RecordsMisconfigured` or `RecordsUnavailable`.
    """

    def upgrade(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config = Config()
        config.set_main_option("script_location", str(script_location).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        return MigrationContext.configure(connection).get_current_revision() or "base"

    async def run() -> str:
        async with Records(url, deadline=deadline) as records, records.write() as connection:
            return await connection.run_sync(upgrade)

    return asyncio.run(run())


def run_environment(metadata: MetaData) -> None:
    """Run the scripts on the connection that `migrate` opened: the whole of a service's `env.py`."""
    connection: Connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def check_schema(records: Records, script_location: Path, service: str) -> None:
    """Refuse to serve on a schema that is neither this server's nor the one before it.

    Raises `SchemaMismatch`, saying what to run, or `RecordsUnavailable`.
    """
    scripts = ScriptDirectory(str(script_location))
    head = scripts.get_revision("head")
    if head is None:
        raise SchemaMismatch("this build has no schema")
    accepted = {head.revision, head.down_revision} - {None}

    async with records.read() as connection:
        current = await connection.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())
    if current in accepted:
        return
    known = current is None or any(script.revision == current for script in scripts.walk_revisions())
    action = f"run `python -m services.{service} migrate`" if known else "run a newer build of this server"
    raise SchemaMismatch(f"the database is at schema {current or 'none'}, this server needs {head.revision}: {action}")

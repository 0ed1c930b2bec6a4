"""`INSERT ... ON CONFLICT`, which SQLite and PostgreSQL spell alike and SQLAlchemy per dialect."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Row = dict[str, Any]


async def insert_missing(connection: AsyncConnection, table: Table, rows: Sequence[Row]) -> None:
    """Insert those of `rows` whose primary key is not in the table yet; leave the others as they are."""
    if rows:
        await connection.execute(_insert(connection, table).on_conflict_do_nothing(), rows)


async def put(connection: AsyncConnection, table: Table, rows: Sequence[Row]) -> None:
    """Insert `rows`, replacing rows of the same primary key. Every row MUST have every column."""
    if rows:
        await connection.execute(_replace(connection.dialect.name, table), rows)


# Building the statement takes longer than running it.
@functools.cache
def _replace(dialect: str, table: Table) -> Executable:
    statement = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    changed = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=changed)


def _insert(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)

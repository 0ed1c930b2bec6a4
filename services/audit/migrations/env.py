"""Alembic's entry; `shared.records.migrations.migrate` opens the connection."""

from services.audit.tables import metadata
from shared.records.migrations import run_environment

run_environment(metadata)

"""Alembic's entry; `shared.records.migrations.migrate` opens the connection."""

from services.policy_guard.tables import metadata
from shared.records.migrations import run_environment

run_environment(metadata)

"""Versions of the guard database's schema; `SCRIPTS` is where Alembic finds them."""

from pathlib import Path

SCRIPTS = Path(__file__).parent

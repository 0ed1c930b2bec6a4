"""Versions of the model server's schema; `SCRIPTS` is where Alembic finds them."""

from pathlib import Path

SCRIPTS = Path(__file__).parent

"""Programs that no package index carries: a test that needs one is skipped without it, except where it is required."""

from __future__ import annotations

import os
import shutil

import pytest


def find(name: str) -> str | None:
    """Return where `$<NAME>_BIN`, else PATH, has the program; None without it.

    Fails the test instead where `$REQUIRED_TOOLS`, names with spaces between them, says that it must be there.
    """
    variable = f"{name.upper().replace('-', '_')}_BIN"
    program = shutil.which(os.environ.get(variable) or name)
    if program is None and name in os.environ.get("REQUIRED_TOOLS", "").split():
        pytest.fail(f"{name} is required and is neither in {variable} nor on PATH")
    return program


def need(name: str) -> str:
    """Return where the program is, or skip the test."""
    program = find(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program

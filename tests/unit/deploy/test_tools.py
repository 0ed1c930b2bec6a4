"""What a test does without a program that it needs."""

from __future__ import annotations

import pytest

from tests import tools


@pytest.fixture(autouse=True)
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `tlog-fsck` be nowhere."""
    monkeypatch.setenv("TLOG_FSCK_BIN", "/nowhere/tlog-fsck")
    monkeypatch.delenv("REQUIRED_TOOLS", raising=False)


def test_without_a_program_that_nobody_requires_a_test_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception):
        tools.need("tlog-fsck")


def test_without_a_program_that_ci_requires_a_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRED_TOOLS", "opa tlog-fsck")
    for ask in (tools.need, tools.find):
        with pytest.raises(pytest.fail.Exception, match="TLOG_FSCK_BIN"):
            ask("tlog-fsck")


def test_a_program_is_found_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLOG_FSCK_BIN", "/bin/sh")
    assert tools.need("tlog-fsck") == "/bin/sh"

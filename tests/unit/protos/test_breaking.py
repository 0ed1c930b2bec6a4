"""Contracts cannot break unseen: the check finds what it must compare with, or fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import ROOT

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git, as the check does")

FIELD = 'syntax = "proto3";\n\npackage a.v1;\n\nmessage Thing {{\n  {kind} count = 1;\n{more}}}\n'


class Checkout:
    """A repository with one contract, and the check in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "protos" / "a" / "v1").mkdir(parents=True)
        shutil.copy(ROOT / "protos" / "breaking.py", folder / "protos")
        (folder / "protos" / "buf.yaml").write_text("version: v2\nmodules:\n  - path: .\nbreaking:\n  use: [FILE]\n")

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main")
        subprocess.run(["git", "-C", str(self.folder), *identity, *arguments], check=True, capture_output=True)

    def write(self, kind: str, more: str = "") -> None:
        (self.folder / "protos" / "a" / "v1" / "a.proto").write_text(FIELD.format(kind=kind, more=more))

    def commit(self, kind: str, more: str = "") -> None:
        self.write(kind, more)
        self.git("add", "-A")
        self.git("commit", "-m", "change")

    def check(self, base: str | None = None) -> tuple[bool, str]:
        """Return whether the check passes, and what it says."""
        environ = {name: value for name, value in os.environ.items() if name != "BREAKING_BASE"}
        if base is not None:
            environ["BREAKING_BASE"] = base
        done = subprocess.run(
            [sys.executable, self.folder / "protos" / "breaking.py"],
            check=False,
            env=environ,
            capture_output=True,
            text=True,
        )
        return done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A repository on main with one commit."""
    made = Checkout(tmp_path / "origin")
    made.git("init", "--initial-branch=main")
    made.commit("uint32")
    return made


def test_a_break_on_main_itself_is_found_against_the_commit_before(checkout: Checkout) -> None:
    assert checkout.check() == (True, "no earlier contracts to compare with\n")
    checkout.commit("uint32", "  string note = 2;\n")
    assert checkout.check()[0]
    checkout.commit("uint64")
    passes, said = checkout.check()
    assert not passes
    assert 'changed type from "uint32" to "uint64"' in said


def test_a_break_on_a_branch_is_found_against_main(checkout: Checkout) -> None:
    checkout.git("checkout", "-b", "feature")
    checkout.commit("uint64")
    checkout.commit("uint64", "  string note = 2;\n")
    assert not checkout.check()[0]


def test_a_branch_without_main_fails_and_says_how_to_go_on(checkout: Checkout, tmp_path: Path) -> None:
    checkout.git("checkout", "-b", "feature")
    checkout.commit("uint64")
    clone = Checkout(tmp_path / "clone")
    shutil.rmtree(clone.folder)
    checkout.git("clone", "--depth=1", "--branch=feature", f"file://{checkout.folder}", str(clone.folder))
    passes, said = clone.check()
    assert not passes
    assert "git fetch origin main" in said
    assert "BREAKING_BASE=none" in said
    assert clone.check("none")[0]
    clone.git("fetch", "origin", "main:refs/remotes/origin/main")
    assert "uint64" in clone.check()[1]


def test_a_shallow_checkout_of_main_fails_until_it_is_deepened(checkout: Checkout, tmp_path: Path) -> None:
    checkout.commit("uint64")
    clone = Checkout(tmp_path / "clone")
    shutil.rmtree(clone.folder)
    checkout.git("clone", "--depth=1", f"file://{checkout.folder}", str(clone.folder))
    passes, said = clone.check()
    assert not passes
    assert "git fetch --deepen=1" in said
    clone.git("fetch", "--deepen=1")
    assert "uint64" in clone.check()[1]


def test_an_archive_needs_the_word_that_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    archive = Checkout(tmp_path)
    archive.write("uint32")
    passes, said = archive.check()
    assert not passes
    assert "BREAKING_BASE=none" in said
    assert archive.check("none")[0]


def test_a_base_may_be_named(checkout: Checkout) -> None:
    checkout.commit("uint32", "  string note = 2;\n")
    checkout.commit("uint32")
    assert not checkout.check()[0]
    assert checkout.check("HEAD~2")[0]
    passes, said = checkout.check("absent")
    assert not passes
    assert "no revision absent" in said

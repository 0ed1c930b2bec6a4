"""What policy commands say next."""

from __future__ import annotations

from pathlib import Path

import pytest

from bastide.policy_guard.v1 import policy_pb2
from shared.cli.policies import next_step
from shared.records.exclusive import ExclusiveLock
from tests.unit.cli.conftest import Bastide

POLICIES = Path(__file__).parents[3] / "services/policy_guard/policies"


def test_a_proposal_of_what_is_in_force_asks_nobody_to_activate_it() -> None:
    item = policy_pb2.Revision(name="revisions/00ff", state=policy_pb2.REVISION_STATE_ACTIVE)
    assert next_step(item) == "revisions/00ff is in force already: this folder changes nothing"
    item.state = policy_pb2.REVISION_STATE_PROPOSED
    assert next_step(item).endswith("another person: bastide policy activate revisions/00ff")


def test_a_folder_without_tests_does_not_pass(bastide: Bastide, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    failed = bastide("policy", "test", tmp_path / "empty")
    assert failed.exit_code == 1
    assert "no tests" in failed.stderr


@pytest.mark.timeout(120)
def test_recovery_beside_a_running_guard_names_what_to_stop(bastide: Bastide, tmp_path: Path) -> None:
    bastide("init")
    lock = ExclusiveLock(tmp_path / "home" / "policy-guard" / "records.db")
    try:
        refused = bastide("policy", "recover", POLICIES, "--by", "ada")
    finally:
        lock.release()
    assert refused.exit_code == 1
    assert "DATABASE_IN_USE" in refused.stderr
    assert "bastide down policy-guard" in refused.stderr

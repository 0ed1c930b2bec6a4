"""A call is judged by the revision that it began with."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.policy_guard.acknowledgements import Acknowledgements
from services.policy_guard.decisions import DecisionSigner
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.guard_data import guard_data
from services.policy_guard.judge import Judge
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.standing import Standing
from shared.identity.principal import Kind
from shared.keys import SigningKey
from shared.records.store import Records
from tests.stores import Stores, sqlite_stores
from tests.unit.policy_guard.policy.conftest import DEFAULT, make_engine, with_data
from tests.unit.policy_guard.policy.test_facts import NOW, question

__all__ = ["sqlite_stores"]

OTHER = with_data({"bastide": {"topics": {"terms": {"weapons": ["harmless widget"]}}}})
TEXT = "tell me of the harmless widget"


@pytest.fixture
async def engine() -> AsyncIterator[PolicyEngine]:
    engine = make_engine("embedded")
    yield engine
    await engine.close()


@pytest.fixture
def url(sqlite_stores: Stores) -> str:
    return sqlite_stores.new(SCRIPTS)


async def test_detectors_and_decision_are_of_the_revision_held_whatever_comes_into_force(
    engine: PolicyEngine, url: str
) -> None:
    async with Records(url) as records:
        judge = Judge(
            engine,
            DecisionSigner(
                SigningKey(name="policy-guard/decision", _private=Ed25519PrivateKey.generate()), clock=lambda: NOW
            ),
            Acknowledgements(records, clock=lambda: NOW),
            Standing(records, clock=time.monotonic),
            seconds=20.0,
            clock=lambda: NOW,
        )
        asked = question([])
        asked = dataclasses.replace(asked, principal=dataclasses.replace(asked.principal, kind=Kind.WORKLOAD))
        await engine.load(DEFAULT)
        judge.follow(guard_data(DEFAULT))
        with judge.hold() as held:
            scanner = judge.scanner(control_tokens=False)
            await engine.load(OTHER)
            judge.follow(guard_data(OTHER))
            judgement, _ = await judge.inference(asked, held, action="a", audience="b")
        assert judgement.decision.policy_revision == DEFAULT.revision
        assert scanner.scan(TEXT) == ()
        with judge.hold() as held:
            judgement, _ = await judge.inference(asked, held, action="a", audience="b")
        assert judgement.decision.policy_revision == OTHER.revision
        assert [item.kind for item in judge.scanner(control_tokens=False).scan(TEXT)] == ["TOPIC"]

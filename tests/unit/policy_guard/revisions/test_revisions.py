"""Which policy is in force: never by accident, never by two at once, and never forgotten."""

from __future__ import annotations

import asyncio

import pytest

from services.policy_guard.revisions import Kind, NoEarlierRevision, Revisions, State
from shared.errors import Aborted, InvalidArgument, NotFound
from shared.records.store import Records
from tests.unit.policy_guard.clock import Clock

A, B, C, D, E = (f"sha256:{letter * 64}" for letter in "abcde")


@pytest.fixture
async def revisions(records: Records, clock: Clock) -> Revisions:
    kept = Revisions(records, clock=clock)
    for digest in (A, B, C):
        await kept.propose(digest, f"bundle {digest}".encode(), proposer="ada", note=f"note {digest}")
        clock.advance(seconds=1)
    return kept


async def in_force(revisions: Revisions) -> str | None:
    active = await revisions.active()
    return None if active is None else active.digest


async def test_a_proposal_keeps_the_bundle_and_is_not_in_force(revisions: Revisions) -> None:
    found = await revisions.get(A)
    assert (found.digest, found.state, found.proposer, found.note) == (A, State.PROPOSED, "ada", f"note {A}")
    assert found.activation is None
    assert await revisions.bundle(A) == f"bundle {A}".encode()
    assert await revisions.active() is None


async def test_proposing_the_same_again_changes_nothing(revisions: Revisions) -> None:
    before = await revisions.get(A)
    again = await revisions.propose(A, b"other bytes", proposer="mallory", note="other")
    assert again == before == await revisions.get(A)
    assert await revisions.bundle(A) == f"bundle {A}".encode()


@pytest.mark.parametrize("digest", [D, "", "sha256:0", "active", f"{A}\n", f"{A}\x00"])
async def test_an_unknown_revision_is_not_found(revisions: Revisions, digest: str) -> None:
    for attempt in (
        revisions.get(digest),
        revisions.bundle(digest),
        revisions.activate(digest, activator="bob", expected=None),
        revisions.recover(digest, activator="root"),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_what_is_no_digest_is_not_proposed(revisions: Revisions) -> None:
    with pytest.raises(InvalidArgument):
        await revisions.propose("latest", b"", proposer="ada", note="")


async def test_activation_replaces_the_active_revision(revisions: Revisions, clock: Clock) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    clock.advance(minutes=1)
    activation = await revisions.activate(B, activator="carol", expected=A)
    assert activation == await revisions.active()
    assert (activation.digest, activation.activator, activation.activated_at) == (B, "carol", clock())
    states = {revision.digest: revision.state for revision in (await revisions.list()).revisions}
    assert states == {A: State.RETIRED, B: State.ACTIVE, C: State.PROPOSED}
    retired = await revisions.get(A)
    assert retired.activation is not None
    assert retired.activation.activator == "bob"


async def test_activation_judged_by_another_revision_is_aborted(revisions: Revisions) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    for stale in (None, C):
        with pytest.raises(Aborted):
            await revisions.activate(B, activator="bob", expected=stale)
        assert await in_force(revisions) == A


async def test_activating_what_is_in_force_is_a_repetition(revisions: Revisions) -> None:
    first = await revisions.activate(A, activator="bob", expected=None)
    assert await revisions.activate(A, activator="carol", expected=None) == first


async def test_of_activations_at_once_one_wins(revisions: Revisions, records: Records, clock: Clock) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    replica = Revisions(records, clock=clock)
    outcomes = await asyncio.gather(
        revisions.activate(B, activator="bob", expected=A),
        replica.activate(C, activator="carol", expected=A),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Aborted) for outcome in outcomes) == 1
    (winner,) = [outcome.digest for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert await in_force(revisions) == winner


async def test_rollback_goes_back_step_by_step_and_never_forth(revisions: Revisions) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    await revisions.activate(B, activator="bob", expected=A)
    await revisions.activate(C, activator="bob", expected=B)
    first = await revisions.rollback(activator="carol", expected=C)
    assert (first.digest, first.kind, first.number) == (B, Kind.ROLLBACK, 4)
    assert (await revisions.rollback(activator="carol", expected=B)).digest == A
    with pytest.raises(NoEarlierRevision):
        await revisions.rollback(activator="carol", expected=A)
    await revisions.activate(C, activator="bob", expected=A)
    assert (await revisions.rollback(activator="carol", expected=C)).digest == A


async def test_rollback_judged_by_another_revision_is_aborted(revisions: Revisions) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    await revisions.activate(B, activator="bob", expected=A)
    with pytest.raises(Aborted):
        await revisions.rollback(activator="carol", expected=A)
    assert await in_force(revisions) == B


async def test_rollback_before_any_activation_is_refused(revisions: Revisions) -> None:
    with pytest.raises(Aborted):
        await revisions.rollback(activator="carol", expected=A)


async def test_recovery_leaves_a_mark_and_keeps_history(revisions: Revisions) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    await revisions.activate(B, activator="bob", expected=A)
    recovered = await revisions.recover(A, activator="host:root")
    assert (recovered.digest, recovered.kind, recovered.activator) == (A, Kind.RECOVERY, "host:root")
    assert await revisions.recoveries() == (recovered,)
    assert (await revisions.rollback(activator="carol", expected=A)).digest == B


async def test_recovering_what_is_in_force_is_marked_too_and_rolls_back_past_itself(revisions: Revisions) -> None:
    await revisions.activate(A, activator="bob", expected=None)
    await revisions.activate(B, activator="bob", expected=A)
    await revisions.recover(B, activator="host:root")
    assert len(await revisions.recoveries()) == 1
    assert (await revisions.rollback(activator="carol", expected=B)).digest == A


async def test_the_active_revision_survives_a_restart(url: str, clock: Clock) -> None:
    async with Records(url) as records:
        kept = Revisions(records, clock=clock)
        await kept.propose(A, b"bundle", proposer="ada", note="")
        activation = await kept.activate(A, activator="bob", expected=None)
    async with Records(url) as records:
        kept = Revisions(records, clock=clock)
        assert await kept.active() == activation
        assert await kept.bundle(A) == b"bundle"


async def test_pages_are_newest_first_and_hold_together(revisions: Revisions, clock: Clock) -> None:
    first = await revisions.list(requested=2)
    assert [revision.digest for revision in first.revisions] == [C, B]
    await revisions.propose(D, b"", proposer="ada", note="")
    await revisions.propose(E, b"", proposer="ada", note="")
    second = await revisions.list(requested=2, page_token=first.next_page_token)
    assert [revision.digest for revision in second.revisions] == [A]
    assert second.next_page_token == ""
    same_instant = await revisions.list(requested=1)
    following = await revisions.list(requested=1, page_token=same_instant.next_page_token)
    assert [page.revisions[0].digest for page in (same_instant, following)] == [E, D]
    with pytest.raises(InvalidArgument):
        await revisions.list(page_token="nonsense")

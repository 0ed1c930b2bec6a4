"""Budgets: what a call may consume is reserved before it starts and settled once when it ends.

Two kinds keep the same promises: `local_budgets` counts in the memory of the one process that may open a SQLite
database, `shared_budgets` in transactions on PostgreSQL, for any number of replicas. Neither waits for a disk to
sync, so that a power failure can lose the last fraction of a second: some calls may then go uncounted, none is ever
counted twice.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Protocol, Self

from services.policy_guard.claim import Claim, Reservation
from services.policy_guard.local_budgets import LocalBudgets
from services.policy_guard.shared_budgets import SharedBudgets
from shared.records.store import Records


class Budgets(Protocol):
    """Use as an async context manager. Everything raises `RecordsUnavailable`: then callers MUST refuse the call."""

    async def reserve(self, claim: Claim) -> Reservation:
        """Charge `claim` against all its limits or none, lowering its new tokens to what they leave.

        Raises `BudgetExhausted`, `RepeatedRequest`, `CallInFlight` or `TooManyReservations`. A caller that does not
        learn the outcome, cancelled or by `RecordsUnavailable`, MUST `settle` the call with 0 tokens;
        `UnknownReservation` then says that nothing was charged.
        """

    async def renew(self, call_id: str, lease: dt.timedelta) -> dt.datetime:
        """Let the call's lease end `lease` from now. Raises `UnknownReservation` if it has ended or is settled."""

    async def settle(self, call_id: str, tokens: int) -> int:
        """Charge what the call consumed, prompt and new tokens, in place of what it reserved; return what counts.

        A repetition returns what the first did; past the lease the whole reservation counts. Raises
        `UnknownReservation`.
        """

    async def __aenter__(self) -> Self:
        """Begin. Raises `RecordsUnavailable`."""

    async def __aexit__(self, *_: object) -> None:
        """Write what is left to write, and end."""


def open_budgets(records: Records, *, clock: Callable[[], dt.datetime]) -> Budgets:
    """Return the budgets that fit the database. A SQLite one MUST be opened with `exclusive`."""
    return LocalBudgets(records, clock=clock) if records.dialect == "sqlite" else SharedBudgets(records, clock=clock)

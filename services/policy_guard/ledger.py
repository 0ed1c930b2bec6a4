"""What has been consumed, and what calls in flight may still consume: pure counting, in microseconds and units.

A window is cut into 60 slots. What counts is the slots that the window touches, so that no stretch of the window's
length ever holds more than its limit; a unit is forgotten at most a sixtieth of the window late, never early. A call
is charged in full when it reserves; settling takes back what it did not use from the slots it was charged to. So a
reservation whose lease runs out is settled in full by doing nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.policy_guard.claim import BudgetExhausted, CallInFlight, Claim, RepeatedRequest, UnknownReservation
from services.policy_guard.result import BudgetUnit

SLOTS = 60
_SETTLED_KEPT = 5 * 60 * 1_000_000
REQUEST_ID_KEPT = 24 * 3600 * 1_000_000


@dataclass(kw_only=True)
class Counter:
    """Consumption in one sliding window."""

    window: int
    slots: dict[int, int] = field(default_factory=dict)

    @property
    def _width(self) -> int:
        return -(-self.window // SLOTS)

    @property
    def forget_at(self) -> int:
        """When the last unit leaves the window."""
        return (max(self.slots, default=0) + SLOTS + 1) * self._width

    def used(self, now: int) -> int:
        """Return what counts at `now`."""
        oldest = now // self._width - SLOTS
        for slot in [slot for slot in self.slots if slot < oldest]:
            del self.slots[slot]
        return sum(self.slots.values())

    def charge(self, units: int, now: int) -> int:
        """Add `units`; return the slot they are in."""
        slot = now // self._width
        self.slots[slot] = self.slots.get(slot, 0) + units
        return slot

    def adjust(self, slot: int, difference: int) -> None:
        """Correct what was charged to `slot`, if that still counts."""
        if slot in self.slots:
            self.slots[slot] += difference

    def wait(self, units: int, limit: int, now: int) -> int | None:
        """Return after how long `units` more fit under `limit`, if nothing else is charged; None if they never do."""
        if units > limit:
            return None
        excess = self.used(now) + units - limit
        for slot in sorted(self.slots):
            if excess <= 0:
                break
            excess -= self.slots[slot]
            if excess <= 0:
                return (slot + SLOTS + 1) * self._width - now
        return 0


@dataclass(kw_only=True)
class Held:
    """A reservation: what was charged, where, until when, and what became of it."""

    tokens: int
    charges: list[tuple[str, int]]
    """Token counters and the slot in each."""
    expires_at: int
    forget_at: int
    settled: int | None = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Names of what differs from the store."""

    counters: frozenset[str]
    reservations: frozenset[str]
    requests: dict[bytes, int]


@dataclass(kw_only=True)
class Ledger:
    """Counters, reservations and used request ids, all of them or those that a transaction touches."""

    counters: dict[str, Counter] = field(default_factory=dict)
    reservations: dict[str, Held] = field(default_factory=dict)
    requests: dict[bytes, int] = field(default_factory=dict)
    """Key -> when it may be used again."""
    _changed_counters: set[str] = field(default_factory=set)
    _changed_reservations: set[str] = field(default_factory=set)
    _new_requests: dict[bytes, int] = field(default_factory=dict)

    def reserve(self, claim: Claim, now: int) -> tuple[int, int]:
        """Charge `claim`; return the new tokens that are left to it, at most its own, and when its lease ends.

        Raises `BudgetExhausted`, `CallInFlight` or `RepeatedRequest`; then nothing is charged.
        """
        if claim.call_id in self.reservations:
            raise CallInFlight("the call has a reservation already")
        if claim.request_key is not None and self.requests.get(claim.request_key, now) > now:
            raise RepeatedRequest("the request_id was used before")
        granted = self._grant(claim, now)
        tokens = claim.prompt_tokens + granted
        charges = []
        for key, limit in claim.counters.items():
            counter = self.counters.setdefault(key, Counter(window=limit.window_seconds * 1_000_000))
            if limit.unit is BudgetUnit.TOKENS:
                charges.append((key, counter.charge(tokens, now)))
            else:
                counter.charge(1, now)
            self._changed_counters.add(key)
        expires_at = now + claim.lease_micros
        self.reservations[claim.call_id] = Held(
            tokens=tokens, charges=charges, expires_at=expires_at, forget_at=expires_at + _SETTLED_KEPT
        )
        self._changed_reservations.add(claim.call_id)
        if claim.request_key is not None:
            self.requests[claim.request_key] = self._new_requests[claim.request_key] = now + REQUEST_ID_KEPT
        return granted, expires_at

    def _grant(self, claim: Claim, now: int) -> int:
        granted = claim.max_new_tokens
        for key, limit in claim.counters.items():
            counter = self.counters.get(key) or Counter(window=limit.window_seconds * 1_000_000)
            least = claim.prompt_tokens + 1 if limit.unit is BudgetUnit.TOKENS else 1
            room = limit.limit - counter.used(now)
            if room < least:
                wait = counter.wait(least, limit.limit, now)
                raise BudgetExhausted(limit, retry_after=None if wait is None else wait / 1_000_000)
            if limit.unit is BudgetUnit.TOKENS:
                granted = min(granted, room - claim.prompt_tokens)
        return granted

    def renew(self, call_id: str, lease: int, now: int) -> int:
        """Let a running lease end `lease` from now; return when. Raises `UnknownReservation`."""
        held = self._held(call_id)
        if held.settled is not None or held.expires_at <= now:
            raise UnknownReservation("the call's reservation is settled")
        held.expires_at = now + lease
        held.forget_at = held.expires_at + _SETTLED_KEPT
        self._changed_reservations.add(call_id)
        return held.expires_at

    def settle(self, call_id: str, tokens: int, now: int) -> int:
        """Return what the call is charged in the end: `tokens`, what was settled before, or all past its lease.

        Raises `UnknownReservation`.
        """
        held = self._held(call_id)
        if held.settled is not None:
            return held.settled
        held.settled = held.tokens if held.expires_at <= now else tokens
        for key, slot in held.charges:
            if held.settled != held.tokens and key in self.counters:
                self.counters[key].adjust(slot, held.settled - held.tokens)
                self._changed_counters.add(key)
        held.forget_at = now + _SETTLED_KEPT
        self._changed_reservations.add(call_id)
        return held.settled

    def forget(self, now: int) -> None:
        """Drop what no longer counts."""
        self.counters = {key: value for key, value in self.counters.items() if value.forget_at > now}
        self.reservations = {key: value for key, value in self.reservations.items() if value.forget_at > now}

    def take_changes(self) -> Changes:
        """Return what changed since the last time."""
        changes = Changes(
            counters=frozenset(self._changed_counters),
            reservations=frozenset(self._changed_reservations),
            requests=dict(self._new_requests),
        )
        self._changed_counters.clear()
        self._changed_reservations.clear()
        self._new_requests.clear()
        return changes

    def restore_changes(self, changes: Changes) -> None:
        """Put back what could not be written."""
        self._changed_counters |= changes.counters
        self._changed_reservations |= changes.reservations
        self._new_requests |= changes.requests

    def _held(self, call_id: str) -> Held:
        held = self.reservations.get(call_id)
        if held is None:
            raise UnknownReservation("the call has no reservation")
        return held

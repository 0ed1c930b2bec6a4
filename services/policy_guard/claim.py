"""What a call asks of its budgets, what it gets, and how it is refused."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass, field

from services.policy_guard.result import BudgetScope, Limit
from shared.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted

_MICROSECOND = dt.timedelta(microseconds=1)
_CALL_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class BudgetExhausted(ResourceExhausted):
    """A limit leaves no room for the call; without `retry_after` the call alone is over it."""

    reason = "BUDGET_EXHAUSTED"

    def __init__(self, limit: Limit, *, retry_after: float | None) -> None:
        """Say which limit, and after how many seconds a retry may succeed."""
        message = "the budget is used up" if retry_after is not None else "the call is larger than the whole budget"
        super().__init__(message, retry_after=retry_after, scope=limit.scope.value, unit=limit.unit.value)


class TooManyReservations(ResourceExhausted):
    """More calls are in flight than are counted at once."""

    reason = "TOO_MANY_CALLS"


class CallInFlight(AlreadyExists):
    """The call has reserved before."""

    reason = "CALL_RESERVED"


class RepeatedRequest(AlreadyExists):
    """The principal used this request_id within a day."""

    reason = "REQUEST_ID_REPEATED"


class UnknownReservation(NotFound):
    """The call never reserved, or its reservation was settled and forgotten."""

    reason = "UNKNOWN_RESERVATION"


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """Whose budgets a call draws on."""

    tenant: str
    principal: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a call wants: the prompt's tokens and at most `max_new_tokens`, at least 1, within `lease`.

    `call_id` MUST be unique. A `request_id` is used up by a claim that is granted; empty means none.
    """

    call_id: str
    consumer: Consumer
    limits: tuple[Limit, ...]
    prompt_tokens: int
    max_new_tokens: int
    lease: dt.timedelta
    request_id: str = ""
    counters: dict[str, Limit] = field(init=False)
    """The limits that bind, by the name of what they count."""
    request_key: bytes | None = field(init=False)
    """A hash of the principal and its request id."""

    def __post_init__(self) -> None:
        """Name what is counted; of two limits on the same count the lower binds. Raises `InvalidArgument`."""
        if not _CALL_ID.fullmatch(self.call_id):
            raise InvalidArgument("a call id has 1 to 64 letters, digits and ._:-", field="call_id")
        if self.max_new_tokens < 1 or self.prompt_tokens < 0 or self.lease <= dt.timedelta(0):
            raise InvalidArgument("a call reserves at least one new token for some time", field="reserve")
        counters: dict[str, Limit] = {}
        for limit in sorted(self.limits, key=lambda item: -item.limit):
            counters[_counter_key(limit, self.consumer)] = limit
        object.__setattr__(self, "counters", counters)
        key = None
        if self.request_id:
            key = _digest(self.consumer.tenant, self.consumer.principal, self.request_id)
        object.__setattr__(self, "request_key", key)

    @property
    def lease_micros(self) -> int:
        """The lease in microseconds."""
        return self.lease // _MICROSECOND


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What was reserved: the new tokens that the call may generate, and when its lease ends."""

    max_new_tokens: int
    expires_at: dt.datetime


def _counter_key(limit: Limit, consumer: Consumer) -> str:
    whose = {
        BudgetScope.TENANT: "",
        BudgetScope.PRINCIPAL: consumer.principal,
        BudgetScope.MODEL: consumer.model,
    }[limit.scope]
    return _digest(limit.scope.value, limit.unit.value, limit.window_seconds, consumer.tenant, whose).hex()


def _digest(*parts: str | int) -> bytes:
    # Whatever the parts hold, the key is short, unambiguous and names nobody.
    return hashlib.sha256(json.dumps(parts).encode()).digest()

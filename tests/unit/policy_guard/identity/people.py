"""A guard's identity parts over one record store, and what a person does with them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pyotp
from argon2 import PasswordHasher

from services.policy_guard.enrolment import Enrolment
from services.policy_guard.passwords import Passwords
from services.policy_guard.sign_in import SignedIn, SignIn
from services.policy_guard.throttle import Throttle
from services.policy_guard.totp import SecondFactors
from services.policy_guard.users import Users
from shared.keys import FileKeyProvider
from shared.records.store import Records
from tests.unit.policy_guard.clock import Clock

LAPTOP = "spiffe://bastide.local/client/laptop"
ELSEWHERE = "spiffe://bastide.local/client/elsewhere"
PASSWORD = "correct horse battery"


class Identity:
    def __init__(self, records: Records, keys: FileKeyProvider, clock: Clock) -> None:
        self.records = records
        self.clock = clock
        passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        factors = SecondFactors(keys, issuer="Bastide")
        self.users = Users(records, clock=clock)
        self.throttle = Throttle(records, clock=clock)
        self.enrolment = Enrolment(records, passwords, factors, clock=clock)
        self.signing_in = SignIn(records, passwords, factors, self.throttle, clock=clock)

    async def enrolled(self, subject: str = "ada@example.org", *, spiffe_id: str = LAPTOP) -> pyotp.TOTP:
        """Create and enrol a person; return their authenticator, with a fresh code at the clock's new time."""
        _, code = await self.users.create(subject, tenant="acme", roles=["user"])
        return await self.enrol(subject, code.code, spiffe_id=spiffe_id)

    async def enrol(self, subject: str, code: str, *, spiffe_id: str = LAPTOP) -> pyotp.TOTP:
        uri = await self.enrolment.start(subject, code, PASSWORD)
        authenticator = read_uri(uri)
        await self.confirm(subject, code, authenticator.at(self.clock()), spiffe_id=spiffe_id)
        self.clock.advance(seconds=30)
        return authenticator

    async def confirm(self, subject: str, code: str, totp: str, *, spiffe_id: str) -> None:
        await self.enrolment.complete(await self.enrolment.prove(subject, code, totp), spiffe_id=spiffe_id)

    async def sign_in(
        self,
        totp: str = "",
        *,
        subject: str = "ada@example.org",
        password: str = PASSWORD,
        spiffe_id: str = LAPTOP,
    ) -> SignedIn:
        return await self.signing_in.sign_in(subject, password, totp, spiffe_id=spiffe_id)


def read_uri(uri: str) -> pyotp.TOTP:
    return pyotp.TOTP(parse_qs(urlparse(uri).query)["secret"][0])


def key_file(folder: Path) -> FileKeyProvider:
    return FileKeyProvider.create(folder / "keys.json", ["identity"])

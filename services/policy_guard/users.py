"""People who may sign in. Who may change them is policy; this keeps them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, delete, exists, insert, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.enrolment_code import EnrolmentCode, issue_code
from services.policy_guard.pages import decode_page_token, encode_page_token, page_size
from services.policy_guard.tables import acknowledgements, credentials, enrolments, known_workloads, users
from shared.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from shared.records.store import Records

_SUBJECT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._@+-]{0,254}")


class AlreadyBootstrapped(FailedPrecondition):
    """There is an administrator, or a code with which one can still enrol."""

    reason = "ALREADY_BOOTSTRAPPED"


@dataclass(frozen=True, kw_only=True)
class User:
    """A person; `acknowledged_use_policy` is the version they accepted last, empty if none."""

    subject: str
    tenant: str
    roles: tuple[str, ...]
    disabled: bool
    enrolled: bool
    acknowledged_use_policy: str
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class UserPage:
    """People by subject; the token is empty on the last page."""

    users: tuple[User, ...]
    next_page_token: str


class Users:
    """The register of people. Everything raises `RecordsUnavailable` when the store does not answer."""

    def __init__(self, records: Records, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep people in `records`."""
        self._records = records
        self._clock = clock

    async def create(self, subject: str, *, tenant: str, roles: Sequence[str]) -> tuple[User, EnrolmentCode]:
        """Register a person and issue the code with which they enrol.

        Raises `AlreadyExists`, or `InvalidArgument` for a subject outside the contract's alphabet.
        """
        try:
            async with self._records.write() as connection:
                code = await self._insert(connection, subject, tenant, roles)
                return await _read(connection, subject), code
        except IntegrityError:
            raise AlreadyExists("a person of that subject exists") from None

    async def get(self, subject: str) -> User:
        """Return a person. Raises `NotFound`."""
        async with self._records.read() as connection:
            return await _read(connection, subject)

    async def list(self, tenant: str, *, requested: int = 0, page_token: str = "") -> UserPage:
        """Return up to `requested` people of a tenant (0: the default) after the page that `page_token` ended.

        Raises `InvalidArgument`.
        """
        size = page_size(requested)
        query = _select().where(users.c.tenant == tenant).order_by(users.c.subject).limit(size + 1)
        if page_token:
            query = query.where(users.c.subject > decode_page_token(page_token, _SUBJECT))
        async with self._records.read() as connection:
            found = [_to_user(row) for row in await connection.execute(query)]
        token = encode_page_token(found[size - 1].subject) if len(found) > size else ""
        return UserPage(users=tuple(found[:size]), next_page_token=token)

    async def update(self, subject: str, *, tenant: str, roles: Sequence[str], disabled: bool) -> User:
        """Replace a person's roles, and disable or enable them.

        Raises `NotFound`, or `InvalidArgument` when they are not of `tenant`: people do not move.

        Tokens that they hold give them no more than this after a second (`Standing`).
        """
        async with self._records.write() as connection:
            if (await _read(connection, subject)).tenant != tenant:
                raise InvalidArgument("a person's tenant cannot be changed", field="user.tenant")
            changed = update(users).where(users.c.subject == subject)
            await connection.execute(changed.values(roles=list(roles), disabled=disabled))
            return await _read(connection, subject)

    async def recover(self, subject: str) -> EnrolmentCode:
        """Void a person's password, second factor and known workloads, and issue a new code. Raises `NotFound`."""
        async with self._records.write() as connection:
            await _read(connection, subject)
            return await self._void(connection, subject)

    async def reinstate(self, subject: str, *, role: str) -> EnrolmentCode:
        """Give a person `role` too, enable them, and have them enrol anew as after `recover`. Raises `NotFound`."""
        async with self._records.write() as connection:
            roles = sorted({*(await _read(connection, subject)).roles, role})
            changed = update(users).where(users.c.subject == subject)
            await connection.execute(changed.values(roles=roles, disabled=False))
            return await self._void(connection, subject)

    async def _void(self, connection: AsyncConnection, subject: str) -> EnrolmentCode:
        for table in (credentials, known_workloads):
            await connection.execute(delete(table).where(table.c.subject == subject))
        return await issue_code(connection, subject, self._clock())

    async def bootstrap(
        self, subjects: tuple[str, str], *, tenant: str, roles: Sequence[str]
    ) -> tuple[EnrolmentCode, EnrolmentCode]:
        """Register the first two administrators, and never a third.

        Raises `AlreadyBootstrapped` once anybody has enrolled, or can with a code that has not expired: after codes
        that expired unused it starts afresh. Raises `InvalidArgument` unless two different subjects are given.
        """
        if subjects[0] == subjects[1]:
            raise InvalidArgument("two different people are needed", field="subjects")
        async with self._records.write() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite has one writer as it is; here two bootstraps could each see an empty table.
                await connection.execute(text("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"))
            usable = exists(enrolments.select().where(enrolments.c.expires_at > self._clock()))
            if (await connection.execute(select(or_(exists(credentials.select()), usable)))).scalar_one():
                raise AlreadyBootstrapped(
                    "there is an administrator, or codes that were printed can still be used; they end after a day,"
                    " and a lost one is replaced with recover-administrator"
                )
            for table in (enrolments, users):
                await connection.execute(delete(table))
            first, second = [await self._insert(connection, subject, tenant, roles) for subject in subjects]
            return first, second

    async def _insert(
        self, connection: AsyncConnection, subject: str, tenant: str, roles: Sequence[str]
    ) -> EnrolmentCode:
        if not _SUBJECT.fullmatch(subject):
            raise InvalidArgument("a subject is 1 to 255 of letters, digits and ._@+-", field="user.subject")
        now = self._clock()
        person = {"subject": subject, "tenant": tenant, "roles": list(roles), "disabled": False, "created_at": now}
        await connection.execute(insert(users).values(person))
        return await issue_code(connection, subject, now)


def is_subject(text: str) -> bool:
    """Return whether `text` could be the subject of a person, so that a database may be asked for it."""
    return _SUBJECT.fullmatch(text) is not None


def _select() -> Select[Any]:
    return (
        select(users, credentials.c.subject.is_not(None).label("enrolled"), acknowledgements.c.version)
        .select_from(users)
        .outerjoin(credentials, credentials.c.subject == users.c.subject)
        .outerjoin(acknowledgements, acknowledgements.c.subject == users.c.subject)
    )


async def _read(connection: AsyncConnection, subject: str) -> User:
    row = None
    if is_subject(subject):
        row = (await connection.execute(_select().where(users.c.subject == subject))).one_or_none()
    if row is None:
        raise NotFound("no such person")
    return _to_user(row)


def _to_user(row: Row[Any]) -> User:
    return User(
        subject=row.subject,
        tenant=row.tenant,
        roles=tuple(row.roles),
        disabled=row.disabled,
        enrolled=row.enrolled,
        acknowledged_use_policy=row.version or "",
        created_at=row.created_at,
    )

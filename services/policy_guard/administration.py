"""What is done on the guard's host without the server: the first administrators, and the way back to one."""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
from collections.abc import Coroutine
from typing import Any

from bastide.audit.v1 import record_pb2
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.enrolment_code import EnrolmentCode
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.server import now
from services.policy_guard.users import Users
from shared.audit import record_of
from shared.errors import Error, InvalidArgument
from shared.keys import FileKeyProvider
from shared.outbox import Outbox
from shared.records.migrations import check_schema
from shared.records.store import Records

ROLE = "administrator"


def bootstrap(settings: PolicyGuardSettings, arguments: list[str]) -> int:
    """Print single-use enrolment codes for two administrators; refuses once there is one."""
    parser = argparse.ArgumentParser(prog="python -m services.policy_guard bootstrap")
    parser.add_argument("subjects", nargs=2, metavar="SUBJECT", help="two different people")
    parser.add_argument("--tenant", default=settings.administrator_tenants[0], help="one of `administrator_tenants`")
    given = parser.parse_args(arguments)
    return _run(_bootstrap(settings, (given.subjects[0], given.subjects[1]), given.tenant))


def recover_administrator(settings: PolicyGuardSettings, arguments: list[str]) -> int:
    """Make a registered person an administrator anew and print the code with which they enrol again.

    For when no administrator can sign in any more. The guard may run or not; it enters this in the log.
    """
    parser = argparse.ArgumentParser(prog="python -m services.policy_guard recover-administrator")
    parser.add_argument("subject", metavar="SUBJECT", help="somebody who is registered")
    parser.add_argument("--by", required=True, help="who does this, for the record")
    given = parser.parse_args(arguments)
    return _run(_recover(settings, given.subject, given.by))


def _run(work: Coroutine[Any, Any, list[EnrolmentCode]]) -> int:
    try:
        codes = asyncio.run(work)
    except Error as error:
        print(json.dumps({"error": error.message, "reason": error.reason}))
        return 1
    found = [{"subject": item.subject, "code": item.code, "expires_at": item.expires_at.isoformat()} for item in codes]
    print(json.dumps({"administrators": found}))
    return 0


async def _bootstrap(settings: PolicyGuardSettings, subjects: tuple[str, str], tenant: str) -> list[EnrolmentCode]:
    if tenant not in settings.administrator_tenants:
        raise InvalidArgument("not a tenant of `administrator_tenants`", field="tenant")
    async with Records(settings.records) as records:
        await check_schema(records, SCRIPTS, "policy_guard")
        return list(await Users(records, clock=now).bootstrap(subjects, tenant=tenant, roles=(ROLE,)))


async def _recover(settings: PolicyGuardSettings, subject: str, by: str) -> list[EnrolmentCode]:
    outbox = Outbox(settings.outbox, FileKeyProvider(settings.keys))
    async with Records(settings.records) as records:
        await check_schema(records, SCRIPTS, "policy_guard")
        users = Users(records, clock=now)
        await users.get(subject)
        # Before it happens: the log may say too much of this, and never too little.
        await outbox.put(
            record_of(
                record_pb2.RECORD_KIND_SYSTEM,
                call_id=str(uuid.uuid4()),
                method="-",
                action="policy_guard.user.recover_administrator",
                resource=f"by {by}",
            )
        )
        return [await users.reinstate(subject, role=ROLE)]

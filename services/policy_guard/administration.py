"""What is done on the guard's host without the server: the first administrators."""

from __future__ import annotations

import argparse
import asyncio
import json

from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.server import now
from services.policy_guard.users import Users
from shared.errors import Error
from shared.records.migrations import check_schema
from shared.records.store import Records

ROLES = ("administrator",)


def bootstrap(settings: PolicyGuardSettings, arguments: list[str]) -> int:
    """Print single-use enrolment codes for two administrators; refuses once there is one."""
    parser = argparse.ArgumentParser(prog="python -m services.policy_guard bootstrap")
    parser.add_argument("subjects", nargs=2, metavar="SUBJECT", help="two different people")
    parser.add_argument("--tenant", default="default")
    given = parser.parse_args(arguments)
    try:
        codes = asyncio.run(_bootstrap(settings, tuple(given.subjects), given.tenant))
    except Error as error:
        print(json.dumps({"error": error.message, "reason": error.reason}))
        return 1
    print(json.dumps({"administrators": codes}))
    return 0


async def _bootstrap(settings: PolicyGuardSettings, subjects: tuple[str, ...], tenant: str) -> list[dict[str, str]]:
    async with Records(settings.records) as records:
        await check_schema(records, SCRIPTS, "policy_guard")
        first, second = await Users(records, clock=now).bootstrap(
            (subjects[0], subjects[1]), tenant=tenant, roles=ROLES
        )
    return [
        {"subject": subject, "code": code.code, "expires_at": code.expires_at.isoformat()}
        for subject, code in zip(subjects, (first, second), strict=True)
    ]

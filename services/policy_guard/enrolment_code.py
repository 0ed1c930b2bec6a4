"""Single-use codes with which a person enrols: 160 random bits, kept as a hash, good for a day."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.policy_guard.tables import enrolments

CODE_LIFETIME = dt.timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class EnrolmentCode:
    """A code to be handed over on another channel; only its hash is kept."""

    subject: str
    code: str = field(repr=False)
    expires_at: dt.datetime


async def issue_code(connection: AsyncConnection, subject: str, now: dt.datetime) -> EnrolmentCode:
    """Return a new code for `subject`, which voids the one before and what was begun with it."""
    text = base64.b32encode(secrets.token_bytes(20)).decode()
    code = "-".join(text[start : start + 4] for start in range(0, len(text), 4))
    issued = EnrolmentCode(subject=subject, code=code, expires_at=now + CODE_LIFETIME)
    await connection.execute(delete(enrolments).where(enrolments.c.subject == subject))
    await connection.execute(
        insert(enrolments).values(subject=subject, code_hash=_digest(code), expires_at=issued.expires_at)
    )
    return issued


def code_matches(code: str, code_hash: bytes) -> bool:
    """Return whether `code` is the one that was hashed, in constant time; case and dashes do not matter."""
    return hmac.compare_digest(_digest(code), code_hash)


def _digest(code: str) -> bytes:
    # A plain hash will do: nobody can search 160 bits.
    return hashlib.sha256(code.replace("-", "").upper().encode(errors="replace")).digest()

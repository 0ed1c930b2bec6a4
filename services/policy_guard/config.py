"""Settings of the policy guard."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.rpc.main import ServiceSettings


class PolicyGuardSettings(ServiceSettings):
    """Everything the guard can be told."""

    engine: Literal["auto", "opa", "embedded"] = pydantic.Field(
        default="auto", description="Policy engine; `auto` takes OPA where a binary is found, else the embedded one."
    )
    opa_binary: Path | None = pydantic.Field(default=None, description="The `opa` program; none: $OPA_BIN, then PATH.")
    policies: Path = pydantic.Field(
        default=Path(__file__).parent / "policies",
        description="Bundle that is activated on the first start; later revisions live in the record store.",
    )
    administrator_tenants: tuple[str, ...] = pydantic.Field(
        default=("default",), min_length=1, description="Tenants whose administrators must stay able to change policy."
    )
    outbox: Path = pydantic.Field(
        description="Folder for records that the audit log could not take yet; made with mode 0700."
    )
    decision_seconds: float = pydantic.Field(
        default=1.0, gt=0, le=30, description="Deadline of one policy evaluation; then the call is refused."
    )
    decision_key: Path = pydantic.Field(description="Ed25519 key that signs decisions, PEM, mode 0600.")
    identity_key: Path = pydantic.Field(description="Ed25519 key that signs tokens, PEM, mode 0600.")
    issuer: str = pydantic.Field(default="https://bastide.local/identity", description="`iss` of tokens we issue.")
    audience: str = pydantic.Field(default="bastide", description="`aud` of tokens we issue.")
    token_seconds: int = pydantic.Field(default=900, ge=60, le=3600, description="Lifetime of tokens we issue.")
    max_held_characters: int = pydantic.Field(
        default=8192, ge=512, le=1024 * 1024, description="Output that may be held back; beyond it the stream is cut."
    )

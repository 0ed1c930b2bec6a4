"""Settings of the audit service."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.rpc.main import ServiceSettings


class AuditSettings(ServiceSettings):
    """Everything the audit service can be told."""

    log_key: Path = pydantic.Field(
        description="Key that signs checkpoints (C2SP signed-note, `PRIVATE+KEY+<origin>+...`), mode 0600."
    )
    lookup_key: Path = pydantic.Field(description="32 secret bytes by which a person's pseudonym is found, mode 0600.")
    tiles: Path = pydantic.Field(description="Folder in which the log is published as C2SP tlog-tiles.")
    publish_seconds: float = pydantic.Field(
        default=1.0, gt=0, le=60, description="How often new entries are published as tiles."
    )
    lease_check_seconds: float = pydantic.Field(
        default=5.0, gt=0, le=60, description="How often lapsed authorisations are looked for."
    )

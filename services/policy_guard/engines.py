"""Which policy engine runs: the one that is configured, else OPA where its binary is found, else the embedded one."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Literal

import structlog

from services.policy_guard import embedded, opa
from services.policy_guard.engine import PolicyEngine
from shared import errors

_log = structlog.get_logger(__name__)


def choose_engine(
    *, engine: Literal["auto", "opa", "embedded"] = "auto", opa_binary: Path | None = None
) -> PolicyEngine:
    """Return the engine asked for, with nothing loaded.

    `opa_binary` (else $OPA_BIN, else `opa` on PATH) is OPA's executable; `auto` takes OPA where there is one. Raises
    FailedPrecondition when OPA is asked for, by kind or by path, and is not there.
    """
    named = str(opa_binary) if opa_binary else os.environ.get("OPA_BIN")
    found = shutil.which(named or "opa")
    if found is None and (engine == "opa" or (engine == "auto" and named)):
        raise errors.FailedPrecondition("the `opa` binary that the policy engine is set to was not found")
    if found is None or engine == "embedded":
        chosen = PolicyEngine("embedded", start=embedded.start)
    else:
        chosen = PolicyEngine("opa", start=functools.partial(opa.start, binary=Path(found)))
    _log.info("policy_engine_chosen", engine=chosen.name, configured=engine)
    return chosen

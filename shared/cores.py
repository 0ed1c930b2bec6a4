"""No core dumps: they would hold prompts, keys and weights in plaintext."""

from __future__ import annotations

import resource


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process and of every program that it starts from now on.

    A limit of 0 is not enough: Linux does not apply it where `kernel.core_pattern` names a program, as distributions'
    crash collectors have it. There a limit of 1 means none, and for a file it is too short for any (core(5),
    fs/coredump.c). Where the process was started under a hard limit of 0, that stays, and a collector is the operator's
    to switch off.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))

"""The child's side of `worker`: `python -m shared.child.serve MODULE:FUNCTION PARENT_PID LIMITS`."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import BinaryIO

from shared.child import frames, tether
from shared.child.worker import FAILED, OK, Limits
from shared.cores import forbid_core_dumps


def main(target: str, parent: int, limits: Limits) -> None:
    """Answer requests on standard input until it ends. Nothing else is ever written to the reply pipe."""
    tether.die_with_parent(parent)
    forbid_core_dumps()
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    requests, replies = _take_pipes()
    module, _, function = target.partition(":")
    setup = frames.read_blocking(requests, maximum=limits.max_request_bytes)
    if setup is None:
        return
    handler = getattr(importlib.import_module(module), function)(setup)
    _send(replies, OK, limits)
    while (request := frames.read_blocking(requests, maximum=limits.max_request_bytes)) is not None:
        try:
            reply = OK + handler(request)
        except Exception:  # noqa: BLE001 - its text may quote the request; the parent learns only that it failed
            reply = FAILED
        _send(replies, reply, limits)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes off descriptors 0 and 1, so that a library that prints cannot write into a reply."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return requests, replies


def _send(replies: BinaryIO, reply: bytes, limits: Limits) -> None:
    replies.write(frames.encode(reply, maximum=limits.max_reply_bytes + 1))
    replies.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Limits(**json.loads(sys.argv[3])))

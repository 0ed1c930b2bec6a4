"""Processes that a service starts, watches, restarts and never leaves behind.

`worker.Worker` runs untrusted or unbounded work (a policy interpreter, a document parser) in Python behind a
pipe, with a deadline on every call; `supervisor.Supervisor` keeps any one program running. Whatever the
process did, both end in `ChildUnavailable` and a fresh process.
"""

from __future__ import annotations

from shared import errors


class ChildUnavailable(errors.Unavailable):
    """The child process died, hung, or answered nonsense; a fresh one is on its way."""


class ChildFailed(errors.Error):
    """The child's own code raised while it handled this request; the child is well."""

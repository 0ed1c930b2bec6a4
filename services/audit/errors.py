"""What the log refuses."""

from __future__ import annotations

from shared.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, ResourceExhausted


class LogBusy(ResourceExhausted):
    """The append queue is full; nothing was recorded."""

    reason = "LOG_BUSY"


class RecordConflict(AlreadyExists):
    """The writer used a record id again for something else; nothing of the request was recorded."""

    reason = "RECORD_CONFLICT"


class LogCorrupt(DataLoss):
    """What the store holds is not the tree that its checkpoint speaks of; the log must not go on."""

    reason = "LOG_CORRUPT"


class WrongLog(FailedPrecondition):
    """The store, or the published directory, belongs to a log with another name or key."""

    reason = "WRONG_LOG"


class Erased(NotFound):
    """The person's key was destroyed: what it sealed can never be read again."""

    reason = "ERASED"

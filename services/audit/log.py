"""The log's front: a bounded queue, one writer, and acknowledgements that mean durable and signed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

import structlog
from prometheus_client import Gauge

from services.audit.entry import Appended, Draft, Entry, draft
from services.audit.errors import LogBusy, LogCorrupt, RecordConflict
from services.audit.reader import LogReader
from services.audit.sequencer import Placed, Sequencer, Step
from services.audit.tiles import Tiles
from services.audit.wakeup import Wakeup
from shared.errors import AuditUnavailable, InvalidArgument
from shared.records.errors import RecordsUnavailable
from shared.records.store import Records
from shared.transparency.merkle import fold, inclusion_plan
from shared.transparency.note import Signer
from shared.transparency.proof import TlogProof

MAX_GROUP = 256

QUEUED_GROUPS = Gauge("bastide_log_queued_groups", "Appends that wait for the writer; above 4096 they are refused.")
QUEUED_BYTES = Gauge("bastide_log_queued_bytes", "Bytes of the appends that wait; above 64 MiB they are refused.")

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may wait and how much goes into one transaction."""

    queued_groups: int = 4096
    queued_bytes: int = 64 * 1024 * 1024
    batch_entries: int = 1024
    batch_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    drafts: tuple[Draft, ...]
    size: int
    done: asyncio.Future[tuple[Placed, Step]]


class Log:
    """An open log. Use as an async context manager; leaving it writes what waits and ends the writer."""

    def __init__(
        self,
        records: Records,
        signer: Signer,
        *,
        clock: Callable[[], datetime],
        limits: Limits | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        """Write to `records`, which must be at this server's schema, as the origin that `signer` names."""
        tiles = Tiles()
        self.grown = Wakeup()
        self.reader = LogReader(records, tiles, self.grown, poll_seconds=poll_seconds)
        self.clock = clock
        self._sequencer = Sequencer(records, signer, tiles)
        self._limits = limits or Limits()
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._halted = ""
        self._failed = ""
        self._writer: asyncio.Task[None] | None = None
        QUEUED_GROUPS.set_function(lambda: len(self._queue))
        QUEUED_BYTES.set_function(lambda: self._queued_bytes)

    async def __aenter__(self) -> Log:
        """Open the log; raises `WrongLog`, `LogCorrupt` or `RecordsUnavailable`."""
        await self._sequencer.open()
        self._writer = asyncio.create_task(self._write(), name="audit-log-writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits, refuse what comes, and end."""
        self._closing = True
        self._arrived.set()
        if self._writer is not None:
            await self._writer

    @property
    def fault(self) -> str:
        """Why the store must not be appended to (`LOG_CORRUPT`, `WRONG_LOG`), as long as that is so; else empty."""
        return self._halted or self._failed

    def halt(self, reason: str) -> None:
        """Refuse what comes, because somebody else found the store wrong; an empty `reason` takes that back."""
        self._halted = reason

    async def append(self, entry: Entry, *, within: float) -> Appended:
        """Append one entry; see `append_all`."""
        return (await self.append_all([entry], within=within))[0]

    async def append_all(self, entries: Sequence[Entry], *, within: float) -> tuple[Appended, ...]:
        """Append 1 to 256 entries, in order and together, and return once they are durable and signed.

        An entry whose (writer, record id) is in the log with the same content gives the first one's place again,
        so that callers can and MUST retry with the same record id. Raises `RecordConflict` where the content
        differs, `LogBusy` where the queue is full, `InvalidArgument`, or `AuditUnavailable` past `within`
        seconds or on any fault: then the entries may or may not be in the log. Cancelling the wait does not
        take them back.
        """
        if not 1 <= len(entries) <= MAX_GROUP:
            raise InvalidArgument("1 to 256 records at once", field="records")
        now = self.clock()
        appended = await self._submit(tuple(draft(entry, now) for entry in entries), within)
        return tuple(item for item in appended if item is not None)

    async def close_lease(self, entry: Entry, closes: int, *, within: float) -> Appended | None:
        """Append `entry` if the lease that entry `closes` opened still runs; return None if the call has ended.

        Raises as `append_all` does.
        """
        return (await self._submit((draft(entry, self.clock(), closes=closes),), within))[0]

    async def _submit(self, drafts: tuple[Draft, ...], within: float) -> tuple[Appended | None, ...]:
        if self._closing or self._writer is None or self._writer.done():
            raise AuditUnavailable("the log is not open")
        if self._halted:
            raise AuditUnavailable("the log is not the one that was published")
        size = sum(item.size for item in drafts)
        limits = self._limits
        if len(self._queue) >= limits.queued_groups or self._queued_bytes + size > limits.queued_bytes:
            raise LogBusy("the append queue is full", retry_after=1.0)
        waiting = _Waiting(drafts=drafts, size=size, done=asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._queued_bytes += size
        self._arrived.set()
        try:
            async with asyncio.timeout(within):
                placed, step = await waiting.done
                return tuple([await self._appended(index, step) for index in placed.indices])
        except (TimeoutError, RecordsUnavailable) as error:
            raise AuditUnavailable("the log did not acknowledge in time") from error

    async def _write(self) -> None:
        try:
            while self._queue or not self._closing:
                if not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                await self._write_batch(self._take())
        finally:
            self._closing = True
            while self._queue:
                _refuse(self._queue.popleft(), None)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        count = size = 0
        while self._queue:
            following = self._queue[0]
            count += len(following.drafts)
            size += following.size
            if batch and (count > self._limits.batch_entries or size > self._limits.batch_bytes):
                break
            batch.append(self._queue.popleft())
            self._queued_bytes -= following.size
        return batch

    async def _write_batch(self, batch: list[_Waiting]) -> None:
        try:
            step = await self._sequencer.commit([waiting.drafts for waiting in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, every waiter is told and the next batch starts afresh
            _logger.error("audit_batch_failed", entries=len(batch), error=type(error).__name__)
            self._failed = error.reason if isinstance(error, LogCorrupt) else ""
            for waiting in batch:
                _refuse(waiting, error)
            return
        except BaseException:
            for waiting in batch:
                _refuse(waiting, None)
            raise
        self._failed = ""
        self.grown.notify()
        for waiting, outcome in zip(batch, step.outcomes, strict=True):
            if waiting.done.done():
                continue
            if isinstance(outcome, Placed):
                waiting.done.set_result((outcome, step))
            else:
                refusal = RecordConflict("the record id means something else", record_id=outcome.record_id)
                waiting.done.set_exception(refusal)

    async def _appended(self, index: int | None, step: Step) -> Appended | None:
        if index is None:
            return None
        new = step.new.get(index)
        if new is None:
            record = await self.reader.get(index)
            return Appended(index=index, leaf=record.leaf, proof=await self.reader.prove(record))
        hashes = tuple(fold(step.reader, leaves) for leaves in inclusion_plan(index, step.head.size))
        proof = TlogProof(index=index, hashes=hashes, checkpoint=step.head.checkpoint)
        return Appended(index=index, leaf=new.leaf, proof=proof)


def _refuse(waiting: _Waiting, cause: BaseException | None) -> None:
    if waiting.done.done():
        return
    refusal = AuditUnavailable("the log could not record this")
    refusal.__cause__ = cause
    waiting.done.set_exception(refusal)

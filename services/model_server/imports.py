"""Import jobs: a state machine with a lease and a fencing epoch.

A runner holds the lease of the job that it works on; who loses it works on a ghost, which can neither report nor
publish any more. A version is published whole at the end or not at all.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.model_server.tables import import_events, import_jobs
from shared.errors import Aborted, AlreadyExists, Error, NotFound
from shared.records.store import Records

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
LEASE = dt.timedelta(seconds=15)
# A job that takes its server down with it must not do so for ever.
MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.2
_RENEW_SECONDS = LEASE.total_seconds() / 3

OPEN = Gauge("bastide_import_jobs", "Import jobs that have not ended, of all replicas, by state.", ["state"])
ENDED = Counter("bastide_import_jobs_ended_total", "Import jobs that ended in this process, by how.", ["state"])
# Shown from the start, or the first of a kind would be no increase.
_OPEN = {state: OPEN.labels(state.lower()) for state in (QUEUED, RUNNING)}
_ENDED = {state: ENDED.labels(state.lower()) for state in TERMINAL}

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """One import as it stands."""

    id: str
    position: int
    model: str
    source: str
    license: str
    description: str
    submitter: str
    state: str
    epoch: int
    cancelling: bool
    version: int | None
    failure_reason: str
    failure_message: str
    created_at: dt.datetime
    updated_at: dt.datetime
    event: Event | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step of a job."""

    number: int
    at: dt.datetime
    state: str
    stage: str
    done: int
    total: int
    unit: str


# Does the work of one job. It MUST call `succeed` in the transaction that publishes the version.
Work = Callable[[ImportJob, Callable[[str, int, int, str], Awaitable[None]]], Awaitable[None]]


class ImportJobs:
    """Keeps jobs, runs one at a time, and tells what happens."""

    def __init__(self, records: Records, work: Work, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep jobs in `records`; `work` gets the job and a coroutine that reports (stage, done, total, unit)."""
        self._records = records
        self._work = work
        self._clock = clock
        self._arrived = asyncio.Event()
        self._running: tuple[str, asyncio.Task[None]] | None = None

    async def create(
        self, *, model: str, source: str, license_id: str, description: str, submitter: str, request_id: str
    ) -> ImportJob:
        """Queue a job; the same submitter and request_id give the first job again.

        Raises AlreadyExists when they asked for something else.
        """
        job_id = str(uuid.uuid4())
        now = self._micros()
        try:
            async with self._records.write() as connection:
                newest = (await connection.execute(sa.select(sa.func.max(import_jobs.c.position)))).scalar()
                await connection.execute(
                    import_jobs.insert().values(
                        id=job_id,
                        position=int(newest or 0) + 1,
                        model=model,
                        source=source,
                        license=license_id,
                        description=description,
                        submitter=submitter,
                        request_id=request_id,
                        state=QUEUED,
                        epoch=0,
                        lease_expires=0,
                        cancelling=False,
                        failure_reason="",
                        failure_message="",
                        created_at=now,
                        updated_at=now,
                    )
                )
        except IntegrityError:
            query = sa.select(import_jobs).where(
                import_jobs.c.submitter == submitter, import_jobs.c.request_id == request_id
            )
            async with self._records.read() as connection:
                row = (await connection.execute(query)).first()
            if row is None:
                raise Aborted("another import was created at the same moment; ask again") from None
            if (row.model, row.source, row.license) != (model, source, license_id):
                raise AlreadyExists("this request_id made another import") from None
            return _job(row)
        self._arrived.set()
        return await self.get(job_id)

    async def get(self, job_id: str) -> ImportJob:
        """Return a job with its newest event. Raises NotFound."""
        async with self._records.read() as connection:
            row = (await connection.execute(sa.select(import_jobs).where(import_jobs.c.id == job_id))).first()
            query = sa.select(import_events).where(import_events.c.job == job_id)
            event = (await connection.execute(query.order_by(import_events.c.number.desc()).limit(1))).first()
        if row is None:
            raise NotFound("no such import job")
        return _job(row, None if event is None else _event(event))

    async def list(self, *, before: int, limit: int) -> list[ImportJob]:
        """Return up to `limit` jobs with positions below `before`, newest first."""
        query = (
            sa.select(import_jobs)
            .where(import_jobs.c.position < before)
            .order_by(import_jobs.c.position.desc())
            .limit(limit)
        )
        async with self._records.read() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def cancel(self, job_id: str) -> ImportJob:
        """Cancel a job that has not ended; one that has stays as it is. Raises NotFound.

        Another replica's runner learns of it when it next renews its lease: the job may still be running on return.
        """
        job = await self.get(job_id)
        if job.state == QUEUED:
            await self._move(job, CANCELLED)
        elif job.state == RUNNING:
            async with self._records.write() as connection:
                mine = import_jobs.c.id == job_id
                await connection.execute(import_jobs.update().where(mine).values(cancelling=True))
            if self._running is not None and self._running[0] == job_id:
                self._running[1].cancel()
                await asyncio.wait([self._running[1]], timeout=10)
        return await self.get(job_id)

    async def watch(self, job_id: str, *, from_event: int) -> AsyncIterator[Event]:
        """Yield events from `from_event` on, until the job has ended. Raises NotFound."""
        following = max(1, from_event)
        while True:
            job = await self.get(job_id)
            query = sa.select(import_events).where(import_events.c.job == job_id, import_events.c.number >= following)
            async with self._records.read() as connection:
                events = [_event(row) for row in await connection.execute(query.order_by(import_events.c.number))]
            for event in events:
                yield event
                following = event.number + 1
            if job.state in TERMINAL and not events:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def run(self) -> None:
        """Work on jobs for ever, oldest first, and take up what a runner that is gone has left."""
        while True:
            self._arrived.clear()
            await self._take_up()
            query = sa.select(import_jobs).where(import_jobs.c.state == QUEUED).order_by(import_jobs.c.position)
            async with self._records.read() as connection:
                row = (await connection.execute(query.limit(1))).first()
                await _count(connection)
            if row is not None:
                await self._perform(_job(row))
                continue
            try:
                async with asyncio.timeout(_RENEW_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                continue  # another replica may have queued or lost one

    async def _take_up(self) -> None:
        lapsed = import_jobs.c.lease_expires <= self._micros()
        async with self._records.read() as connection:
            rows = await connection.execute(sa.select(import_jobs).where(import_jobs.c.state == RUNNING, lapsed))
            left = [_job(row) for row in rows]
        for job in left:
            log.warning("import_lease_lapsed", job=job.id, epoch=job.epoch)
            if job.epoch < MAX_ATTEMPTS:
                await self._move(job, QUEUED)
            else:
                message = f"the server ended {job.epoch} times while it worked on this"
                await self._move(job, FAILED, reason="INTERRUPTED", message=message)

    async def _perform(self, queued: ImportJob) -> None:
        if not await self._move(queued, RUNNING):
            return
        job = await self.get(queued.id)

        async def report(stage: str, done: int, total: int, unit: str) -> None:
            async with self._records.write() as connection:
                await _fence(connection, job)
                now = self._micros()
                await _tell(connection, job.id, RUNNING, now, stage=stage, done=done, total=total, unit=unit)

        task: asyncio.Task[None] = asyncio.ensure_future(self._work(job, report))
        keeping = asyncio.create_task(self._keep(job, task))
        self._running = (job.id, task)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
            await self._move(job, CANCELLED)
        except Error as error:
            await self._move(job, FAILED, reason=error.reason, message=error.message)
        # Met here or the job would be tried again as if its server had died; a panic in a library's Rust is no
        # Exception.
        except BaseException as error:  # noqa: BLE001
            error_id = str(uuid.uuid4())
            log.error("import_broken", job=job.id, error_id=error_id, error=error)
            await self._move(job, FAILED, reason=Error.reason, message=f"internal error {error_id}")
        finally:
            self._running = None
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        # Asked of the store: a lease ends with its job, and who renews it may have cancelled the task's last step.
        ended = await self.get(job.id)
        if (ended.state, ended.epoch) == (SUCCEEDED, job.epoch):
            _ENDED[SUCCEEDED].inc()

    async def _keep(self, job: ImportJob, task: asyncio.Task[None]) -> None:
        """Renew the lease until `task` ends; cancel it when the lease is lost or somebody cancels the job."""
        try:
            while True:
                if await self._renew(job):
                    break
                await asyncio.sleep(_RENEW_SECONDS)
        except Error as error:
            log.error("import_lease_lost", job=job.id, reason=error.reason)
        task.cancel()

    async def _renew(self, job: ImportJob) -> bool:
        """Hold the lease for its whole term again; return whether the job is to be cancelled. Raises Aborted."""
        async with self._records.write() as connection:
            await _fence(connection, job)
            values = {"lease_expires": self._micros() + LEASE // dt.timedelta(microseconds=1)}
            await connection.execute(import_jobs.update().where(import_jobs.c.id == job.id).values(values))
            await _count(connection)
            query = sa.select(import_jobs.c.cancelling).where(import_jobs.c.id == job.id)
            return bool((await connection.execute(query)).scalar())

    async def _move(self, job: ImportJob, state: str, *, reason: str = "", message: str = "") -> bool:
        """Change the state if nobody else did since `job` was read. A claim opens an epoch and takes the lease."""
        claim = state == RUNNING
        async with self._records.write() as connection:
            moved = await connection.execute(
                import_jobs.update()
                .where(import_jobs.c.id == job.id, import_jobs.c.state == job.state, import_jobs.c.epoch == job.epoch)
                .values(
                    state=state,
                    epoch=job.epoch + claim,
                    lease_expires=self._micros() + LEASE // dt.timedelta(microseconds=1) if claim else 0,
                    failure_reason=reason,
                    failure_message=message[:512],
                    updated_at=self._micros(),
                )
            )
            if moved.rowcount == 1:
                await _tell(connection, job.id, state, self._micros())
        if moved.rowcount == 1 and state in TERMINAL:
            _ENDED[state].inc()
        return moved.rowcount == 1

    def _micros(self) -> int:
        return _micros(self._clock())


async def succeed(connection: AsyncConnection, *, job: ImportJob, version: int, now: dt.datetime) -> None:
    """End `job` well, in the transaction that publishes its version. Raises Aborted for a ghost of it."""
    ended = await connection.execute(
        import_jobs.update().where(*_ours(job)).values(state=SUCCEEDED, version=version, updated_at=_micros(now))
    )
    if ended.rowcount != 1:
        raise _lost()
    await _tell(connection, job.id, SUCCEEDED, _micros(now))


async def _fence(connection: AsyncConnection, job: ImportJob) -> None:
    query = sa.select(import_jobs.c.id).where(*_ours(job))
    if (await connection.execute(query.with_for_update())).first() is None:
        raise _lost()


def _ours(job: ImportJob) -> tuple[sa.ColumnElement[bool], ...]:
    return import_jobs.c.id == job.id, import_jobs.c.state == RUNNING, import_jobs.c.epoch == job.epoch


def _lost() -> Aborted:
    return Aborted("the job is no longer this runner's")


async def _count(connection: AsyncConnection) -> None:
    query = sa.select(import_jobs.c.state, sa.func.count().label("jobs")).where(
        import_jobs.c.state.in_((QUEUED, RUNNING))
    )
    found = {row.state: row.jobs for row in await connection.execute(query.group_by(import_jobs.c.state))}
    for state, jobs in _OPEN.items():
        jobs.set(found.get(state, 0))


async def _tell(
    connection: AsyncConnection,
    job_id: str,
    state: str,
    now: int,
    *,
    stage: str = "",
    done: int = 0,
    total: int = 0,
    unit: str = "",
) -> None:
    query = sa.select(sa.func.max(import_events.c.number)).where(import_events.c.job == job_id)
    number = int((await connection.execute(query)).scalar() or 0) + 1
    await connection.execute(
        import_events.insert().values(
            job=job_id, number=number, at=now, state=state, stage=stage, done=done, total=total, unit=unit
        )
    )


def _micros(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _moment(micros: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(micros / 1_000_000, dt.UTC)


def _job(row: Any, event: Event | None = None) -> ImportJob:
    return ImportJob(
        id=row.id,
        position=row.position,
        model=row.model,
        source=row.source,
        license=row.license,
        description=row.description,
        submitter=row.submitter,
        state=row.state,
        epoch=row.epoch,
        cancelling=row.cancelling,
        version=row.version,
        failure_reason=row.failure_reason,
        failure_message=row.failure_message,
        created_at=_moment(row.created_at),
        updated_at=_moment(row.updated_at),
        event=event,
    )


def _event(row: Any) -> Event:
    return Event(
        number=row.number,
        at=_moment(row.at),
        state=row.state,
        stage=row.stage,
        done=row.done,
        total=row.total,
        unit=row.unit,
    )

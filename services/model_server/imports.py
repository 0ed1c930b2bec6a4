"""Import jobs: a state machine with events; a version is published whole at the end or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from services.model_server.tables import import_events, import_jobs
from shared.errors import Error, NotFound
from shared.records.store import Records

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
_POLL_SECONDS = 0.2


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


# Does the work of one job and returns the number of the version it published.
Work = Callable[[ImportJob, Callable[[str, int, int, str], Awaitable[None]]], Awaitable[int]]


class ImportJobs:
    """Keeps jobs, runs one at a time, and tells what happens."""

    def __init__(self, records: Records, work: Work, *, clock: Callable[[], dt.datetime]) -> None:
        """Keep jobs in `records`; `work` gets the job and a coroutine that reports (stage, done, total, unit)."""
        self._records = records
        self._work = work
        self._clock = clock
        self._arrived = asyncio.Event()
        self._running: tuple[str, asyncio.Task[int]] | None = None

    async def create(
        self, *, model: str, source: str, license_id: str, description: str, submitter: str, request_id: str
    ) -> ImportJob:
        """Queue a job; the same submitter and request_id give the first job again."""
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
                row = (await connection.execute(query)).one()
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
        """Cancel a job that has not ended; one that has stays as it is. Raises NotFound."""
        job = await self.get(job_id)
        if job.state == QUEUED:
            await self._move(job, CANCELLED, expected=QUEUED)
        elif self._running is not None and self._running[0] == job_id:
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
        """Work on jobs for ever, oldest first. What a former process left RUNNING has failed: say so first."""
        async with self._records.read() as connection:
            rows = await connection.execute(sa.select(import_jobs).where(import_jobs.c.state == RUNNING))
            left = [_job(row) for row in rows]
        for job in left:
            await self._move(
                job,
                FAILED,
                expected=RUNNING,
                reason="INTERRUPTED",
                message="the server ended while it worked; start the import again",
            )
        while True:
            self._arrived.clear()
            query = sa.select(import_jobs).where(import_jobs.c.state == QUEUED).order_by(import_jobs.c.position)
            async with self._records.read() as connection:
                row = (await connection.execute(query.limit(1))).first()
            if row is None:
                await self._arrived.wait()
                continue
            await self._perform(_job(row))

    async def _perform(self, job: ImportJob) -> None:
        if not await self._move(job, RUNNING, expected=QUEUED):
            return

        async def report(stage: str, done: int, total: int, unit: str) -> None:
            await self._tell(job.id, RUNNING, stage=stage, done=done, total=total, unit=unit)

        task: asyncio.Task[int] = asyncio.ensure_future(self._work(job, report))
        self._running = (job.id, task)
        try:
            version = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
            await self._move(job, CANCELLED, expected=RUNNING)
        except Error as error:
            await self._move(job, FAILED, expected=RUNNING, reason=error.reason, message=error.message)
        else:
            await self._move(job, SUCCEEDED, expected=RUNNING, version=version)
        finally:
            self._running = None

    async def _move(
        self,
        job: ImportJob,
        state: str,
        *,
        expected: str,
        version: int | None = None,
        reason: str = "",
        message: str = "",
    ) -> bool:
        async with self._records.write() as connection:
            moved = await connection.execute(
                import_jobs.update()
                .where(import_jobs.c.id == job.id, import_jobs.c.state == expected)
                .values(
                    state=state,
                    epoch=import_jobs.c.epoch + 1,
                    version=version,
                    failure_reason=reason,
                    failure_message=message[:512],
                    updated_at=self._micros(),
                )
            )
        if moved.rowcount == 1:
            await self._tell(job.id, state)
        return moved.rowcount == 1

    async def _tell(
        self, job_id: str, state: str, *, stage: str = "", done: int = 0, total: int = 0, unit: str = ""
    ) -> None:
        async with self._records.write() as connection:
            query = sa.select(sa.func.max(import_events.c.number)).where(import_events.c.job == job_id)
            number = int((await connection.execute(query)).scalar() or 0) + 1
            await connection.execute(
                import_events.insert().values(
                    job=job_id,
                    number=number,
                    at=self._micros(),
                    state=state,
                    stage=stage,
                    done=done,
                    total=total,
                    unit=unit,
                )
            )

    def _micros(self) -> int:
        return int(self._clock().timestamp() * 1_000_000)


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

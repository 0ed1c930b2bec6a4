"""Import jobs: leases, epochs, and one publication whatever becomes of their runners."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog

from services.model_server import imports
from services.model_server.catalog import Catalog
from services.model_server.imports import (
    CANCELLED,
    FAILED,
    LEASE,
    MAX_ATTEMPTS,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    ImportJob,
    ImportJobs,
    succeed,
)
from shared.errors import Aborted, FailedPrecondition, NotFound
from shared.records.store import Records
from tests.metrics import scraped
from tests.unit.model_server.catalog.conftest import EVIDENCE, Clock, manifest

Report = Callable[[str, int, int, str], Awaitable[None]]
PAST_LEASE = LEASE.total_seconds() + 1


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_RENEW_SECONDS", 0.02)
    monkeypatch.setattr(imports, "_POLL_SECONDS", 0.01)


class Worker:
    """The work of jobs, which waits where a test says so, then publishes."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.attempts = 0
        self.fails: BaseException | None = None

    async def __call__(self, job: ImportJob, report: Report) -> None:
        self.attempts += 1
        await report("convert", 1, 2, "bytes")
        self.begun.set()
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        await self.publish(job)

    async def publish(self, job: ImportJob) -> None:
        number = await self._catalog.next_number(job.model)
        await self._catalog.publish(
            manifest(number, job.model),
            EVIDENCE,
            submitter=job.submitter,
            description=job.description,
            together_with=functools.partial(succeed, job=job, version=number, now=self._clock()),
        )


@pytest.fixture
def worker(catalog: Catalog, clock: Clock) -> Worker:
    return Worker(catalog, clock)


@pytest.fixture
def jobs(records: Records, worker: Worker, clock: Clock) -> ImportJobs:
    return ImportJobs(records, worker, clock=clock)


async def queued(jobs: ImportJobs, request_id: str = "r") -> ImportJob:
    return await jobs.create(
        model="m", source="package:x", license_id="MIT", description="", submitter="mia", request_id=request_id
    )


@contextlib.asynccontextmanager
async def running(jobs: ImportJobs) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(jobs.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(jobs: ImportJobs, job: ImportJob) -> ImportJob:
    async with asyncio.timeout(10):
        async for _ in jobs.watch(job.id, from_event=1):
            pass
    return await jobs.get(job.id)


async def test_a_job_runs_reports_and_publishes(jobs: ImportJobs, catalog: Catalog) -> None:
    job = await queued(jobs)
    assert (job.state, job.epoch) == (QUEUED, 0)
    async with running(jobs):
        done = await ended(jobs, job)
    assert (done.state, done.version, done.epoch) == (SUCCEEDED, 1, 1)
    events = [event async for event in jobs.watch(job.id, from_event=1)]
    assert [(event.number, event.state, event.stage) for event in events] == [
        (1, RUNNING, ""),
        (2, RUNNING, "convert"),
        (3, SUCCEEDED, ""),
    ]
    assert [event.number async for event in jobs.watch(job.id, from_event=3)] == [3]
    assert (await catalog.version("models/m/versions/1")).submitter == "mia"


async def test_a_repeated_request_gives_the_first_job_again(jobs: ImportJobs) -> None:
    job = await queued(jobs, "a")
    assert (await queued(jobs, "a")).id == job.id
    assert (await queued(jobs, "b")).id != job.id
    assert len(await jobs.list(before=99, limit=9)) == 2


async def test_a_failure_is_told_with_its_reason(jobs: ImportJobs, worker: Worker, catalog: Catalog) -> None:
    worker.fails = FailedPrecondition("no such file")
    job = await queued(jobs)
    async with running(jobs):
        done = await ended(jobs, job)
    assert (done.state, done.failure_message, done.version) == (FAILED, "no such file", None)
    with pytest.raises(NotFound):
        await catalog.model("m")


class Panic(BaseException):
    """What pyo3 raises where a library written in Rust panics: no `Exception`."""


@pytest.mark.parametrize("fault", [PermissionError("/srv/secret"), TimeoutError(), Panic("secret")])
async def test_what_nobody_foresaw_ends_the_job_at_once_and_the_next_one_runs(
    jobs: ImportJobs, worker: Worker, fault: BaseException
) -> None:
    worker.fails = fault
    job = await queued(jobs, "broken")
    with structlog.testing.capture_logs() as logs:
        async with running(jobs):
            done = await ended(jobs, job)
            worker.fails = None
            assert (await ended(jobs, await queued(jobs, "next"))).state == SUCCEEDED
    assert (done.state, done.failure_reason, done.epoch) == (FAILED, "INTERNAL", 1)
    (logged,) = [entry for entry in logs if entry["event"] == "import_broken"]
    assert done.failure_message == f"internal error {logged['error_id']}"


async def test_a_queued_job_is_cancelled_at_once_and_a_running_one_is_stopped(
    jobs: ImportJobs, worker: Worker, catalog: Catalog
) -> None:
    waiting = await queued(jobs, "waiting")
    assert (await jobs.cancel(waiting.id)).state == CANCELLED
    worker.go.clear()
    job = await queued(jobs, "running")
    async with running(jobs):
        await worker.begun.wait()
        await jobs.cancel(job.id)
        assert (await ended(jobs, job)).state == CANCELLED
    assert (await jobs.cancel(job.id)).state == CANCELLED
    with pytest.raises(NotFound):
        await catalog.model("m")


async def test_another_replica_can_cancel(jobs: ImportJobs, worker: Worker, database: str, clock: Clock) -> None:
    worker.go.clear()
    job = await queued(jobs)
    async with running(jobs), Records(database) as records:
        await worker.begun.wait()
        await ImportJobs(records, worker, clock=clock).cancel(job.id)
        assert (await ended(jobs, job)).state == CANCELLED


async def test_a_running_job_is_left_to_its_runner_while_the_lease_is_renewed(
    jobs: ImportJobs, worker: Worker, database: str, clock: Clock
) -> None:
    worker.go.clear()
    job = await queued(jobs)
    async with running(jobs), Records(database) as records:
        await worker.begun.wait()
        other = ImportJobs(records, worker, clock=clock)
        async with running(other):
            for _ in range(5):
                clock.advance(LEASE.total_seconds() / 2)
                await asyncio.sleep(0.1)
            assert (await jobs.get(job.id)).epoch == 1
            worker.go.set()
            assert (await ended(jobs, job)).state == SUCCEEDED
    assert worker.attempts == 1


async def test_what_a_dead_runner_left_is_done_again_by_the_next(
    jobs: ImportJobs, worker: Worker, clock: Clock, catalog: Catalog
) -> None:
    worker.go.clear()
    job = await queued(jobs)
    async with running(jobs) as runner:
        await worker.begun.wait()
        runner.cancel()
    assert (await jobs.get(job.id)).state == RUNNING
    worker.go.set()
    clock.advance(PAST_LEASE)
    async with running(jobs):
        done = await ended(jobs, job)
    assert (done.state, done.version, done.epoch) == (SUCCEEDED, 1, 2)
    assert len(await catalog.versions("m", before=9, limit=9)) == 1


async def test_a_ghost_can_neither_report_nor_publish(
    jobs: ImportJobs, worker: Worker, clock: Clock, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "_RENEW_SECONDS", 60)
    worker.go.clear()
    job = await queued(jobs)
    async with running(jobs) as runner:
        await worker.begun.wait()
        ghost = await jobs.get(job.id)
        runner.cancel()
    clock.advance(PAST_LEASE)
    await jobs._take_up()
    with pytest.raises(Aborted):
        await worker.publish(ghost)
    with pytest.raises(Aborted):
        await jobs._renew(ghost)
    with pytest.raises(NotFound):
        await catalog.model("m")


async def test_a_job_that_takes_its_server_down_each_time_ends(jobs: ImportJobs, worker: Worker, clock: Clock) -> None:
    worker.go.clear()
    job = await queued(jobs)
    for _ in range(MAX_ATTEMPTS):
        worker.begun.clear()
        async with running(jobs) as runner:
            await worker.begun.wait()
            runner.cancel()
        clock.advance(PAST_LEASE)
    async with running(jobs):
        done = await ended(jobs, job)
    assert (done.state, done.failure_reason, worker.attempts) == (FAILED, "INTERRUPTED", MAX_ATTEMPTS)


def shown(name: str, *states: str) -> tuple[float, ...]:
    return tuple(scraped(name, state=state) for state in states)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_jobs_are_shown_by_state(jobs: ImportJobs, worker: Worker) -> None:
    def ends() -> tuple[float, ...]:
        return shown("bastide_import_jobs_ended_total", "succeeded", "failed", "cancelled")

    def unended() -> tuple[float, ...]:
        return shown("bastide_import_jobs", "queued", "running")

    succeeded, failed, cancelled = ends()
    worker.go.clear()
    for number in range(3):
        last = await queued(jobs, f"r{number}")
    async with running(jobs):
        await until(lambda: unended() == (2, 1))
        await jobs.cancel(last.id)
        worker.go.set()
        await until(lambda: unended() == (0, 0) and ends() == (succeeded + 2, failed, cancelled + 1))
        worker.fails = FailedPrecondition("no")
        await queued(jobs, "r3")
        await until(lambda: ends() == (succeeded + 2, failed + 1, cancelled + 1))

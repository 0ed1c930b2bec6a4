"""Real processes, killed and stopped in mid-stream as an operating system would: what the fakes' faults stand for."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator

import grpc
import psutil
import pytest
import pytest_asyncio

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc
from bastide.types.v1 import job_pb2
from services.model_server.inference import LEASE_MARGIN_SECONDS
from tests import signals
from tests.fakes import remote_model
from tests.fakes.tiny_model import build_tiny_model
from tests.integration.stage import DISCLOSURE, GENERATION_SECONDS, Outcome, Stage, question, until
from tests.suite import ProcessSuite

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("processes"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

FIRST, LAST = "Paris is the capital of France, as everyone knows. ", "It has been so for LONG."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Three processes, and a remote model in this one."""
    stage = Stage(tmp_path_factory.mktemp("processes"))
    build_tiny_model(stage.folder / "models" / "tiny")
    async with stage.remote.running():
        stage.suite = ProcessSuite(stage.folder / "home", overrides=stage.overrides())
        try:
            await stage.suite.start()
            await stage.cast()
            yield stage
        finally:
            await stage.suite.close()


async def in_mid_stream(stage: Stage, gate: asyncio.Event) -> asyncio.Task[Outcome]:
    """Return a call that has released its first text and waits at `gate`."""
    said = (remote_model.chunk(FIRST), gate, remote_model.chunk(LAST), *remote_model.GOOD[-3:])
    stage.remote.events = said
    heard: list[str] = []
    asking = asyncio.create_task(stage.ask("stream", question(model="remote"), on_text=heard.append))
    await until(lambda: heard and "Paris" in heard[-1], "the first text is out")
    return asking


async def well_again(stage: Stage) -> None:
    stage.remote.events = remote_model.GOOD
    await stage.well(question(model="remote"))


async def test_no_process_may_dump_core(stage: Stage) -> None:
    assert isinstance(stage.suite, ProcessSuite)
    for process in stage.suite.processes.values():
        for pid in (process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))):
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (1, 1)


@pytest.mark.parametrize("service", ["policy-guard", "audit"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_process_is_lost_in_mid_stream(stage: Stage, service: str, number: signal.Signals) -> None:
    assert isinstance(stage.suite, ProcessSuite)
    gate = asyncio.Event()
    asking = await in_mid_stream(stage, gate)
    if number is signal.SIGKILL:
        stage.suite.kill(service)
    else:
        signals.send(stage.suite.processes[service].pid, number)
    gate.set()
    outcome = await asking
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert outcome.end is None
    if service == "audit":
        assert outcome.reason == "AUDIT_UNAVAILABLE"
        assert outcome.text == DISCLOSURE + FIRST + LAST
        assert len(stage.outbox) == 1
    else:
        assert outcome.reason == "GUARD_UNAVAILABLE"
        assert "LONG" not in outcome.text
    if number is signal.SIGKILL:
        await stage.suite.start(service)
    else:
        stage.suite.processes[service].send_signal(signal.SIGCONT)
    await well_again(stage)
    await stage.recorded(outcome.call_id, "AUTHORISED", "COMPLETED" if service == "audit" else "CUT")


async def test_killed_model_server_leaves_an_interrupted_call(stage: Stage) -> None:
    assert isinstance(stage.suite, ProcessSuite)
    gate = asyncio.Event()
    asking = await in_mid_stream(stage, gate)
    stage.suite.kill("model-server")
    outcome = await asking
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert "LONG" not in outcome.text
    assert await stage.kinds(outcome.call_id) == ["AUTHORISED"]
    await stage.suite.start("model-server")
    await well_again(stage)
    lapsed = GENERATION_SECONDS + LEASE_MARGIN_SECONDS
    await stage.recorded(outcome.call_id, "AUTHORISED", "INTERRUPTED", seconds=lapsed + 30)


def catalog(stage: Stage) -> catalog_pb2_grpc.CatalogServiceAsyncStub:
    return catalog_pb2_grpc.CatalogServiceStub(stage.suite.channel("model-server"))


async def versions(stage: Stage) -> list[str]:
    answer = await catalog(stage).ListModelVersions(
        catalog_pb2.ListModelVersionsRequest(parent="models/tiny"), metadata=stage.manager.metadata, timeout=10
    )
    return sorted(version.name for version in answer.versions)


@pytest.mark.parametrize("stage_reached", ["", "convert", "encrypt", "publish"])
async def test_killed_during_an_import_it_is_done_again_and_published_once(stage: Stage, stage_reached: str) -> None:
    assert isinstance(stage.suite, ProcessSuite)
    before = await versions(stage)
    request = catalog_pb2.CreateImportJobRequest(
        model_id="tiny", source="directory:tiny", license="Apache-2.0", request_id=f"kill-{stage_reached}"
    )
    metadata = stage.manager.metadata
    job = (await catalog(stage).CreateImportJob(request, metadata=metadata, timeout=10)).job
    watching = catalog(stage).WatchImportJob(
        catalog_pb2.WatchImportJobRequest(name=job.name), metadata=metadata, timeout=60
    )
    async for answer in watching:
        if answer.event.progress.stage == stage_reached or answer.event.state > job_pb2.JOB_STATE_CANCELLING:
            break
    stage.suite.kill("model-server")
    await stage.suite.start("model-server")
    # Asked again with the same request id, it is the same job, which ends by itself.
    assert (await catalog(stage).CreateImportJob(request, metadata=metadata, timeout=10)).job.name == job.name
    async for _ in catalog(stage).WatchImportJob(
        catalog_pb2.WatchImportJobRequest(name=job.name), metadata=metadata, timeout=120
    ):
        pass
    done = (
        await catalog(stage).GetImportJob(catalog_pb2.GetImportJobRequest(name=job.name), metadata=metadata, timeout=10)
    ).job
    after = await versions(stage)
    assert len(after) == len(before) + 1
    assert done.version == after[-1]
    await stage.suite.release(stage.approver, done.version)
    await stage.well(question(model="tiny"))


@pytest.mark.parametrize("milliseconds", [0, 5, 20, 60, 200])
async def test_killed_during_a_release_it_is_there_whole_or_not_at_all(stage: Stage, milliseconds: int) -> None:
    assert isinstance(stage.suite, ProcessSuite)
    newest = (await versions(stage))[-1]
    parent = catalog_pb2.GetReleaseRequest(parent="models/tiny")
    before = (await catalog(stage).GetRelease(parent, metadata=stage.manager.metadata, timeout=10)).release
    request = catalog_pb2.CreateReleaseRequest(
        parent="models/tiny",
        arms=[catalog_pb2.ReleaseArm(version=newest, weight=100)],
        request_id=f"kill-{milliseconds}",
    )
    releasing = asyncio.ensure_future(
        catalog(stage).CreateRelease(request, metadata=stage.approver.metadata, timeout=30)
    )
    await asyncio.sleep(milliseconds / 1000)
    acknowledged = releasing.done()
    stage.suite.kill("model-server")
    await asyncio.gather(releasing, return_exceptions=True)
    await stage.suite.start("model-server")
    after = (await catalog(stage).GetRelease(parent, metadata=stage.manager.metadata, timeout=10)).release
    assert after.generation in (before.generation, before.generation + 1)
    assert after.generation == before.generation + 1 or not acknowledged
    assert [arm.weight for arm in after.arms] == [100]
    again = await catalog(stage).CreateRelease(request, metadata=stage.approver.metadata, timeout=30)
    assert again.release.generation == before.generation + 1
    await stage.well(question(model="tiny"))

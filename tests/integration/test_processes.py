"""Real processes, killed and stopped in mid-stream as an operating system would: what the fakes' faults stand for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

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

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator

import pytest

from shared import errors
from shared.child import ChildFailed, ChildUnavailable
from shared.child.supervisor import Restart
from shared.child.worker import Limits, Worker

TARGET = "tests.unit.shared.child.targets:scripted"


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def pid_of(worker: Worker) -> int:
    return int(await worker.call(b"pid", deadline=soon()))


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    limits = Limits(max_request_bytes=1024, max_reply_bytes=1024, memory_bytes=1 << 30)
    async with Worker(TARGET, setup=b"<setup>", limits=limits) as running:
        yield running


async def test_setup_and_request_reach_the_handler_and_prints_stay_out_of_the_reply(worker: Worker) -> None:
    assert await worker.call(b"echo hello", deadline=soon()) == b"<setup>hello"
    assert await worker.call(b"echo again", deadline=soon()) == b"<setup>again"


async def test_concurrent_calls_each_get_their_own_reply(worker: Worker) -> None:
    replies = await asyncio.gather(*(worker.call(b"echo %d" % n, deadline=soon()) for n in range(50)))
    assert replies == [b"<setup>%d" % n for n in range(50)]


@pytest.mark.parametrize("command", [b"hang", b"spin"])
async def test_a_hung_child_ends_in_an_error_is_killed_and_replaced(worker: Worker, command: bytes) -> None:
    first = await pid_of(worker)
    with pytest.raises(ChildUnavailable):
        await worker.call(command, deadline=soon(0.2))
    assert await pid_of(worker) != first
    assert not alive(first)


@pytest.mark.parametrize("command", [b"die", b"exit"])
async def test_a_crashed_child_ends_in_an_error_at_once_and_is_replaced(worker: Worker, command: bytes) -> None:
    first = await pid_of(worker)
    with pytest.raises(ChildUnavailable):
        await worker.call(command, deadline=soon(3600))
    assert await pid_of(worker) != first
    assert not alive(first)


async def test_a_child_killed_between_calls_is_replaced(worker: Worker) -> None:
    first = await pid_of(worker)
    os.kill(first, signal.SIGKILL)
    second = first
    while second == first:
        try:
            second = await pid_of(worker)
        except ChildUnavailable:
            continue
    assert not alive(first)


async def test_a_handler_that_raises_fails_that_call_only_and_its_text_stays_inside(worker: Worker) -> None:
    first = await pid_of(worker)
    with pytest.raises(ChildFailed) as caught:
        await worker.call(b"raise a secret", deadline=soon())
    assert "secret" not in str(caught.value)
    assert await pid_of(worker) == first


async def test_requests_and_replies_over_the_limit_are_refused(worker: Worker) -> None:
    with pytest.raises(errors.MessageTooLarge):
        await worker.call(b"echo " + b"x" * 1024, deadline=soon())
    assert len(await worker.call(b"large 1024", deadline=soon())) == 1024
    with pytest.raises(ChildUnavailable):
        await worker.call(b"large 1025", deadline=soon())


async def test_memory_over_the_limit_fails_the_call(worker: Worker) -> None:
    with pytest.raises((ChildFailed, ChildUnavailable)):
        await worker.call(b"allocate %d" % (2 << 30), deadline=soon())


async def test_the_child_sees_none_of_the_parents_environment(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASTIDE_SECRET", "x")
    async with Worker(TARGET) as other:
        names = (await other.call(b"environment", deadline=soon())).decode().split()
    assert set(names) <= {"PYTHONPATH", "LC_ALL"}


async def test_a_cancelled_caller_costs_no_restart(worker: Worker) -> None:
    first = await pid_of(worker)
    call = asyncio.create_task(worker.call(b"echo lost", deadline=soon()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await worker.call(b"echo next", deadline=soon()) == b"<setup>next"
    assert await pid_of(worker) == first


async def test_waiting_for_a_busy_child_counts_against_the_deadline_and_spares_the_child(
    worker: Worker,
) -> None:
    first = await pid_of(worker)
    busy = asyncio.create_task(worker.call(b"hang", deadline=soon(1.0)))
    await asyncio.sleep(0)
    with pytest.raises(ChildUnavailable):
        await worker.call(b"pid", deadline=soon(0.1))
    assert not busy.done()
    assert alive(first)
    with pytest.raises(ChildUnavailable):
        await busy


@pytest.mark.parametrize(("target", "setup"), [(TARGET, b"refuse"), ("no.such.module:main", b"")])
async def test_a_child_that_cannot_start_is_an_error_of_start(target: str, setup: bytes) -> None:
    worker = Worker(target, setup=setup)
    with pytest.raises(ChildUnavailable):
        await worker.start()
    with pytest.raises(ChildUnavailable):
        await worker.call(b"pid", deadline=soon())
    await worker.close()


async def test_close_reaps_the_child_and_ends_calls_under_way() -> None:
    worker = Worker(TARGET)
    await worker.start()
    pid = await pid_of(worker)
    call = asyncio.create_task(worker.call(b"hang", deadline=soon(3600)))
    await asyncio.sleep(0)
    await worker.close()
    with pytest.raises(ChildUnavailable):
        await call
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    with pytest.raises(ChildUnavailable):
        await worker.call(b"pid", deadline=soon())


def test_a_hung_child_does_not_outlive_a_killed_parent() -> None:
    program = textwrap.dedent(
        """
        import asyncio
        from shared.child.worker import Worker

        async def main():
            async with Worker("tests.unit.shared.child.targets:scripted") as worker:
                deadline = asyncio.get_running_loop().time() + 3600
                print(int(await worker.call(b"pid", deadline=deadline)), flush=True)
                await worker.call(b"spin", deadline=deadline)

        asyncio.run(main())
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = os.pidfd_open(pid)
        parent.kill()
    readable, _, _ = select.select([child], [], [], 20)
    os.close(child)
    assert readable


def test_restarts_back_off_up_to_a_bound() -> None:
    restart = Restart(first_delay=0.05, max_delay=1.0)
    assert [restart.delay(n) for n in (1, 2, 3, 4)] == [0.0, 0.05, 0.1, 0.2]
    assert restart.delay(10_000) == 1.0

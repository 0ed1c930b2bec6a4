"""kill -9: what was acknowledged is there, whole, and the tree goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.audit.log import Log
from services.audit.publisher import Publisher
from services.audit.search import Filter
from shared.records.store import Records
from shared.transparency.checkpoint import verify_checkpoint
from shared.transparency.directory import verify_directory
from shared.transparency.merkle import verify_consistency
from shared.transparency.proof import TlogProof
from tests.unit.audit.conftest import SIGNER, Clock, entry


async def append_for_ever(url: str, directory: Path) -> None:
    """The victim: appends and publishes without end, and prints each acknowledgement."""
    async with Records(url, exclusive=True) as records, Log(records, SIGNER, clock=Clock()) as log:
        publisher = Publisher(records, log.reader, SIGNER.verifier, directory)

        async def append(lane: int) -> None:
            for n in range(1_000_000):
                appended = await log.append(entry(n, record_id=f"{lane}-{n}", data={"pad": "x" * 2000}), within=60)
                line = f"{lane}-{n} {appended.leaf.hex()} {appended.proof.encode().encode().hex()}\n"
                os.write(1, line.encode())

        async def publish() -> None:
            while True:
                await publisher.publish()

        await asyncio.gather(publish(), *(append(lane) for lane in range(16)))


@pytest.fixture
def killed(url: str, tmp_path: Path) -> list[str]:
    """The acknowledgements of a victim that was killed in the middle of its work, three times over."""
    lines: list[str] = []
    for after in (40, 333, 700):
        program = "import asyncio, sys; from pathlib import Path; from tests.unit.audit.test_crash import append_for_ever as f\nasyncio.run(f(sys.argv[1], Path(sys.argv[2])))"
        command = [sys.executable, "-c", program, url, str(tmp_path / "published")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            lines += [victim.stdout.readline().decode() for _ in range(after)]
            victim.send_signal(signal.SIGKILL)
            lines += [line for rest in victim.stdout if (line := rest.decode()).endswith("\n")]
        assert victim.returncode == -signal.SIGKILL
    return lines


@pytest.mark.slow
async def test_every_acknowledged_entry_survives_a_kill(killed: list[str], url: str, tmp_path: Path) -> None:
    assert len(killed) >= 1073
    async with Records(url) as records, Log(records, SIGNER, clock=Clock()) as log:
        head = verify_checkpoint((await log.reader.head()).checkpoint, SIGNER.verifier)
        consistent: set[int] = set()
        for line in killed:
            record_id, leaf, text = line.split()
            proof = TlogProof.parse(bytes.fromhex(text).decode())
            old = proof.verify(bytes.fromhex(leaf), SIGNER.verifier)
            record = await log.reader.newest(Filter(writer="model_server", record_id=record_id))
            assert (record.index, record.leaf) == (proof.index, bytes.fromhex(leaf))
            if old.size not in consistent:
                consistent.add(old.size)
                steps = await log.reader.consistency(old.size, head.size)
                verify_consistency(old.size, old.root, head.size, head.root, steps)
        appended = await log.append(entry(1, record_id="after"), within=10)
        assert appended.index == head.size
        directory = tmp_path / "published"
        if (directory / "checkpoint").exists():
            verify_directory(directory, SIGNER.verifier.vkey)
        await Publisher(records, log.reader, SIGNER.verifier, directory).publish()
        assert verify_directory(directory, SIGNER.verifier.vkey).checkpoint.size == head.size + 1

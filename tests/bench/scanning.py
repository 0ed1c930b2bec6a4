"""How fast a text is scanned, beside pattern-only Presidio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

from shared.inspection.scanner import Scanner
from tests.bench.measure import Series, at_least, compare, show
from tests.bench.processes import ask, child

PROSE = (
    "The committee reviewed the annual budget in detail, and nobody complained about the travel costs of the "
    "department, which had been reduced by a third since the spring. "
)
SIZES = (500, 2048)
SCANS = 200
PEER = Path(__file__).parent / "presidio_peer.py"


async def scanning(runs: int) -> None:
    """Prose without findings, so that nothing but looking is measured."""
    scanner = Scanner()
    texts = {size: (PROSE * 20)[:size] for size in SIZES}
    ours = {size: Series(f"scan of {size} characters", "µs") for size in SIZES}
    theirs = {size: Series(f"peer: pattern-only Presidio, {size} characters", "µs") for size in SIZES}
    venv = os.environ.get("PRESIDIO_VENV")
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(child(f"{venv}/bin/python", str(PEER))) if venv else None
        for text in texts.values() if peer else ():
            await asyncio.to_thread(ask, peer, {"text": text, "scans": 5})
        for _ in range(runs):
            for size, text in texts.items():
                started = time.perf_counter()
                for _ in range(SCANS):
                    scanner.scan(text)
                ours[size].values.append((time.perf_counter() - started) / SCANS * 1e6)
                if peer is not None:
                    seconds = await asyncio.to_thread(ask, peer, {"text": text, "scans": 50})
                    theirs[size].values.append(seconds * 1e6)
    if peer is None:
        note = "the peer is not here: PRESIDIO_VENV names no venv with presidio-analyzer; no ratio"
        show("Scanning", list(ours.values()), [note])
        return
    faster = [compare(f"Presidio's time / ours, {size} characters", theirs[size], ours[size]) for size in SIZES]
    show("Scanning", [*ours.values(), *theirs.values(), *faster], [at_least(item, 1) for item in faster])

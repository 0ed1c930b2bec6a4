"""`make bench`: see README.md here for what the figures mean. Nothing is asserted about speed; everything ends."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from tests.bench.cancelling import cancelling
from tests.bench.decisions import appends, decisions
from tests.bench.generation import DISTRIBUTION, MODEL, generation
from tests.bench.guarded import guarded
from tests.bench.measure import OUT
from tests.bench.processes import canned
from tests.bench.scanning import scanning
from tests.bench.stage import stage

PARTS = ("scanning", "decisions", "guarded", "appends", "generation", "cancelling")


async def run(runs: int, parts: frozenset[str]) -> None:
    if "scanning" in parts:
        await scanning(runs)
    if parts & {"decisions", "guarded", "appends"}:
        await over_canned(runs, parts)
    if "decisions" in parts:
        await on_opa(runs)
    if parts & {"generation", "cancelling"}:
        await on_real_model(runs, parts)


async def over_canned(runs: int, parts: frozenset[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, canned() as (url, _):
        async with stage(Path(folder), remotes={"canned": url}) as running:
            await running.declare("canned")
            if "decisions" in parts:
                await decisions(running, runs, engine="embedded")
            if "guarded" in parts:
                await guarded(running, runs, url=url, folder=Path(folder))
            if "appends" in parts:
                await appends(running, runs)


async def on_opa(runs: int) -> None:
    if not os.environ.get("OPA_BIN"):
        OUT.print("opa is not installed (OPA_BIN): decisions were measured on the embedded engine only\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        async with stage(Path(folder), engine="opa", remotes={}) as running:
            await decisions(running, runs, engine="opa")


async def on_real_model(runs: int, parts: frozenset[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, canned(held=True) as (url, held):
        async with stage(Path(folder), remotes={"held": url}) as running:
            await running.load(f"package:{DISTRIBUTION}", model=MODEL)
            if "generation" in parts:
                await generation(running, runs)
            if "cancelling" in parts:
                await running.declare("held")
                await cancelling(running, runs, held=held)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds of all that is compared (default: 5)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this alone; may be repeated")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.runs, frozenset(arguments.only or PARTS)))


if __name__ == "__main__":
    main()

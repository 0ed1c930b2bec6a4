"""Timing and printing."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

OUT = Console(width=120, highlight=False)


@dataclass
class Series:
    """Values of one figure, one a run."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def row(self) -> tuple[str, str, str]:
        return self.name, f"{self.median:,.2f} {self.unit}", f"{min(self.values):,.2f} … {max(self.values):,.2f}"


def compare(name: str, ours: Series, peer: Series) -> Series:
    """Return ours / peer, run by run: what slows the machine down in one run slows both."""
    return Series(name, "×", [a / b for a, b in zip(ours.values, peer.values, strict=True)])


def added(name: str, through: Series, direct: Series) -> Series:
    """Return through - direct, run by run."""
    return Series(name, direct.unit, [a - b for a, b in zip(through.values, direct.values, strict=True)])


def at_least(series: Series, bound: float) -> str:
    """Return the aim that the median reaches `bound`, beside what was measured."""
    return _aim(series, "≥", bound, series.median >= bound)


def at_most(series: Series, bound: float) -> str:
    """Return the aim that the median stays within `bound`, beside what was measured."""
    return _aim(series, "≤", bound, series.median <= bound)


def _aim(series: Series, sign: str, bound: float, met: bool) -> str:
    figures = f"{series.name.strip()} {sign} {bound:,g} {series.unit}; measured {series.median:,.2f} {series.unit}"
    return f"aim: {figures}: {'met' if met else 'missed'}"


def show(title: str, series: list[Series], notes: list[str]) -> None:
    """Print one table: median and spread of each series, then aims and remarks."""
    table = Table("figure", "median", "min … max")
    for item in series:
        table.add_row(*item.row())
    OUT.print(f"[bold]{title}[/]")
    OUT.print(table)
    for note in notes:
        OUT.print(f"  {note}")
    OUT.print()


async def latencies(work: Callable[[], Awaitable[object]], *, calls: int, callers: int) -> tuple[list[float], float]:
    """Return the seconds of each of `calls` calls made by `callers` at once, and calls a second."""
    taken: list[float] = []
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = time.perf_counter()
            await work()
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken, len(taken) / (time.perf_counter() - started)

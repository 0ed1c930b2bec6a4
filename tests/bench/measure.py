"""Timing and printing."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

OUT = Console(width=110)


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


def show(title: str, series: list[Series], notes: list[str]) -> None:
    """Print one table: median and spread of each series, then ratios and remarks."""
    table = Table("figure", "median", "min … max", title=title, title_justify="left", title_style="bold")
    for item in series:
        table.add_row(*item.row())
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

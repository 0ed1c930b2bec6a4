"""How far the store is behind what was counted or asked for."""

from __future__ import annotations

import time

from prometheus_client import Gauge

LAG = Gauge(
    "bastide_budget_lag_seconds", "How long the oldest change of a budget has waited to be stored; 0: none waits."
)


class Lag:
    """Belongs to one kind of budgets, whose lag is what a scrape then shows."""

    def __init__(self) -> None:
        """Begin with nothing behind."""
        self._since: float | None = None
        LAG.set_function(self.seconds)

    def begin(self) -> None:
        """Take note of a change; only the oldest one counts."""
        if self._since is None:
            self._since = time.monotonic()

    def reach(self, since: float | None) -> None:
        """Take note that all is stored but what came after `since`, a time of `time.monotonic`; None: everything is."""
        self._since = since

    def seconds(self) -> float:
        """Return how long the oldest change has waited. May be called on any thread."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

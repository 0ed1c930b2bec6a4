"""What a scrape of this process shows, read from the exposition text."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families


def series(name: str) -> dict[frozenset[tuple[str, str]], float]:
    """Return the values of all series of `name` by their labels."""
    families = text_string_to_metric_families(generate_latest().decode())
    return {
        frozenset(sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def scraped(name: str, **labels: str) -> float:
    """Return the value of the one series of `name` that has exactly `labels`."""
    return series(name)[frozenset(labels.items())]

"""Tells what Deimos had a name for under that name too, whatever the provider."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from deimos_async.telemetry.names import METRICS, Alias
from deimos_async.telemetry.protocol import Metrics, Tags

__all__ = ["WithAliases"]

_ALIASES = {name: metric.alias for name, metric in METRICS.items() if metric.alias is not None}


class WithAliases:
    """Passes every call on, and those of metrics with an alias a second time under the alias, with Deimos's tags."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        self._metrics.increment(name, by=by, tags=tags)
        if (alias := _ALIASES.get(name)) is not None:
            self._metrics.increment(alias.name, by=by, tags=_translated(alias, tags or {}))

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._metrics.gauge(name, value, tags=tags)
        if (alias := _ALIASES.get(name)) is not None:
            self._metrics.gauge(alias.name, value, tags=_translated(alias, tags or {}))

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._metrics.histogram(name, value, tags=tags)
        if (alias := _ALIASES.get(name)) is not None:
            self._metrics.histogram(alias.name, value, tags=_translated(alias, tags or {}))

    @contextmanager
    def time(self, name: str, *, tags: Tags | None = None) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.histogram(name, time.perf_counter() - began, tags=tags)


def _translated(alias: Alias, tags: Tags) -> dict[str, str]:
    told = {theirs: tags[ours] for ours, theirs in alias.tags.items() if ours in tags}
    if alias.status is not None:
        told["status"] = "error" if "error.type" in tags else alias.status
    return told

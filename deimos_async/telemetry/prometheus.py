"""Prometheus: metrics in a registry of prometheus-client, to be fetched from `/metrics`.

Names are made as OpenTelemetry's exporter for Prometheus makes them: dots become underscores, durations end in
`_seconds`, counters in `_total`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deimos_async.errors import ConfigurationError
from deimos_async.telemetry.names import METRICS, SECONDS_BUCKETS, Kind, Metric
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.telemetry.protocol import Metrics, Tags, Tracing

if TYPE_CHECKING:  # optional library
    from prometheus_client import CollectorRegistry

__all__ = ["Prometheus"]

logger = logging.getLogger("deimos_async.telemetry")

_REFUSED = re.compile(r"[^a-zA-Z0-9_]")


class Prometheus:
    """Metrics for Prometheus, for `Deimos(metrics=Prometheus())`; needs the extra `prometheus`.

    `app.web()` and `run --web` show them at `/metrics`. Labels of a metric are the tags that docs/observability.md
    lists, empty where a call does not give one. Prometheus has no traces, and `tracing()` does nothing; with
    `Deimos(metrics=Prometheus())` tracing stays OpenTelemetry's.

    Args:
        registry: Where metrics are registered, e.g. `prometheus_client.REGISTRY` to show them beside those of the
            process and the program. None: a registry of its own. Two providers cannot share one under one prefix.
        prefix: Put before every name, e.g. `"shop_"`.

    Raises:
        ConfigurationError: prometheus-client is not installed, or the prefix cannot begin a name.
    """

    def __init__(self, registry: CollectorRegistry | None = None, prefix: str = "") -> None:
        try:
            import prometheus_client  # optional library
            from prometheus_client import exposition
        except ImportError:
            raise ConfigurationError(
                "Prometheus(): prometheus-client is not installed; pip install 'deimos-async[prometheus]'"
            ) from None
        if prefix and not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", prefix):
            raise ConfigurationError(
                f"Prometheus(prefix={prefix!r}): letters, digits, underscores and colons, no digit first"
            )
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        """Where the metrics are registered."""
        self._choose_encoder = exposition.choose_encoder
        self._metrics = _Metrics(prometheus_client, self.registry, prefix)

    def metrics(self) -> Metrics:
        """The port to its metrics."""
        return self._metrics

    def tracing(self) -> Tracing:
        """Prometheus has no traces: does nothing."""
        return NoTelemetry()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for Prometheus and its content type.

        Args:
            accept: The request's header `Accept`: OpenMetrics where it asks for it, else the text format.
        """
        encode, content_type = self._choose_encoder(accept)
        return encode(self.registry), content_type


class _Instrument:
    """One metric with its labels in order."""

    __slots__ = ("_labels", "_metric", "_series")

    def __init__(self, metric: Any, labels: tuple[str, ...]) -> None:
        self._metric = metric
        self._labels = labels
        self._series: dict[tuple[str, ...], Any] = {}

    def series(self, tags: Tags) -> Any:
        """What counts for these tags. Tags that are no label of the metric are left out."""
        values = tuple(tags.get(label, "") for label in self._labels)
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = self._metric.labels(*values) if self._labels else self._metric
        return found


class _Metrics:
    """Metrics are registered when their name is first used."""

    def __init__(self, client: Any, registry: Any, prefix: str) -> None:
        self._client = client
        self._registry = registry
        self._prefix = prefix
        self._instruments: dict[str, _Instrument | None] = {}

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        self._tell("counter", name, tags, lambda series: series.inc(by))

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._tell("gauge", name, tags, lambda series: series.set(value))

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._tell("histogram", name, tags, lambda series: series.observe(value))

    @contextmanager
    def time(self, name: str, *, tags: Tags | None = None) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.histogram(name, time.perf_counter() - began, tags=tags)

    def _tell(self, kind: Kind, name: str, tags: Tags | None, tell: Callable[[Any], None]) -> None:
        try:
            instrument = self._instruments[name]
        except KeyError:
            instrument = self._instruments[name] = self._register(kind, name, tags or {})
        if instrument is not None:
            tell(instrument.series(tags or {}))

    def _register(self, kind: Kind, name: str, tags: Mapping[str, str]) -> _Instrument | None:
        about = METRICS.get(name) or _alias(kind, name) or Metric(name, kind, "", name, tuple(sorted(tags)))
        options: dict[str, Any] = {"registry": self._registry}
        if kind == "histogram" and about.unit == "s":
            options["buckets"] = SECONDS_BUCKETS
        make = {
            "counter": self._client.Counter,
            "gauge": self._client.Gauge,
            "histogram": self._client.Histogram,
        }[kind]
        shown = self._prefix + _REFUSED.sub("_", name) + ("_seconds" if about.unit == "s" else "")
        try:
            return _Instrument(
                make(shown, about.help, [_REFUSED.sub("_", tag) for tag in about.tags], **options), about.tags
            )
        except Exception:
            # Another collector of the registry has the name. Said once; telemetry never stops the application.
            logger.exception("metric %r cannot be shown to Prometheus as %r", name, shown)
            return None


def _alias(kind: Kind, name: str) -> Metric | None:
    """What the alias of this name shows: every tag that a metric behind it may give."""
    found = [(metric, metric.alias) for metric in METRICS.values() if metric.alias and metric.alias.name == name]
    if not found:
        return None
    alias = found[0][1]
    tags = dict.fromkeys(theirs for _, other in found for theirs in other.tags.values())
    if alias.status is not None:
        tags["status"] = None
    names = ", ".join(metric.name for metric, _ in found)
    return Metric(name, kind, "", f"Deimos's name for {names}.", tuple(tags))

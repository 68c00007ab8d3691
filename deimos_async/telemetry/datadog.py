"""Datadog: metrics to an agent by DogStatsD, over UDP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deimos_async.errors import ConfigurationError
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.telemetry.protocol import Metrics, Tags, Tracing

__all__ = ["Datadog"]


class Datadog:
    """Metrics to a Datadog agent, for `Deimos(metrics=Datadog(...))`; needs the extra `datadog`.

    Each call is one datagram that is sent without waiting; what the agent does not take is lost. Durations are
    histograms in seconds. It has no traces of its own: `tracing()` does nothing; Datadog takes OpenTelemetry's.

    Args:
        host_ip: Where the agent listens.
        host_port: Its UDP port, 8125 as a rule.
        namespace: Put before every name, with a dot.
        tags: On every metric: a mapping, or `"name:value"` texts.

    Raises:
        ConfigurationError: Arguments are missing or of the wrong kind (each is named), or the library is not there.

    Source: Deimos 2.6, Datadog metrics provider (`host_ip`, `host_port` and `namespace` are required).
    """

    def __init__(
        self,
        *,
        host_ip: str | None = None,
        host_port: int | None = None,
        namespace: str | None = None,
        tags: Mapping[str, str] | Sequence[str] = (),
    ) -> None:
        given = {"host_ip": host_ip, "host_port": host_port, "namespace": namespace}
        problems = [f"Datadog(): {name}= is missing" for name, value in given.items() if value in (None, "")]
        if host_port is not None and not (isinstance(host_port, int) and 0 < host_port < 65536):
            problems.append(f"Datadog(host_port={host_port!r}): a whole number from 1 to 65535")
        if isinstance(tags, str):
            problems.append("Datadog(): tags= is a mapping or a list of 'name:value', not one text")
        if problems:
            raise ConfigurationError(*problems)
        try:
            from datadog.dogstatsd.base import DogStatsd  # optional library
        except ImportError:
            raise ConfigurationError(
                "Datadog(): the library is not installed; pip install 'deimos-async[datadog]'"
            ) from None
        self._client = DogStatsd(
            host=host_ip,
            port=host_port,
            namespace=namespace,
            constant_tags=_tags(tags) if isinstance(tags, Mapping) else list(tags),
            # Figures about the library itself, which nobody asked for.
            disable_telemetry=True,
        )
        self._metrics = _Metrics(self._client)

    def metrics(self) -> Metrics:
        """The port to its metrics."""
        return self._metrics

    def tracing(self) -> Tracing:
        """Does nothing: use OpenTelemetry's tracing, which Datadog's agent takes by OTLP."""
        return NoTelemetry()

    def close(self) -> None:
        """Close the socket. Any number of times; the next metric opens it again."""
        self._client.close_socket()


class _Metrics:
    """The client drops what it cannot send, with a warning of its own; it raises nothing."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        self._client.increment(name, by, tags=_tags(tags or {}))

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._client.gauge(name, value, tags=_tags(tags or {}))

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._client.histogram(name, value, tags=_tags(tags or {}))

    @contextmanager
    def time(self, name: str, *, tags: Tags | None = None) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.histogram(name, time.perf_counter() - began, tags=tags)


def _tags(tags: Mapping[str, str]) -> list[str]:
    return [f"{name}:{value}" for name, value in tags.items()]

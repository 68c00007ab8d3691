"""Ports to metrics and tracing. A provider implements both; calls never raise and never block.

On the path of a message everything is added up first: one call for each fetch or batch, not for each message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

__all__ = ["Metrics", "Provider", "Span", "Tracing"]

Tags = Mapping[str, str]


class Metrics(Protocol):
    """Counters, gauges and histograms by name. Durations in seconds."""

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        """Add to a counter."""

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        """Set a value."""

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        """Record one observation."""

    def time(self, name: str, *, tags: Tags | None = None) -> AbstractContextManager[None]:
        """Record the seconds that the block took, also when it raises."""


class Span(Protocol):
    """A running span."""

    def set_attribute(self, name: str, value: Any) -> None: ...

    def set_error(self, error: BaseException) -> None:
        """Mark the span as failed; its end is told apart."""


class Tracing(Protocol):
    """Spans, and trace context in message headers (W3C `traceparent`, `tracestate`)."""

    @property
    def enabled(self) -> bool:
        """False: nobody listens; callers may leave out every other call. May change while the application runs."""

    def samples(self, headers: Sequence[tuple[str, bytes | None]]) -> bool:
        """Whether the span of a message with these headers would be recorded. Where that is drawn, it is drawn now.

        Costs little, so that most messages need no span: ask this first, then `consume_span(..., drawn=True)`.
        """

    def unsampled(self) -> AbstractContextManager[object]:
        """Within the block, what is begun belongs to no trace that is recorded. For messages that are not sampled."""

    def produce_span(self, topic: str, *, count: int = 1) -> AbstractContextManager[Span]:
        """Span of kind producer around sending `count` messages; it is the current span within the block."""

    def consume_span(
        self,
        name: str,
        *,
        topic: str,
        group: str,
        partition: int,
        headers: Sequence[Sequence[tuple[str, bytes | None]]],
        attributes: Mapping[str, Any] | None = None,
        drawn: bool = False,
    ) -> AbstractContextManager[Span]:
        """Span of kind consumer around a handler's call.

        `drawn`: `samples` has said yes for this one message: a sampler that draws does not draw again.
        `headers`: those of each message. One message: its producer's span is the parent. Several: links to each.
        """

    def inject(self) -> list[tuple[str, bytes]]:
        """Headers that carry the current span to whoever reads the message; empty if there is none."""

    def current_trace_id(self) -> str | None:
        """Trace id of the current span as 32 hex digits, for logs; None if there is none."""


class Provider(Protocol):
    """What `Deimos(metrics=, tracing=)` take: anything that gives the port asked for."""

    def metrics(self) -> Metrics: ...

    def tracing(self) -> Tracing: ...

"""Telemetry for tests and for a first look: every call is kept and logged, nothing is sent."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from deimos_async.telemetry.protocol import Metrics, Span, Tags, Tracing

__all__ = ["Measurement", "Mock", "MockSpan"]

# Version 00 of https://www.w3.org/TR/trace-context/#traceparent-header; later versions may append fields.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")

_current: ContextVar[MockSpan | None] = ContextVar("deimos_async.telemetry.mock.current", default=None)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One call of a metric: what was added, set or observed."""

    name: str
    value: float
    tags: dict[str, str]


@dataclass(slots=True, eq=False)
class MockSpan:
    """A span as it was told.

    Attributes:
        name: As OpenTelemetry's: `send <topic>`, `process <topic>`.
        kind: `"producer"` or `"consumer"`.
        attributes: By the names of OpenTelemetry's conventions.
        trace_id, span_id: 32 and 16 hex digits.
        parent_id: Span id of the parent, in another process perhaps; None for the root of a trace.
        links: Trace id and span id of each producer's span, for a batch.
        error: What went wrong, or None.
        started, ended: Aware times, UTC; `ended` is None while it runs.
    """

    name: str
    kind: Literal["producer", "consumer"]
    attributes: dict[str, Any]
    trace_id: str
    parent_id: str | None = None
    links: tuple[tuple[str, str], ...] = ()
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    error: BaseException | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None

    def set_attribute(self, name: str, value: Any) -> None:
        self.attributes[name] = value

    def set_error(self, error: BaseException) -> None:
        self.error = error


class Mock:
    """Keeps every call in lists, in order, and logs it at info. For tests: the lists grow until `clear()`.

    It is provider, metrics and tracing in one, so that a test may ask it what was told:

        telemetry = Mock()
        app = Deimos(metrics=telemetry, tracing=telemetry)
        ...
        assert telemetry.count("publish", topic="invoices") == 1

    Source: the Mock providers of Deimos 2.6; here spans carry trace context through headers, and `time` keeps
    fractions of a second.

    Attributes:
        increments, gauges, histograms: Calls of each metric; `time` gives histograms, in seconds.
        spans: Spans in order of their start.
    """

    enabled = True

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logging.getLogger("deimos_async.telemetry.mock") if logger is None else logger
        self.increments: list[Measurement] = []
        self.gauges: list[Measurement] = []
        self.histograms: list[Measurement] = []
        self.spans: list[MockSpan] = []

    def metrics(self) -> Metrics:
        """Itself."""
        return self

    def tracing(self) -> Tracing:
        """Itself."""
        return self

    def clear(self) -> None:
        """Forget every call so far."""
        for calls in (self.increments, self.gauges, self.histograms, self.spans):
            calls.clear()

    def count(self, name: str, **tags: str) -> float:
        """Sum of a counter over all calls that have these tags, among others."""
        return sum(call.value for call in self.increments if call.name == name and tags.items() <= call.tags.items())

    # --- metrics -----------------------------------------------------------------------------------------------

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        self._keep(self.increments, "increment", name, by, tags)

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._keep(self.gauges, "gauge", name, value, tags)

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        self._keep(self.histograms, "histogram", name, value, tags)

    @contextmanager
    def time(self, name: str, *, tags: Tags | None = None) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._keep(self.histograms, "time", name, time.perf_counter() - began, tags)

    def _keep(self, calls: list[Measurement], kind: str, name: str, value: float, tags: Tags | None) -> None:
        call = Measurement(name, value, dict(tags or {}))
        calls.append(call)
        self._logger.info("%s %s: %s %s", kind, name, value, call.tags)

    # --- traces ------------------------------------------------------------------------------------------------

    def samples(self, headers: Sequence[tuple[str, bytes | None]]) -> bool:
        return True

    def unsampled(self) -> AbstractContextManager[object]:
        return nullcontext()

    def produce_span(self, topic: str, *, count: int = 1) -> AbstractContextManager[Span]:
        attributes: dict[str, Any] = {"messaging.destination.name": topic, "messaging.operation.type": "send"}
        if count != 1:
            attributes["messaging.batch.message_count"] = count
        around = _current.get()
        trace_id, parent_id = (_new_trace_id(), None) if around is None else (around.trace_id, around.span_id)
        return self._run(MockSpan(f"send {topic}", "producer", attributes, trace_id, parent_id))

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
        told = {
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": group,
            "messaging.operation.type": "process",
            "deimos.consumer": name,
            **(attributes or {}),
        }
        found = [_read_traceparent(message) for message in headers]
        span = MockSpan(f"process {topic}", "consumer", told, _new_trace_id())
        if len(found) == 1:
            span.trace_id, span.parent_id = found[0] or (span.trace_id, None)
        else:
            span.links = tuple(dict.fromkeys(link for link in found if link is not None))
        return self._run(span)

    def inject(self) -> list[tuple[str, bytes]]:
        span = _current.get()
        return [] if span is None else [("traceparent", f"00-{span.trace_id}-{span.span_id}-01".encode())]

    def current_trace_id(self) -> str | None:
        span = _current.get()
        return None if span is None else span.trace_id

    @contextmanager
    def _run(self, span: MockSpan) -> Iterator[Span]:
        span.started = datetime.now(UTC)
        self.spans.append(span)
        self._logger.info("span %s started: %s", span.name, span.attributes)
        before = _current.set(span)
        try:
            yield span
        except Exception as error:
            span.error = error
            raise
        finally:
            _current.reset(before)
            span.ended = datetime.now(UTC)
            if span.error is not None:
                self._logger.info("span %s failed: %s: %s", span.name, type(span.error).__name__, span.error)
            self._logger.info("span %s ended: %s to %s", span.name, span.started, span.ended)


def _new_trace_id() -> str:
    return secrets.token_hex(16)


def _read_traceparent(headers: Sequence[tuple[str, bytes | None]]) -> tuple[str, str] | None:
    """Trace id and span id; None where there is no header that says them, or it is malformed."""
    for name, value in headers:
        if name == "traceparent" and value is not None:
            match = _TRACEPARENT.fullmatch(value)
            if match is not None and match[1].strip(b"0") and match[2].strip(b"0"):
                return match[1].decode(), match[2].decode()
    return None

"""OpenTelemetry: the default provider. It costs next to nothing until an application sets up an SDK.

Names follow the semantic conventions for messaging (https://opentelemetry.io/docs/specs/semconv/messaging/, with its
Kafka page). Trace context travels in record headers as W3C Trace Context lays down (`traceparent`, `tracestate`), or
as whatever propagator the application configured writes it.
"""

from __future__ import annotations

import copy
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Generic, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer, TracerProvider

from deimos_async.telemetry.names import METRICS, SECONDS_BUCKETS
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.telemetry.protocol import Metrics, Span, Tags, Tracing

__all__ = ["OpenTelemetry"]

logger = logging.getLogger("deimos_async.telemetry")

_SCOPE = "deimos_async"
_RECHECK_SECONDS = 1.0
_MAX_LINKS = 128
"""The SDK keeps at most this many links of a span by default (OTEL_SPAN_LINK_COUNT_LIMIT)."""

_NOTHING = NoTelemetry()

_TRACEPARENT = "traceparent"
_SAMPLED_DIGITS = frozenset(digit.encode() for digit in "13579bdf")
_RATIO = re.compile(
    r"(?P<parents>ParentBased\{root:)?TraceIdRatioBased\{(?P<rate>[0-9.e+-]+)\}"
    r"(?(parents),remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,.*\})"
)
"""Descriptions of the samplers of OpenTelemetry's specification that draw."""

Header = tuple[str, bytes | None]
Found = TypeVar("Found")


class OpenTelemetry:
    """Metrics and traces by the OpenTelemetry API; `Deimos(metrics=, tracing=)` use it where nothing is given.

    Until an SDK is set up every call returns at once and nothing is built. An SDK that is set up later, also while
    the application runs, is noticed within a second. A span around a batch links to its first 128 producers' spans.

    Args:
        meter_provider: Where metrics go. None: the global provider.
        tracer_provider: Where spans go. None: the global provider.
        propagator: How trace context is written into headers. None: the global one, W3C `traceparent`, `tracestate`
            and `baggage` unless the application or OTEL_PROPAGATORS says otherwise.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        propagator: TextMapPropagator | None = None,
    ) -> None:
        self._metrics = _Metrics(meter_provider)
        self._tracing = _Tracing(tracer_provider, propagator)

    def metrics(self) -> Metrics:
        """The port to its metrics."""
        return self._metrics

    def tracing(self) -> Tracing:
        """The port to its spans."""
        return self._tracing


class _Watch(Generic[Found]):
    """Looks for an SDK, at most once a second until there is one; what was found is kept.

    Asking the API costs a look into the environment each time, too much for every message.
    """

    __slots__ = ("_clock", "_due", "_find", "_found")

    def __init__(self, find: Callable[[], Found | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._clock = clock
        self._found: Found | None = None
        self._due = float("-inf")

    def get(self) -> Found | None:
        """What was found, or None."""
        if self._found is None:
            now = self._clock()
            if now >= self._due:
                try:
                    self._found = self._find()
                    self._due = now + _RECHECK_SECONDS
                except Exception:
                    # Telemetry never stops the application; the API fails again at each question, so we ask no more.
                    logger.exception("OpenTelemetry could not be set up; metrics or traces are not sent")
                    self._due = float("inf")
        return self._found


def _find_meter(provider: MeterProvider | None) -> Meter | None:
    provider = metrics.get_meter_provider() if provider is None else provider
    # Until there is an SDK the API gives a proxy. Its class is not public, but it is known by where it is defined, as
    # is the API's provider that does nothing.
    if type(provider).__module__.startswith(f"{metrics.__name__}."):
        return None
    meter = provider.get_meter(_SCOPE)
    return None if isinstance(meter, metrics.NoOpMeter) else meter


def _find_tracer(provider: TracerProvider | None) -> Tracer | None:
    provider = trace.get_tracer_provider() if provider is None else provider
    if isinstance(provider, (trace.NoOpTracerProvider, trace.ProxyTracerProvider)):
        return None
    tracer = provider.get_tracer(_SCOPE)
    # With OTEL_SDK_DISABLED the SDK's provider gives tracers of the API that do nothing.
    return None if isinstance(tracer, trace.NoOpTracer) else tracer


# --- metrics ---------------------------------------------------------------------------------------------------------


class _Metrics:
    """Instruments are made when their name is first used."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._watch = _Watch(lambda: _find_meter(provider))
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, metrics._Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def increment(self, name: str, *, by: int = 1, tags: Tags | None = None) -> None:
        meter = self._watch.get()
        if meter is not None:
            counter = self._counters.get(name)
            if counter is None:
                counter = self._counters[name] = _made(
                    name, lambda name: meter.create_counter(name, *_about(name)), _NO_METER.create_counter
                )
            counter.add(by, tags)

    def gauge(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        meter = self._watch.get()
        if meter is not None:
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = self._gauges[name] = _made(
                    name, lambda name: meter.create_gauge(name, *_about(name)), _NO_METER.create_gauge
                )
            gauge.set(value, tags)

    def histogram(self, name: str, value: float, *, tags: Tags | None = None) -> None:
        meter = self._watch.get()
        if meter is not None:
            self._histogram(meter, name).record(value, tags)

    def time(self, name: str, *, tags: Tags | None = None) -> AbstractContextManager[None]:
        meter = self._watch.get()
        if meter is None:
            return nullcontext()
        return _Timer(self._histogram(meter, name, is_duration=True), tags)

    def _histogram(self, meter: Meter, name: str, *, is_duration: bool = False) -> Histogram:
        histogram = self._histograms.get(name)
        if histogram is None:

            def make(name: str) -> Histogram:
                unit, help = _about(name)
                unit = "s" if is_duration else unit
                if unit == "s":
                    return meter.create_histogram(name, unit, help, explicit_bucket_boundaries_advisory=SECONDS_BUCKETS)
                return meter.create_histogram(name, unit, help)

            histogram = self._histograms[name] = _made(name, make, _NO_METER.create_histogram)
        return histogram


Instrument = TypeVar("Instrument")

_NO_METER = metrics.NoOpMeter(_SCOPE)


def _about(name: str) -> tuple[str, str]:
    """Unit and description; nothing for names that are not ours."""
    metric = METRICS.get(name)
    return ("", "") if metric is None else (metric.unit, metric.help)


def _made(name: str, make: Callable[[str], Instrument], make_none: Callable[[str], Instrument]) -> Instrument:
    try:
        return make(name)
    except Exception:
        # The SDK refuses names outside its syntax. Said once, as the instrument that does nothing is kept.
        logger.exception("metric %r cannot be sent to OpenTelemetry", name)
        return make_none(name)


class _Timer:
    __slots__ = ("_began", "_histogram", "_tags")

    def __init__(self, histogram: Histogram, tags: Tags | None) -> None:
        self._histogram = histogram
        self._tags = tags
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.record(time.perf_counter() - self._began, self._tags)


# --- traces ----------------------------------------------------------------------------------------------------------


class _HeaderGetter(Getter[Iterable[Header]]):
    def get(self, carrier: Iterable[Header], key: str) -> list[str] | None:
        # What is not text is not trace context; other writers may put anything under any name.
        found = [text for name, value in carrier if name == key and (text := _text(value)) is not None]
        return found or None

    def keys(self, carrier: Iterable[Header]) -> list[str]:
        return [name for name, _ in carrier]


class _HeaderSetter(Setter[list[tuple[str, bytes]]]):
    def set(self, carrier: list[tuple[str, bytes]], key: str, value: str) -> None:
        carrier.append((key, value.encode()))


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


_GETTER = _HeaderGetter()
_SETTER = _HeaderSetter()


class _Tracing:
    def __init__(self, provider: TracerProvider | None, propagator: TextMapPropagator | None) -> None:
        self._watch = _Watch(lambda: _find_tracer(provider))
        self._drawing: _Drawing | None = None
        self._propagator = propagator

    @property
    def enabled(self) -> bool:
        return self._watch.get() is not None

    def produce_span(self, topic: str, *, count: int = 1) -> AbstractContextManager[Span]:
        tracer = self._watch.get()
        if tracer is None:
            return nullcontext(_NOTHING)
        attributes: dict[str, Any] = {
            "messaging.system": "kafka",
            "messaging.destination.name": topic,
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
        }
        if count != 1:
            attributes["messaging.batch.message_count"] = count
        return _RunningSpan(tracer, f"send {topic}", SpanKind.PRODUCER, None, (), attributes)

    def samples(self, headers: Sequence[Header]) -> bool:
        tracer = self._watch.get()
        if tracer is None:
            return False
        drawing = self._drawing
        if drawing is None or drawing.tracer is not tracer:
            drawing = self._drawing = _Drawing(tracer)
        if drawing.rate is None:
            return True  # its sampler must be asked, and is when the span begins
        for name, value in headers:
            if name == _TRACEPARENT and value is not None:
                # Version, trace, parent, flags: the last digit's lowest bit says whether the producer's was sampled.
                return not drawing.heeds_parents or value[-1:] in _SAMPLED_DIGITS
        return random.random() < drawing.rate  # noqa: S311  # no secret

    def unsampled(self) -> AbstractContextManager[object]:
        return nullcontext() if self._watch.get() is None else _Unsampled()

    def consume_span(
        self,
        name: str,
        *,
        topic: str,
        group: str,
        partition: int,
        headers: Sequence[Sequence[Header]],
        attributes: Mapping[str, Any] | None = None,
        drawn: bool = False,
    ) -> AbstractContextManager[Span]:
        tracer = self._watch.get()
        if tracer is None:
            return nullcontext(_NOTHING)
        if drawn and self._drawing is not None and all(name != _TRACEPARENT for name, _ in headers[0]):
            tracer = self._drawing.recording
        # Whatever span is current around the consumer (a web application's start, say) has nothing to do with the
        # message: without a producer's span this one is the root of its trace.
        parent, links = (self._extract(headers[0]), ()) if len(headers) == 1 else (Context(), self._links(headers))
        return _RunningSpan(
            tracer,
            f"process {topic}",
            SpanKind.CONSUMER,
            parent,
            links,
            {
                "messaging.system": "kafka",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.consumer.group.name": group,
                "messaging.operation.type": "process",
                "messaging.operation.name": "process",
                "deimos.consumer": name,
                **(attributes or {}),
            },
        )

    def inject(self) -> list[tuple[str, bytes]]:
        carrier: list[tuple[str, bytes]] = []
        if self._watch.get() is not None:
            try:
                self._current_propagator().inject(carrier, setter=_SETTER)
            except Exception:
                # A propagator is the application's code; a message without trace context is better than none.
                logger.exception("trace context could not be written into headers")
        return carrier

    def current_trace_id(self) -> str | None:
        about = trace.get_current_span().get_span_context()
        return trace.format_trace_id(about.trace_id) if about.is_valid else None

    def _current_propagator(self) -> TextMapPropagator:
        return propagate.get_global_textmap() if self._propagator is None else self._propagator

    def _extract(self, headers: Iterable[Header]) -> Context:
        try:
            return self._current_propagator().extract(headers, Context(), _GETTER)
        except Exception:
            # As for inject; and headers come from other writers, so that nothing in them may stop a consumer.
            logger.exception("trace context could not be read from headers")
            return Context()

    def _links(self, headers: Iterable[Iterable[Header]]) -> tuple[Link, ...]:
        """A link to each producer's span, once where many messages came from one span, in the order of messages."""
        fields = self._current_propagator().fields
        links: dict[tuple[Header, ...], Link | None] = {}
        count = 0
        for message in headers:
            carrier = tuple(header for header in message if header[0] in fields)
            if not carrier or carrier in links:
                continue
            about = trace.get_current_span(self._extract(carrier)).get_span_context()
            links[carrier] = Link(about) if about.is_valid else None
            count += about.is_valid
            if count == _MAX_LINKS:
                break
        return tuple(link for link in links.values() if link is not None)


class _Drawing:
    """How an SDK's sampler decides about a message, as far as its description tells.

    A sampler costs a span, of which most are dropped. What draws by a rate can be drawn for less.

    Attributes:
        rate: Share of traces without a parent that are recorded; None where the sampler must be asked.
        heeds_parents: Whether a parent's decision holds. Else the trace's id decides, and the sampler is asked.
        recording: The tracer, with a sampler that always records: for messages that were drawn.
    """

    __slots__ = ("heeds_parents", "rate", "recording", "tracer")

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = self.recording = tracer
        self.rate: float | None = None
        self.heeds_parents = True
        describe = getattr(getattr(tracer, "sampler", None), "get_description", None)
        found = _RATIO.fullmatch(describe()) if describe is not None else None
        if found is not None:
            # optional library: a tracer with a sampler is the SDK's
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            recording: Any = copy.copy(tracer)
            recording.sampler = ALWAYS_ON
            self.recording = recording
            self.rate = float(found["rate"])
            self.heeds_parents = found["parents"] is not None


class _Unsampled:
    """Makes a span that is not recorded the current one, so that what is begun below it is not recorded either."""

    __slots__ = ("_token",)
    _context = trace.set_span_in_context(
        # Not below any ratio's bound, for samplers that go by the id alone.
        trace.NonRecordingSpan(trace.SpanContext(2**128 - 1, 1, is_remote=False)),
        Context(),
    )

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *exc_info: object) -> None:
        otel_context.detach(self._token)


class _RunningSpan:
    """Starts with the block, is the current span within it and ends with it.

    A cancellation is not an error of the work: it is our own stop, or somebody's who has lost interest.
    """

    __slots__ = ("_arguments", "_error", "_parent", "_span", "_token", "_tracer")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: SpanKind,
        parent: Context | None,
        links: tuple[Link, ...],
        attributes: dict[str, Any],
    ) -> None:
        self._tracer = tracer
        self._parent = parent
        self._arguments = (name, kind, links, attributes)
        self._error: BaseException | None = None

    def __enter__(self) -> Span:
        name, kind, links, attributes = self._arguments
        self._span = self._tracer.start_span(name, context=self._parent, kind=kind, links=links, attributes=attributes)
        self._token = otel_context.attach(trace.set_span_in_context(self._span, self._parent))
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        otel_context.detach(self._token)
        if isinstance(error, Exception):
            self.set_error(error)
        self._span.end()

    def set_attribute(self, name: str, value: Any) -> None:
        self._span.set_attribute(name, value)

    def set_error(self, error: BaseException) -> None:
        if self._error is error:
            return  # told by the caller, and once more by the end of the block
        self._error = error
        self._span.record_exception(error)
        self._span.set_attribute("error.type", _qualified_name(type(error)))
        self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _qualified_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"

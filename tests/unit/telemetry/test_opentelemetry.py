"""The OpenTelemetry provider, against the SDK's readers and exporters in memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from deimos_async.telemetry.opentelemetry import OpenTelemetry, _Watch
from deimos_async.telemetry.protocol import Metrics, Provider, Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OpenTelemetry(tracer_provider=provider).tracing()


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def meter_provider(reader: InMemoryMetricReader) -> MeterProvider:
    return MeterProvider([reader], shutdown_on_exit=False)


@pytest.fixture
def metrics(meter_provider: MeterProvider) -> Metrics:
    return OpenTelemetry(meter_provider=meter_provider).metrics()


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        point
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def consume(tracing: Tracing, *headers: list[tuple[str, bytes | None]], **more: Any) -> Any:
    return tracing.consume_span("bill", topic="orders", group="billing", partition=3, headers=headers, **more)


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_increments_of_the_same_tags_add_up(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    metrics.increment("publish", by=3, tags={"topic": "orders"})
    metrics.increment("publish", tags={"topic": "orders"})
    metrics.increment("publish", tags={"topic": "invoices"})
    found = {point.attributes["topic"]: point.value for point in points(reader, "publish")}
    assert found == {"orders": 3 + 1, "invoices": 1}


def test_gauge_shows_its_last_value(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    metrics.gauge("consumer.lags", 7, tags={"partition": "0"})
    metrics.gauge("consumer.lags", 2, tags={"partition": "0"})
    (point,) = points(reader, "consumer.lags")
    assert point.value == 2


def test_histogram_counts_and_sums(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    metrics.histogram("batch_size", 10)
    metrics.histogram("batch_size", 30)
    (point,) = points(reader, "batch_size")
    assert (point.count, point.sum) == (2, 40)


def test_histogram_of_a_time_has_buckets_for_seconds(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    metrics.histogram("messaging.process.duration", 0.003)
    (point,) = points(reader, "messaging.process.duration")
    bucket = next(index for index, count in enumerate(point.bucket_counts) if count)
    assert point.explicit_bounds[bucket - 1] < 0.003 <= point.explicit_bounds[bucket]


def test_time_is_recorded_also_when_the_block_raises(metrics: Metrics, reader: InMemoryMetricReader) -> None:
    with metrics.time("poll", tags={"poller": "widgets"}):
        pass
    with pytest.raises(KeyError), metrics.time("poll", tags={"poller": "widgets"}):
        raise KeyError("x")
    (point,) = points(reader, "poll")
    assert point.count == 2
    assert point.sum >= 0


def test_each_instrument_is_made_once(meter_provider: MeterProvider, metrics: Metrics) -> None:
    made = []
    meter = meter_provider.get_meter("deimos_async")
    original = type(meter).create_counter

    def counted(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        made.append(name)
        return original(self, name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(meter), "create_counter", counted)
        for _ in range(3):
            metrics.increment("publish")
            metrics.increment("outbox.insert")
    assert made == ["publish", "outbox.insert"]


def test_name_that_the_sdk_refuses_is_logged_once_and_raises_nothing(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        metrics.increment("1 bad name")
    refused = [record for record in caplog.records if record.name == "deimos_async.telemetry"]
    assert [record.getMessage() for record in refused] == ["metric '1 bad name' cannot be sent to OpenTelemetry"]


# --- spans -----------------------------------------------------------------------------------------------------------


def test_produce_span_follows_the_messaging_conventions(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.produce_span("orders", count=5):
        pass
    span = only(exporter)
    assert (span.name, span.kind) == ("send orders", SpanKind.PRODUCER)
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.destination.name": "orders",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.batch.message_count": 5,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_single_message_has_no_batch_count(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.produce_span("orders"):
        pass
    assert "messaging.batch.message_count" not in (only(exporter).attributes or {})


def test_consume_span_follows_the_messaging_conventions(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with consume(tracing, [], attributes={"messaging.kafka.offset": 42}):
        pass
    span = only(exporter)
    assert (span.name, span.kind) == ("process orders", SpanKind.CONSUMER)
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "billing",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.kafka.offset": 42,
        "deimos.consumer": "bill",
    }


def test_injected_headers_make_the_producer_the_parent(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with tracing.produce_span("orders"):
        headers: list[tuple[str, bytes | None]] = [("other", None), *tracing.inject()]
        produced = tracing.current_trace_id()
    with consume(tracing, headers):
        assert tracing.current_trace_id() == produced
    sent, processed = exporter.get_finished_spans()
    assert sent.context is not None
    assert processed.parent is not None
    assert processed.parent.span_id == sent.context.span_id
    assert processed.parent.is_remote


def test_messages_of_a_batch_are_linked_once_for_each_producer_span(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    other = ("traceparent", f"00-{'1' * 32}-{'2' * 16}-01".encode())
    with consume(tracing, [TRACEPARENT], [("other", b"1"), TRACEPARENT], [], [other], [("traceparent", b"nonsense")]):
        pass
    span = only(exporter)
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE, "1" * 32]


def test_links_end_at_the_limit_of_the_sdk(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with consume(tracing, *([("traceparent", f"00-{number:032x}-{SPAN}-01".encode())] for number in range(1, 200))):
        pass
    assert [link.context.trace_id for link in only(exporter).links] == list(range(1, 129))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff\xfe",
        b"nonsense",
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
    ],
)
def test_malformed_traceparent_starts_a_new_trace(
    tracing: Tracing, exporter: InMemorySpanExporter, value: bytes | None
) -> None:
    with consume(tracing, [("traceparent", value)]):
        pass
    assert only(exporter).parent is None


def test_message_without_a_producer_span_is_no_child_of_the_surroundings(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with tracing.produce_span("start of the application"):
        around = tracing.current_trace_id()
        with consume(tracing, []):
            assert tracing.current_trace_id() not in (None, around)
        assert tracing.current_trace_id() == around
    assert exporter.get_finished_spans()[0].parent is None


def test_produce_within_a_handler_is_a_child_of_it(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with consume(tracing, [TRACEPARENT]), tracing.produce_span("invoices"):
        assert tracing.current_trace_id() == TRACE
    sent, processed = exporter.get_finished_spans()
    assert sent.parent is not None
    assert processed.context is not None
    assert sent.parent.span_id == processed.context.span_id


def test_baggage_reaches_the_handler(tracing: Tracing) -> None:
    token = attach(baggage.set_baggage("tenant", "acme"))
    try:
        with tracing.produce_span("orders"):
            headers: list[tuple[str, bytes | None]] = list(tracing.inject())
    finally:
        detach(token)
    with consume(tracing, headers):
        assert baggage.get_baggage("tenant") == "acme"
    assert baggage.get_baggage("tenant") is None


def test_error_is_recorded_once_though_told_twice(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    error = LookupError("no such order")
    with pytest.raises(LookupError), consume(tracing, []) as running:
        running.set_error(error)
        raise error
    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "LookupError: no such order"
    assert (span.attributes or {})["error.type"] == "LookupError"
    assert [event.name for event in span.events] == ["exception"]


def test_error_that_was_handled_marks_the_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with consume(tracing, []) as running:
        running.set_attribute("attempts", 3)
        running.set_error(asyncio.QueueFull())
    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "asyncio.queues.QueueFull"
    assert (span.attributes or {})["attempts"] == 3


async def test_cancelled_span_ends_without_an_error(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    began = asyncio.Event()

    async def handler() -> None:
        with consume(tracing, []):
            began.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(30):
        task = asyncio.ensure_future(handler())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    span = only(exporter)
    assert span.status.status_code is StatusCode.UNSET
    assert span.end_time is not None


async def test_handlers_side_by_side_have_spans_of_their_own(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    both = asyncio.Barrier(2)

    async def handler(trace_id: str) -> str | None:
        with consume(tracing, [("traceparent", f"00-{trace_id}-{SPAN}-01".encode())]):
            await both.wait()
            found = tracing.current_trace_id()
            await both.wait()
            return found

    async with asyncio.timeout(30):
        assert await asyncio.gather(handler("a" * 32), handler("b" * 32)) == ["a" * 32, "b" * 32]


class BrokenPropagator(TextMapPropagator):
    fields = frozenset({"broken"})

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        raise ZeroDivisionError

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        raise ZeroDivisionError


def test_broken_propagator_loses_the_context_but_not_the_message(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = OpenTelemetry(tracer_provider=provider, propagator=BrokenPropagator()).tracing()
    with tracing.produce_span("orders"):
        assert tracing.inject() == []
    with consume(tracing, [TRACEPARENT]):
        pass
    with consume(tracing, [("broken", b"1")], [("broken", b"2")]):
        pass
    assert [span.parent for span in exporter.get_finished_spans()] == [None, None, None]


class OneHeaderPropagator(TextMapPropagator):
    fields = frozenset({"x-trace"})

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        assert list(getter.keys(carrier)) == ["x-trace", "other"]
        (found,) = getter.get(carrier, "x-trace")
        about = trace.SpanContext(int(found), 7, is_remote=True, trace_flags=trace.TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(about), context)

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        setter.set(carrier, "x-trace", str(trace.get_current_span(context).get_span_context().trace_id))


def test_propagator_of_the_application_reads_and_writes_headers(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    tracing = OpenTelemetry(tracer_provider=provider, propagator=OneHeaderPropagator()).tracing()
    with consume(tracing, [("x-trace", b"99"), ("other", b"")]):
        assert tracing.inject() == [("x-trace", b"99")]


# --- without an SDK --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provider", [OpenTelemetry(), OpenTelemetry(NoOpMeterProvider(), trace.NoOpTracerProvider())], ids=["unset", "noop"]
)
def test_without_an_sdk_nothing_is_enabled_and_nothing_raises(provider: Provider) -> None:
    metrics, tracing = provider.metrics(), provider.tracing()
    assert not tracing.enabled
    metrics.increment("1 bad name")
    metrics.gauge("1 bad name", 1)
    metrics.histogram("1 bad name", 1)
    with metrics.time("1 bad name"):
        pass
    with tracing.produce_span("orders") as span:
        span.set_attribute("a", 1)
        span.set_error(ValueError())
        assert tracing.inject() == []
    with consume(tracing, [TRACEPARENT]):
        assert tracing.current_trace_id() is None


def test_disabled_sdk_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not OpenTelemetry(tracer_provider=TracerProvider(shutdown_on_exit=False)).tracing().enabled


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_sdk_is_looked_for_once_a_second_until_it_is_there() -> None:
    clock, asked, answers = Clock(), 0, iter([None, "sdk"])

    def find() -> str | None:
        nonlocal asked
        asked += 1
        return next(answers)

    watch = _Watch(find, clock)
    seen: list[tuple[str | None, int]] = []
    for clock.now in (100.0, 100.9, 101.0, 300.0):
        seen.append((watch.get(), asked))
    assert seen == [(None, 1), (None, 1), ("sdk", 2), ("sdk", 2)]


def test_sdk_that_cannot_be_loaded_is_logged_once_and_given_up(caplog: pytest.LogCaptureFixture) -> None:
    clock, asked = Clock(), 0

    def find() -> str | None:
        nonlocal asked
        asked += 1
        raise RuntimeError("no such provider")

    watch = _Watch(find, clock)
    for clock.now in (100.0, 200.0, 300.0):
        assert watch.get() is None
    assert asked == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def run(code: Iterable[str], **environment: str) -> str:
    # The API's global provider can be set once in a process, so each case has a process of its own.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_global_sdk_that_is_set_up_after_the_provider_was_made_is_used() -> None:
    printed = run(
        [
            "from deimos_async.telemetry.opentelemetry import OpenTelemetry",
            "telemetry = OpenTelemetry()",
            "from opentelemetry import metrics, trace",
            "from opentelemetry.sdk.metrics import MeterProvider",
            "from opentelemetry.sdk.metrics.export import InMemoryMetricReader",
            "from opentelemetry.sdk.trace import TracerProvider",
            "reader = InMemoryMetricReader()",
            "metrics.set_meter_provider(MeterProvider([reader]))",
            "trace.set_tracer_provider(TracerProvider())",
            "telemetry.metrics().increment('publish', by=4)",
            "data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]",
            "print(telemetry.tracing().enabled, data.scope.name, data.metrics[0].data.data_points[0].value)",
        ]
    )
    assert printed.split() == ["True", "deimos_async", "4"]


def sampling_by(sampler: Any) -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OpenTelemetry(tracer_provider=provider).tracing(), exporter


NEW_TRACE: list[tuple[str, bytes | None]] = []
SAMPLED: list[tuple[str, bytes | None]] = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
DROPPED: list[tuple[str, bytes | None]] = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]


@pytest.mark.parametrize(
    ("sampler", "headers", "expected"),
    [
        (ParentBased(TraceIdRatioBased(0.0)), NEW_TRACE, False),
        (ParentBased(TraceIdRatioBased(1.0)), NEW_TRACE, True),
        (ParentBased(TraceIdRatioBased(0.0)), SAMPLED, True),
        (ParentBased(TraceIdRatioBased(1.0)), DROPPED, False),
        (TraceIdRatioBased(0.0), NEW_TRACE, False),
        (TraceIdRatioBased(0.0), SAMPLED, True),  # the trace's id decides: the sampler is asked
        (ALWAYS_ON, NEW_TRACE, True),
        (ALWAYS_OFF, NEW_TRACE, True),  # not one that draws: it is asked when the span begins
    ],
)
def test_whether_a_message_is_sampled_is_decided_before_a_span_is_made(
    sampler: Any, headers: Any, expected: bool
) -> None:
    tracing, _ = sampling_by(sampler)
    assert tracing.samples(headers) is expected


def test_message_that_was_drawn_is_recorded_without_drawing_again_and_about_its_share_is_drawn() -> None:
    tracing, exporter = sampling_by(ParentBased(TraceIdRatioBased(0.2)))
    drawn = sum(tracing.samples(NEW_TRACE) for _ in range(5_000))
    assert 700 < drawn < 1_300  # 1000 expected, 28 the standard deviation
    for _ in range(50):
        with tracing.consume_span("c", topic="t", group="g", partition=0, headers=[NEW_TRACE], drawn=True):
            pass
    assert len(exporter.get_finished_spans()) == 50


def test_nothing_below_an_unsampled_message_is_recorded() -> None:
    tracing, exporter = sampling_by(ParentBased(TraceIdRatioBased(0.5)))
    for _ in range(20):
        with tracing.unsampled(), tracing.produce_span("t"):
            assert tracing.inject()[0][1].endswith(b"-00")
    assert exporter.get_finished_spans() == ()

"""The mock provider: what was told is kept, and trace context goes through headers without an SDK."""

from __future__ import annotations

import logging
from datetime import UTC
from typing import Any

import pytest

from deimos_async.telemetry.mock import Measurement, Mock
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.telemetry.protocol import Provider

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.fixture
def mock() -> Mock:
    return Mock()


def consume(mock: Mock, *headers: list[tuple[str, bytes | None]], **more: Any) -> Any:
    return mock.consume_span("bill", topic="orders", group="billing", partition=3, headers=headers, **more)


def test_every_metric_call_is_kept_in_order(mock: Mock) -> None:
    metrics = mock.metrics()
    metrics.increment("publish", by=3, tags={"topic": "orders", "status": "success"})
    metrics.increment("publish", tags={"topic": "invoices", "status": "success"})
    metrics.gauge("consumer.lags", 7)
    metrics.histogram("handle_time", 0.5)
    assert mock.increments == [
        Measurement("publish", 3, {"topic": "orders", "status": "success"}),
        Measurement("publish", 1, {"topic": "invoices", "status": "success"}),
    ]
    assert mock.gauges == [Measurement("consumer.lags", 7, {})]
    assert mock.histograms == [Measurement("handle_time", 0.5, {})]


def test_count_sums_the_calls_that_have_the_tags(mock: Mock) -> None:
    mock.increment("publish", by=3, tags={"topic": "orders", "status": "success"})
    mock.increment("publish", by=2, tags={"topic": "orders", "status": "error"})
    mock.increment("other", by=9, tags={"topic": "orders", "status": "error"})
    assert mock.count("publish") == 5
    assert mock.count("publish", status="error") == 2
    assert mock.count("publish", status="unknown") == 0


def test_time_keeps_fractions_of_a_second_also_when_the_block_raises(mock: Mock) -> None:
    with pytest.raises(KeyError), mock.time("poll", tags={"poller": "widgets"}):
        raise KeyError("x")
    (call,) = mock.histograms
    assert (call.name, call.tags) == ("poll", {"poller": "widgets"})
    assert isinstance(call.value, float)


def test_tags_are_kept_as_they_were_at_the_call(mock: Mock) -> None:
    tags = {"topic": "orders"}
    mock.increment("publish", tags=tags)
    tags["topic"] = "changed"
    assert mock.increments[0].tags == {"topic": "orders"}


def test_span_carries_what_was_told(mock: Mock) -> None:
    with consume(mock, [], attributes={"messaging.kafka.offset": 42}) as running:
        running.set_attribute("attempts", 3)
        assert mock.spans[0].ended is None
    (span,) = mock.spans
    assert (span.name, span.kind, span.parent_id, span.error) == ("process orders", "consumer", None, None)
    assert span.attributes == {
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "billing",
        "messaging.operation.type": "process",
        "messaging.kafka.offset": 42,
        "deimos.consumer": "bill",
        "attempts": 3,
    }
    assert span.ended is not None
    assert span.started.tzinfo is UTC
    assert span.started <= span.ended


def test_span_of_several_messages_has_their_count(mock: Mock) -> None:
    with mock.produce_span("orders", count=5):
        pass
    with mock.produce_span("orders"):
        pass
    assert [span.attributes.get("messaging.batch.message_count") for span in mock.spans] == [5, None]


def test_error_of_the_block_and_error_that_was_told_are_on_the_span(mock: Mock) -> None:
    raised, told = ValueError("raised"), ValueError("told")
    with pytest.raises(ValueError, match="raised"), mock.produce_span("orders"):
        raise raised
    with mock.produce_span("orders") as span:
        span.set_error(told)
    assert [span.error for span in mock.spans] == [raised, told]
    assert all(span.ended is not None for span in mock.spans)


def test_injected_headers_make_the_producer_the_parent(mock: Mock) -> None:
    with mock.produce_span("orders"):
        headers: list[tuple[str, bytes | None]] = [("other", None), *mock.inject()]
    with consume(mock, headers), mock.produce_span("invoices"):
        assert mock.current_trace_id() == mock.spans[0].trace_id
    sent, processed, sent_on = mock.spans
    assert (processed.trace_id, processed.parent_id) == (sent.trace_id, sent.span_id)
    assert (sent_on.trace_id, sent_on.parent_id) == (sent.trace_id, processed.span_id)


def test_batch_is_linked_to_each_producer_once(mock: Mock) -> None:
    with mock.produce_span("orders", count=2):
        first = mock.inject()
    with mock.produce_span("orders"):
        second = mock.inject()
    with consume(mock, list(first), list(first), [], list(second)):
        pass
    sent, sent_again, processed = mock.spans
    assert processed.links == ((sent.trace_id, sent.span_id), (sent_again.trace_id, sent_again.span_id))
    assert processed.parent_id is None


@pytest.mark.parametrize(
    ("value", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01".encode(), SPAN),
        (f"cc-{TRACE}-{SPAN}-01-more".encode(), SPAN),
        (f"ff-{TRACE}-{SPAN}-01".encode(), None),
        (f"00-{'0' * 32}-{SPAN}-01".encode(), None),
        (f"00-{TRACE}-{'0' * 16}-01".encode(), None),
        (f"00-{TRACE.upper()}-{SPAN}-01".encode(), None),
        (b"\xff", None),
        (None, None),
    ],
)
def test_only_a_well_formed_traceparent_is_a_parent(mock: Mock, value: bytes | None, parent: str | None) -> None:
    with consume(mock, [("traceparent", value)]):
        pass
    assert mock.spans[0].parent_id == parent
    assert (mock.spans[0].trace_id == TRACE) == (parent is not None)


def test_outside_of_spans_there_is_nothing_to_carry(mock: Mock) -> None:
    assert mock.inject() == []
    assert mock.current_trace_id() is None


def test_calls_are_logged_at_info_by_the_given_logger(caplog: pytest.LogCaptureFixture) -> None:
    mock = Mock(logging.getLogger("shop"))
    with caplog.at_level(logging.INFO, "shop"):
        mock.increment("publish", by=2, tags={"topic": "orders"})
        with pytest.raises(ValueError, match="broken"), mock.produce_span("orders"):
            raise ValueError("broken")
    assert {(record.name, record.levelname) for record in caplog.records} == {("shop", "INFO")}
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "increment publish: 2 {'topic': 'orders'}"
    assert lines[1].startswith("span send orders started")
    assert lines[2] == "span send orders failed: ValueError: broken"
    assert lines[3].startswith("span send orders ended")


def test_clear_forgets_everything(mock: Mock) -> None:
    mock.increment("a")
    mock.gauge("a", 1)
    mock.histogram("a", 1)
    with mock.produce_span("orders"):
        pass
    mock.clear()
    assert (mock.increments, mock.gauges, mock.histograms, mock.spans) == ([], [], [], [])


def test_no_telemetry_takes_every_call() -> None:
    provider: Provider = NoTelemetry()
    metrics, tracing = provider.metrics(), provider.tracing()
    metrics.increment("a", by=2)
    metrics.gauge("a", 1)
    metrics.histogram("a", 1)
    assert not tracing.enabled
    with metrics.time("a"), tracing.produce_span("orders") as span:
        span.set_attribute("a", 1)
        span.set_error(ValueError())
        assert tracing.inject() == []
        assert tracing.current_trace_id() is None

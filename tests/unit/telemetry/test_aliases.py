"""Deimos's names beside ours, and histograms of bounded cost."""

from __future__ import annotations

import pytest

from deimos_async.telemetry import names
from deimos_async.telemetry.aliases import WithAliases
from deimos_async.telemetry.mock import Measurement, Mock
from deimos_async.telemetry.sampling import SampledHistogram


def test_sent_messages_are_told_as_publish_with_their_status() -> None:
    mock = Mock()
    metrics = WithAliases(mock)
    metrics.increment(names.SENT, by=2, tags=names.messaging_tags("send", "orders"))
    metrics.increment(names.SENT, tags=names.messaging_tags("send", "orders", error="DeliveryError"))
    assert [call for call in mock.increments if call.name == "publish"] == [
        Measurement("publish", 2, {"topic": "orders", "status": "success"}),
        Measurement("publish", 1, {"topic": "orders", "status": "error"}),
    ]
    assert mock.count(names.SENT) == 3


def test_lag_is_told_with_the_tags_of_deimos() -> None:
    mock = Mock()
    tags = {**names.consumer_tags(topic="orders", group="billing", consumer="bill"), "partition": "3"}
    WithAliases(mock).gauge(names.LAG, 7, tags=tags)
    assert mock.gauges == [
        Measurement(names.LAG, 7, tags),
        Measurement("consumer.lags", 7, {"topic": "orders", "partition": "3", "consumer_group": "billing"}),
    ]


def test_metric_without_alias_is_told_once() -> None:
    mock = Mock()
    metrics = WithAliases(mock)
    metrics.increment(names.RETRIES)
    metrics.gauge(names.LOOP_LAG, 1)
    with pytest.raises(KeyError), metrics.time("mine"):
        raise KeyError("x")
    assert [call.name for call in [*mock.increments, *mock.gauges, *mock.histograms]] == [
        names.RETRIES, names.LOOP_LAG, "mine",
    ]  # fmt: skip


def test_sampled_histogram_records_at_most_a_hundred_times_a_second() -> None:
    now = 100.0
    mock = Mock()
    histogram = SampledHistogram(mock, names.DECODE_TIME, {"topic": "orders"}, clock=lambda: now)
    recorded = []
    for moment, value in [(100.0, 1.0), (100.0, 2.0), (100.009, 3.0), (100.02, 4.0), (100.021, 5.0), (160.0, 6.0)]:
        now = moment
        histogram.record(value)
        recorded = [call.value for call in mock.histograms]
    assert recorded == [1.0, 4.0, 6.0]
    assert mock.histograms[0] == Measurement(names.DECODE_TIME, 1.0, {"topic": "orders"})

"""The Prometheus provider, by the text that Prometheus reads."""

from __future__ import annotations

import logging
import sys

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from deimos_async import ConfigurationError, Prometheus
from deimos_async.telemetry import names
from deimos_async.telemetry.aliases import WithAliases


def samples(provider: Prometheus) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = provider.render()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


TAGS = names.consumer_tags(topic="orders", group="billing", consumer="bill")
LABELS = (("consumer", "bill"), ("consumer_group", "billing"), ("topic", "orders"))


def test_counter_adds_up_and_ends_in_total() -> None:
    provider = Prometheus()
    provider.metrics().increment(names.HANDLED, by=3, tags=TAGS)
    provider.metrics().increment(names.HANDLED, tags=TAGS)
    assert samples(provider) == {("deimos_consumer_handled_total", LABELS): 3 + 1}


def test_gauge_of_a_duration_shows_its_last_value_in_seconds() -> None:
    provider = Prometheus()
    provider.metrics().gauge(names.LOOP_LAG, 7)
    provider.metrics().gauge(names.LOOP_LAG, 0.25)
    assert samples(provider) == {("deimos_loop_lag_seconds", ()): 0.25}


def test_durations_have_buckets_for_seconds() -> None:
    provider = Prometheus()
    provider.metrics().histogram(names.DECODE_TIME, 0.003, tags=TAGS)
    found = samples(provider)
    name = "deimos_consumer_decode_time_seconds"
    assert found[f"{name}_count", LABELS] == 1
    assert found[f"{name}_sum", LABELS] == 0.003
    buckets = {dict(labels)["le"]: value for (which, labels), value in found.items() if which == f"{name}_bucket"}
    assert len(buckets) == len(names.SECONDS_BUCKETS) + 1
    assert (buckets["0.0025"], buckets["0.005"]) == (0, 1)


def test_tag_that_a_call_does_not_give_is_an_empty_label() -> None:
    provider = Prometheus()
    metrics = provider.metrics()
    metrics.increment(names.SENT, tags=names.messaging_tags("send", "orders"))
    metrics.increment(names.SENT, tags=names.messaging_tags("send", "orders", error="DeliveryError"))
    errors = {dict(labels)["error_type"] for _, labels in samples(provider)}
    assert errors == {"", "DeliveryError"}


def test_alias_has_the_labels_of_every_metric_behind_it() -> None:
    provider = Prometheus()
    metrics = WithAliases(provider.metrics())
    metrics.increment(names.CONSUMED, by=2, tags=names.messaging_tags("poll", "orders", group="billing"))
    metrics.increment(names.HANDLED, tags=TAGS)
    metrics.increment(names.FAILED, tags={**TAGS, "error.type": "KeyError"})
    shown = {labels: value for (name, labels), value in samples(provider).items() if name == "handler_total"}
    assert shown == {
        (("status", "received"), ("topic", "orders")): 2,
        (("status", "success"), ("topic", "orders")): 1,
        (("status", "error"), ("topic", "orders")): 1,
    }


@pytest.mark.parametrize("name", names.METRICS)
def test_every_metric_can_be_shown_with_its_alias(name: str, caplog: pytest.LogCaptureFixture) -> None:
    provider = Prometheus()
    metric = names.METRICS[name]
    metrics = WithAliases(provider.metrics())
    tags = dict.fromkeys(metric.tags, "x")
    match metric.kind:
        case "counter":
            metrics.increment(name, tags=tags)
        case "gauge":
            metrics.gauge(name, 1, tags=tags)
        case "histogram":
            metrics.histogram(name, 1, tags=tags)
    shown = {which for which, _ in samples(provider)}
    assert any(which.startswith(name.replace(".", "_")) for which in shown)
    if metric.alias is not None:
        assert any(which.startswith(metric.alias.name.replace(".", "_")) for which in shown)
    assert not caplog.records


def test_metric_of_another_name_takes_the_labels_of_its_first_call() -> None:
    provider = Prometheus()
    metrics = provider.metrics()
    with metrics.time("my.block", tags={"poller": "widgets"}):
        pass
    metrics.histogram("my.block", 1, tags={"poller": "others", "later": "x"})
    counts = {labels: value for (name, labels), value in samples(provider).items() if name == "my_block_count"}
    assert counts == {(("poller", "widgets"),): 1, (("poller", "others"),): 1}


def test_registry_of_ones_own_and_prefix() -> None:
    registry = CollectorRegistry()
    Gauge("mine", "A metric of the program.", registry=registry).set(1)
    provider = Prometheus(registry, prefix="shop_")
    provider.metrics().gauge(names.LOOP_LAG, 2)
    assert samples(provider) == {("mine", ()): 1, ("shop_deimos_loop_lag_seconds", ()): 2}


def test_providers_without_a_registry_do_not_meet() -> None:
    first, second = Prometheus(), Prometheus()
    first.metrics().gauge(names.LOOP_LAG, 1)
    second.metrics().gauge(names.LOOP_LAG, 2)
    assert samples(first) != samples(second)


def test_name_that_is_taken_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    Gauge("deimos_loop_lag_seconds", "Somebody else's.", registry=registry)
    metrics = Prometheus(registry).metrics()
    with caplog.at_level(logging.ERROR):
        metrics.gauge(names.LOOP_LAG, 1)
        metrics.gauge(names.LOOP_LAG, 2)
    (record,) = caplog.records
    assert "deimos_loop_lag_seconds" in record.getMessage()


def test_open_metrics_is_given_where_it_is_asked_for() -> None:
    provider = Prometheus()
    provider.metrics().gauge(names.LOOP_LAG, 1)
    body, content_type = provider.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_tracing_does_nothing() -> None:
    tracing = Prometheus().tracing()
    assert not tracing.enabled
    with tracing.produce_span("orders"):
        assert tracing.inject() == []


@pytest.mark.parametrize("prefix", ["1shop", "shop-", "sh op"])
def test_prefix_that_cannot_begin_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="no digit first"):
        Prometheus(prefix=prefix)


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"deimos-async\[prometheus\]"):
        Prometheus()

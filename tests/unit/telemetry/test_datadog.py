"""The Datadog provider, by the datagrams that an agent gets."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator

import pytest

from deimos_async import ConfigurationError, Datadog
from deimos_async.telemetry import names


class Agent:
    """A UDP socket in place of an agent."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(20.0)

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def next(self) -> tuple[str, set[str]]:
        """The next datagram: what comes before the tags, and the tags."""
        told, _, tags = self.socket.recv(65536).decode().strip().partition("|#")
        return told, {tag for tag in tags.partition("|")[0].split(",") if tag}


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    with agent.socket:
        yield agent


@pytest.fixture
def provider(agent: Agent) -> Iterator[Datadog]:
    provider = Datadog(host_ip="127.0.0.1", host_port=agent.port, namespace="shop", tags={"env": "test"})
    yield provider
    provider.close()


def test_calls_are_datagrams_with_namespace_and_tags(agent: Agent, provider: Datadog) -> None:
    metrics = provider.metrics()
    metrics.increment(names.HANDLED, by=3, tags={"topic": "orders"})
    assert agent.next() == ("shop.deimos.consumer.handled:3|c", {"env:test", "topic:orders"})
    metrics.gauge(names.LAG, 7, tags={"partition": "0"})
    assert agent.next() == ("shop.deimos.consumer.lag:7|g", {"env:test", "partition:0"})
    metrics.histogram(names.PROCESS_DURATION, 0.25)
    assert agent.next() == ("shop.messaging.process.duration:0.25|h", {"env:test"})


def test_time_is_told_also_when_the_block_raises(agent: Agent, provider: Datadog) -> None:
    with pytest.raises(KeyError), provider.metrics().time("poll"):
        raise KeyError("x")
    told, _ = agent.next()
    assert told.startswith("shop.poll:")
    assert told.endswith("|h")


def test_tags_may_be_a_list(agent: Agent) -> None:
    provider = Datadog(host_ip="127.0.0.1", host_port=agent.port, namespace="shop", tags=["env:test", "a:b"])
    provider.metrics().gauge(names.LOOP_LAG, 1)
    assert agent.next() == ("shop.deimos.loop_lag:1|g", {"env:test", "a:b"})
    provider.close()


def test_closed_provider_opens_again_with_the_next_metric(agent: Agent, provider: Datadog) -> None:
    provider.close()
    provider.close()
    provider.metrics().gauge(names.LOOP_LAG, 1)
    assert agent.next()[0] == "shop.deimos.loop_lag:1|g"


def test_agent_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    provider = Datadog(host_ip="127.0.0.1", host_port=port, namespace="shop")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):  # the refusal of one datagram is learned with the next
            provider.metrics().increment(names.HANDLED)
    assert "Error submitting packet" in caplog.text
    provider.close()


def test_each_missing_argument_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Datadog()
    assert [problem.split()[1] for problem in caught.value.problems] == ["host_ip=", "host_port=", "namespace="]
    with pytest.raises(ConfigurationError) as caught:
        Datadog(host_ip="127.0.0.1", host_port=0, namespace="shop", tags="env:test")
    assert len(caught.value.problems) == 2


def test_tracing_does_nothing(provider: Datadog) -> None:
    assert not provider.tracing().enabled


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datadog.dogstatsd.base", None)
    with pytest.raises(ConfigurationError, match=r"deimos-async\[datadog\]"):
        Datadog(host_ip="127.0.0.1", host_port=8125, namespace="shop")

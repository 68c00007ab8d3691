"""Settings on their way to a member of a group, and from there to the client library."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from deimos_async import Deimos, Key, Message
from deimos_async.brokers import kafka_consumer
from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import ConsumerOptions, TopicInfo
from deimos_async.settings import ConsumersSettings

GIVEN = {
    "session_timeout": 31.0,
    "heartbeat_interval": 2.0,
    "rebalance_timeout": 41.0,
    "max_poll_interval": 17.5,
    "fetch_max_bytes": 2_000_000,
    "max_partition_fetch_bytes": 1_000_000,
    "instance_id": "pod-1",
}


class SilentListener:
    async def on_assigned(self, partitions: Any) -> None:
        pass

    async def on_revoked(self, partitions: Any) -> None:
        pass

    async def on_lost(self, partitions: Any) -> None:
        pass


async def test_every_setting_that_a_member_has_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ConsumerOptions] = []
    make = MemoryBroker.consumer

    def consumer(self: MemoryBroker, options: ConsumerOptions, listener: Any) -> Any:
        seen.append(options)
        return make(self, options, listener)

    monkeypatch.setattr(MemoryBroker, "consumer", consumer)
    settings = {f"consumers.{name}": value for name, value in GIVEN.items()}
    app = Deimos({"embedded": True, **settings}, metrics=None, tracing=None)

    @app.consumer(app.topic("orders", schema_backend="plain", key=Key.plain()), group="billing")
    async def bill(message: Message) -> None:
        raise AssertionError("nothing was sent")

    async with app.running():
        pass
    assert {field.name for field in fields(ConsumerOptions)} & ConsumersSettings.model_fields.keys() - {
        "group"
    } == GIVEN.keys(), "this test gives each of them"
    (options,) = seen
    for name, value in GIVEN.items():
        given = getattr(options, name)
        assert given.startswith("pod-1-") if name == "instance_id" else given == value, name


async def test_options_of_a_member_become_those_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def client(**arguments: Any) -> Any:
        raise Seen(arguments)

    async def topics(self: KafkaBroker, names: Any = None) -> dict[str, TopicInfo]:
        return {"t": TopicInfo("t", 1)}

    monkeypatch.setattr(kafka_consumer, "AIOKafkaConsumer", client)
    monkeypatch.setattr(KafkaBroker, "topics", topics)
    options = ConsumerOptions("g", ("t",), **GIVEN)
    consumer = KafkaBroker("default", KafkaOptions()).consumer(options, SilentListener())
    with pytest.raises(Seen) as caught:
        await consumer.start()
    (arguments,) = caught.value.args
    assert {
        name: arguments[name]
        for name in (
            "session_timeout_ms",
            "heartbeat_interval_ms",
            "rebalance_timeout_ms",
            "max_poll_interval_ms",
            "fetch_max_bytes",
            "max_partition_fetch_bytes",
            "group_instance_id",
        )
    } == {
        "session_timeout_ms": 31_000,
        "heartbeat_interval_ms": 2_000,
        "rebalance_timeout_ms": 41_000,
        "max_poll_interval_ms": 17_500,
        "fetch_max_bytes": 2_000_000,
        "max_partition_fetch_bytes": 1_000_000,
        "group_instance_id": "pod-1",
    }

"""A partition that ends with a transaction's marker has nothing left to fetch, whatever its end offset says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import ConsumerOptions, NewTopic
from deimos_async.message import InboundRecord, TopicPartition

DEADLINE = 60.0

pytestmark = pytest.mark.services("kafka")


class Listener:
    async def on_assigned(self, partitions: Any) -> None: ...

    async def on_revoked(self, partitions: Any) -> None: ...

    async def on_lost(self, partitions: Any) -> None: ...


async def test_marker_of_a_transaction_is_lag_but_nothing_to_fetch(kafka_bootstrap: str, unique_name: str) -> None:
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka_bootstrap))
    await broker.start()
    consumer = broker.consumer(ConsumerOptions(group=unique_name, topics=(unique_name,)), Listener())
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=unique_name)
    await producer.start()
    try:
        await broker.create_topics([NewTopic(unique_name, 1)])
        async with producer.transaction():
            await producer.send_and_wait(unique_name, b"one")
        await consumer.start()
        partition = TopicPartition(unique_name, 0)
        seen: list[Sequence[InboundRecord]] = []
        async with asyncio.timeout(DEADLINE):
            # The marker may be written after the record was fetched: its end is known with a later answer.
            while not seen or consumer.unfetched() or consumer.positions_end()[partition] < 2:
                seen += [records for _, records in await consumer.fetch(100, 0.5)]
        assert [record.value for records in seen for record in records] == [b"one"]
        last = seen[-1][-1].offset
        assert consumer.positions_end()[partition] - (last + 1) == 1
        assert consumer.unfetched() == {}
    finally:
        await producer.stop()
        await consumer.stop()
        await broker.stop()

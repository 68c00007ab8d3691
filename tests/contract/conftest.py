"""What the contract suites need: brokers and databases of each kind, and members of groups that are easy to watch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from fresh_database import KINDS, fresh_database
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import (
    Broker,
    BrokerConsumer,
    BrokerProducer,
    ConsumerOptions,
    NewTopic,
    ProducerOptions,
)
from deimos_async.database.creation import create_framework_tables
from deimos_async.message import InboundRecord, TopicPartition

DEADLINE = 30.0
"""Seconds after which a wait has failed."""

Hook = Callable[[frozenset[TopicPartition]], Awaitable[None]]


class Member:
    """A consumer with its listener."""

    def __init__(self, broker: Broker, options: ConsumerOptions) -> None:
        self.events: list[tuple[str, frozenset[TopicPartition]]] = []
        self.hooks: dict[str, Hook] = {}
        self.options = options
        self._heard = asyncio.Condition()
        self.consumer: BrokerConsumer = broker.consumer(options, self)

    async def on_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        await self._hear("assigned", partitions)

    async def on_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        await self._hear("revoked", partitions)

    async def on_lost(self, partitions: frozenset[TopicPartition]) -> None:
        await self._hear("lost", partitions)

    async def _hear(self, event: str, partitions: frozenset[TopicPartition]) -> None:
        async with self._heard:
            self.events.append((event, partitions))
            self._heard.notify_all()
        if hook := self.hooks.get(event):
            await hook(partitions)

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until something is true that the listener's events change."""
        async with asyncio.timeout(DEADLINE), self._heard:
            await self._heard.wait_for(predicate)

    async def join(self) -> "Member":
        """Start, and wait for the first partitions."""
        await self.consumer.start()
        await self.until(lambda: any(event == "assigned" for event, _ in self.events))
        return self

    async def read(self, count: int) -> list[InboundRecord]:
        """Fetch until that many records are there."""
        records: list[InboundRecord] = []
        async with asyncio.timeout(DEADLINE):
            while len(records) < count:
                for _, found in await self.consumer.fetch(count - len(records), 1.0):
                    records.extend(found)
        return records

    async def read_until(self, predicate: Callable[[], bool]) -> list[InboundRecord]:
        """Fetch until something is true."""
        records: list[InboundRecord] = []
        async with asyncio.timeout(DEADLINE):
            while not predicate():
                for _, found in await self.consumer.fetch(100, 0.1):
                    records.extend(found)
        return records


@dataclass
class Bench:
    """A broker under test, and all that a test makes with it."""

    broker: Broker
    name: str
    delete_records: Callable[[TopicPartition, int], Awaitable[None]]
    members: list[Member] = field(default_factory=list)
    producers: list[BrokerProducer] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return f"{self.name}.topic"

    @property
    def group(self) -> str:
        return f"{self.name}.group"

    def at(self, partition: int, topic: str | None = None) -> TopicPartition:
        return TopicPartition(topic or self.topic, partition)

    async def create(self, partitions: int = 1, topic: str | None = None, **config: str) -> str:
        topic = topic or self.topic
        await self.broker.create_topics([NewTopic(topic, partitions, config=config)])
        return topic

    def member(
        self, topics: Iterable[str] | None = None, *, start_from: str | datetime = "earliest", **more: Any
    ) -> Member:
        options = ConsumerOptions(
            group=more.pop("group", self.group),
            topics=tuple(topics or (self.topic,)),
            start_from=start_from,
            session_timeout=10.0,
            heartbeat_interval=0.2,
            **more,
        )
        member = Member(self.broker, options)
        self.members.append(member)
        return member

    async def producer(self, **options: Any) -> BrokerProducer:
        producer = self.broker.producer(ProducerOptions(**options))
        self.producers.append(producer)
        await producer.start()
        return producer

    async def close(self) -> None:
        for producer in self.producers:
            await producer.stop()
        for member in self.members:
            await member.consumer.stop()
        await self.broker.stop()


async def _memory_bench(name: str) -> Bench:
    broker = MemoryBroker(auto_create=False)

    async def delete_records(partition: TopicPartition, before: int) -> None:
        broker.delete_records(*partition, before)

    return Bench(broker, name, delete_records)


async def _kafka_bench(name: str, bootstrap: str) -> Bench:
    async def delete_records(partition: TopicPartition, before: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            await admin.delete_records({KafkaPartition(*partition): RecordsToDelete(before)})
        finally:
            await admin.close()

    return Bench(KafkaBroker("default", KafkaOptions(bootstrap_servers=bootstrap)), name, delete_records)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.services("kafka"))])
async def bench(request: pytest.FixtureRequest, unique_name: str) -> AsyncIterator[Bench]:
    """One broker after the other."""
    if request.param == "memory":
        bench = await _memory_bench(unique_name)
    else:
        bench = await _kafka_bench(unique_name, request.getfixturevalue("kafka_bootstrap"))
    await bench.broker.start()
    yield bench
    await bench.close()


@pytest.fixture
async def both(unique_name: str, kafka_bootstrap: str) -> AsyncIterator[Mapping[str, Bench]]:
    """The two brokers, to be compared."""
    benches = {"memory": await _memory_bench(unique_name), "kafka": await _kafka_bench(unique_name, kafka_bootstrap)}
    for bench in benches.values():
        await bench.broker.start()
    yield benches
    for bench in benches.values():
        await bench.close()


@pytest.fixture(params=KINDS)
async def engine(request: pytest.FixtureRequest, tmp_path: Path, unique_name: str) -> AsyncIterator[AsyncEngine]:
    """A database of the test's own, with the framework's tables."""
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
        else:
            server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
            url = await stack.enter_async_context(fresh_database(server, unique_name[:60]))
        engine = create_async_engine(url)
        stack.push_async_callback(engine.dispose)
        await create_framework_tables(engine)
        yield engine

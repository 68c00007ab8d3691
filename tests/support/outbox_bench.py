"""An outbox under test: a database, a broker, rows that are written, pumps that send them, and what has arrived."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deimos_async.brokers.protocol import Broker, NewTopic, ProducerOptions
from deimos_async.database.leases import SqlSlotLeases
from deimos_async.database.outbox.store import SqlOutboxStore
from deimos_async.database.outbox.writing import insert_rows
from deimos_async.database.tables import kafka_messages
from deimos_async.events import EventBus
from deimos_async.message import InboundRecord, OutboundRecord, TopicPartition
from deimos_async.outbox.pump import OutboxPump, PumpOptions
from deimos_async.outbox.reporting import Reports
from deimos_async.outbox.rows import make_rows
from deimos_async.outbox.shards import LAYOUT, SHARDS, SLOTS
from deimos_async.outbox.signal import OutboxSignal
from deimos_async.service import Supervisor
from deimos_async.telemetry.mock import Mock

DEADLINE = 60.0


class OutboxBench:
    """Tests own the broker and the engine."""

    def __init__(self, engine: AsyncEngine, broker: Broker, topic: str) -> None:
        self.engine = engine
        self.broker = broker
        self.topic = topic
        self.events = EventBus()
        self.metrics = Mock()
        self.signal = OutboxSignal()

    async def create(self, topic: str | None = None, partitions: int = 3, **config: str) -> str:
        name = topic or self.topic
        await self.broker.create_topics([NewTopic(name, partitions, config=config)])
        return name

    def pump(self, *, worker: str | None = None, **options: Any) -> OutboxPump:
        worker = worker or uuid.uuid4().hex
        ttl = options.get("lease_ttl", 5.0)
        producer = options.pop("producer", ProducerOptions(delivery_timeout=30.0))
        parking, monotonic = options.pop("parking", None), options.pop("monotonic", time.monotonic)
        return OutboxPump(
            SqlOutboxStore(self.engine, shards=SHARDS),
            SqlSlotLeases(self.engine, worker=worker, slots=SLOTS, layout=LAYOUT, ttl=ttl),
            {"default": self.broker},
            PumpOptions(producer=producer, **options),
            worker=worker,
            cluster_of=lambda topic: "default",
            signal=self.signal,
            reports=Reports(
                metrics=self.metrics,
                events=self.events,
                tracing=self.metrics,
                is_logged=lambda topic: False,
                describe=_describe,
                interval=0.2,
            ),
            parking=parking,
            monotonic=monotonic,
        )

    @asynccontextmanager
    async def pumping(self, **options: Any) -> AsyncIterator[OutboxPump]:
        """A pump that runs within the block and is drained at its end."""
        pump = self.pump(**options)
        supervisor = Supervisor()
        async with AsyncExitStack() as stack:
            await supervisor.open()
            stack.push_async_callback(supervisor.close)
            await supervisor.start([pump])
            yield pump
            await supervisor.stop(pump, timeout=DEADLINE)
            for error in supervisor.failures.values():
                raise error

    async def write(self, *records: OutboundRecord, notify: bool = True) -> None:
        """Rows in one transaction."""
        async with self.engine.begin() as connection:
            await self.write_in(connection, *records)
        if notify:
            self.signal.wake(range(SHARDS))

    async def write_in(self, connection: AsyncConnection, *records: OutboundRecord) -> None:
        """Rows in somebody's transaction."""
        rows = make_rows(records)
        await connection.run_sync(lambda sync: insert_rows(sync, rows))

    def record(self, key: str | None, value: str, **more: Any) -> OutboundRecord:
        return OutboundRecord(
            more.pop("topic", self.topic), None if key is None else key.encode(), value.encode(), **more
        )

    async def count(self) -> int:
        """Rows that are left."""
        async with self.engine.connect() as connection:
            return int((await connection.execute(sa.select(sa.func.count()).select_from(kafka_messages))).scalar_one())

    async def arrived(self, topic: str | None = None) -> list[InboundRecord]:
        """Everything in a topic, partition after partition."""
        name = topic or self.topic
        info = (await self.broker.topics([name]))[name]
        partitions = [TopicPartition(name, number) for number in range(info.partitions)]
        ends = await self.broker.end_offsets(partitions)
        found: list[InboundRecord] = []
        async with aclosing(self.broker.read({id_: (0, end) for id_, end in ends.items()})) as reading:
            async for records in reading:
                found += records
        return found

    async def values(self, topic: str | None = None) -> dict[bytes | None, list[str]]:
        """Values that have arrived, in order, by key."""
        found: dict[bytes | None, list[str]] = {}
        for record in sorted(await self.arrived(topic), key=lambda record: (record.partition, record.offset)):
            found.setdefault(record.key, []).append("" if record.value is None else record.value.decode())
        return found

    async def until_empty(self, pump: OutboxPump | None = None) -> None:
        """Wait until no row is left."""
        await self.until(pump, lambda left: left == 0)

    async def until(self, pump: OutboxPump | None, is_done: Callable[[int], bool]) -> None:
        """Wait until the number of rows that are left is right."""
        async with asyncio.timeout(DEADLINE):
            changed = asyncio.Event()
            if pump is not None:
                pump.on_change = changed.set
            while True:
                changed.clear()
                if is_done(await self.count()):
                    return
                await self.a_moment(changed)

    async def a_moment(self, changed: asyncio.Event | None = None) -> None:
        """Between two looks at what other processes do, which do not tell us; less if something changes here."""
        try:
            async with asyncio.timeout(0.2):
                await (changed or asyncio.Event()).wait()
        except TimeoutError:
            pass


async def _describe(row: object) -> object:
    return row


def firsts(values: Sequence[str]) -> list[str]:
    """Without repetitions: each value where it came first."""
    return list(dict.fromkeys(values))

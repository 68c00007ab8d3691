"""Effectively once, with Kafka and PostgreSQL or MariaDB: words are counted, and no fault makes a sum wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest
from fault_proxy import TcpProxy
from servers.ports import HOST, free_port
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deimos_async import Backoff, Deimos, Key, Message, OnError, TopicPartition
from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import NewTopic, ProducerOptions
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import kafka_offsets
from deimos_async.message import OutboundRecord

DEADLINE = 90.0
PARTITIONS = 4
WORDS = 7
QUICK = OnError(attempts=2, backoff=Backoff(0.01, 0.1))

Handle = Callable[[list[Message[Any]]], Awaitable[None]]


class Stage:
    """A topic, a table of counts, and the applications that count."""

    def __init__(self, name: str, kafka: str, database: str) -> None:
        self.name = name
        self.kafka = kafka
        self.database = database
        self.engine = create_async_engine(database)
        self.topic = f"{name}.words"
        self.group = f"{name}.g"
        self.counts = sa.Table(
            f"{name}_counts",
            sa.MetaData(),
            sa.Column("word", sa.String(20), primary_key=True),
            sa.Column("n", sa.Integer, nullable=False),
        )
        self.broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka))
        self.sent: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()

    async def open(self) -> None:
        await create_framework_tables(self.engine)
        async with self.engine.begin() as connection:
            await connection.run_sync(self.counts.metadata.create_all)
            await connection.execute(sa.insert(self.counts), [{"word": f"w{n}", "n": 0} for n in range(WORDS)])
        await self.broker.create_topics([NewTopic(self.topic, PARTITIONS), NewTopic(f"{self.topic}-dlt", PARTITIONS)])

    async def close(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self.counts.metadata.drop_all)
            await connection.execute(sa.delete(kafka_offsets).where(kafka_offsets.c.consumer_group == self.group))
        await self.engine.dispose()

    async def send(self, count: int) -> None:
        records = []
        for number in range(count):
            word, partition = f"w{number % WORDS}", number % PARTITIONS
            self.sent[word] += 1
            self.ends[partition] += 1
            records.append(OutboundRecord(self.topic, key=None, value=word.encode(), partition=partition))
        producer = self.broker.producer(ProducerOptions())
        await producer.start()
        try:
            await producer.send(records)
        finally:
            await producer.stop()

    def app(
        self,
        *,
        batch: bool,
        handle: Handle | None = None,
        database: str | None = None,
        on_engine: Callable[[AsyncEngine], None] | None = None,
    ) -> Deimos:
        """One member, which calls `handle` before it counts."""
        engine = create_async_engine(database or self.database, pool_pre_ping=True)
        if on_engine is not None:
            on_engine(engine)
        app = Deimos(
            {
                "kafka.bootstrap_servers": self.kafka,
                "producers.topic_prefix": f"{self.name}.",
                "consumers.commit_interval": 0.1,
                "consumers.heartbeat_interval": 0.2,
                "consumers.shutdown_timeout": 10.0,
            },
            engine=engine,
            metrics=None,
            tracing=None,
        )
        words = app.topic("words", schema_backend="plain", key=Key.none(), on_error=QUICK)
        counts = self.counts

        async def add(messages: list[Message[Any]], session: AsyncSession) -> None:
            if handle is not None:
                await handle(messages)
            # In one order: else transactions of different partitions would wait for each other.
            for word, n in sorted(Counter(message.payload.decode() for message in messages).items()):
                await session.execute(sa.update(counts).where(counts.c.word == word).values(n=counts.c.n + n))

        if batch:

            @app.consumer(
                words, group="g", delivery="effectively_once", batch=True, max_batch=20, max_wait=0.0, concurrency=2
            )
            async def count_all(messages: list[Message], session: AsyncSession) -> None:
                await add(messages, session)
        else:

            @app.consumer(words, group="g", delivery="effectively_once", concurrency=2)
            async def count(message: Message, session: AsyncSession) -> None:
                await add([message], session)

        return app

    async def stored(self) -> dict[int, int]:
        rows = sa.select(kafka_offsets.c.topic_partition, kafka_offsets.c.next_offset).where(
            kafka_offsets.c.consumer_group == self.group
        )
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(rows)}

    async def finished(self) -> None:
        """Wait until the stored offsets are at the ends."""
        async with asyncio.timeout(DEADLINE):
            while await self.stored() != self.ends:
                pass

    async def check(self) -> None:
        """Every word was counted as often as it was sent; nothing was put aside; Kafka's offsets have followed."""
        async with self.engine.connect() as connection:
            counted = {row[0]: row[1] for row in await connection.execute(sa.select(self.counts))}
        assert counted == self.sent
        letters = await self.broker.end_offsets(TopicPartition(f"{self.topic}-dlt", n) for n in range(PARTITIONS))
        assert sum(letters.values()) == 0
        committed = await self.broker.group_offsets(self.group)
        assert committed == {TopicPartition(self.topic, partition): end for partition, end in self.ends.items()}


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.services("postgres")),
        pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
    ]
)
async def stage(request: pytest.FixtureRequest, unique_name: str, kafka_bootstrap: str) -> AsyncIterator[Stage]:
    url = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    stage = Stage(unique_name, kafka_bootstrap, url)
    await stage.open()
    yield stage
    await stage.close()


BOTH = pytest.mark.parametrize("batch", [False, True], ids=["messages", "batches"])


@BOTH
async def test_members_that_join_and_leave_amid_their_work_count_each_message_once(stage: Stage, batch: bool) -> None:
    working = asyncio.Event()

    async def handle(messages: list[Message[Any]]) -> None:
        working.set()

    async def amid_work() -> None:
        working.clear()
        async with asyncio.timeout(DEADLINE):
            await working.wait()

    async with stage.app(batch=batch, handle=handle).running():
        for _ in range(3):
            await stage.send(200)
            await amid_work()
            async with stage.app(batch=batch, handle=handle).running():
                await stage.send(50)
                await amid_work()
        await stage.finished()
    await stage.check()


@BOTH
@pytest.mark.parametrize("is_sent", [False, True], ids=["before", "after"])
async def test_connection_cut_around_commits_counts_each_message_once(stage: Stage, batch: bool, is_sent: bool) -> None:
    url = sa.make_url(stage.database)
    assert url.port is not None
    port = free_port()
    cuts = 0

    async with TcpProxy(port, (url.host or HOST, url.port)) as proxy:

        def break_commits(engine: AsyncEngine) -> None:
            commits = 0

            @sa.event.listens_for(engine.sync_engine, "commit")
            def cut(connection: sa.Connection) -> None:
                nonlocal commits, cuts
                commits += 1
                if commits % 6 == 5 and cuts < 8:
                    cuts += 1
                    if is_sent:
                        proxy.cut_at_answer()
                    else:
                        proxy.cut()
                        proxy.heal()

        through = url.set(host=HOST, port=port).render_as_string(hide_password=False)
        await stage.send(200 if batch else 100)
        async with stage.app(batch=batch, database=through, on_engine=break_commits).running():
            await stage.finished()
    assert cuts >= (2 if batch else 8)
    await stage.check()


@BOTH
async def test_member_thrown_out_amid_a_transaction_is_refused_its_commit(
    stage: Stage, batch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()

    async def wait(messages: list[Message[Any]]) -> None:
        entered.set()
        await opened.wait()

    await stage.send(40)
    older = stage.app(batch=batch, handle=wait)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(older.running())
        async with asyncio.timeout(DEADLINE):
            await entered.wait()
        await throw_out(stage, older)
        await stack.enter_async_context(stage.app(batch=batch).running())
        await stage.finished()
        opened.set()
        await stage.send(40)
        await stage.finished()
    assert "the stored offset is not 0 any more, so somebody else has moved it" in caplog.text
    await stage.check()


async def throw_out(stage: Stage, app: Deimos) -> None:
    """As the coordinator does with a member whose session has ended, without the wait for that."""
    running = app._running
    assert running is not None
    [watched] = running._runners
    member: Any = watched._member
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.kafka)
    await admin.start()
    try:
        coordinator = await admin.find_coordinator(stage.group)
        response = await admin._send_request(LeaveGroupRequest(stage.group, member._consumer._member_id), coordinator)
        assert response.error_code == 0
    finally:
        await admin.close()


async def test_topic_that_was_deleted_and_made_again_stops_the_consumer(stage: Stage) -> None:
    await stage.send(40)
    async with stage.app(batch=True).running():
        await stage.finished()
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.kafka)
    await admin.start()
    await admin.delete_topics([stage.topic])
    await admin.close()
    async with asyncio.timeout(DEADLINE):
        while await stage.broker.topics([stage.topic]):
            pass
    await stage.broker.create_topics([NewTopic(stage.topic, PARTITIONS)])
    before = await stage.stored()
    await stage.send(80)
    again = stage.app(batch=True)
    async with again.running(), asyncio.timeout(DEADLINE):
        await again.wait_failed()
    [error] = again.failures.values()
    assert "the topic was deleted and made again: the stored offset 10 is of topic id " in str(error)
    assert await stage.stored() == before

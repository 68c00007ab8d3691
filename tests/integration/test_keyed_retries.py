"""`then="retry_keyed"` with Kafka and PostgreSQL or MariaDB: no fault changes the order of a key, or a sum."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.group import LeaveGroupRequest
from fault_proxy import TcpProxy
from keyed_member import consume, table
from servers.ports import HOST, free_port
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async import Deimos, TopicPartition
from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import NewTopic, ProducerOptions
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import kafka_offsets, kafka_retries
from deimos_async.message import OutboundRecord

DEADLINE = 60.0
PARTITIONS = 3
KEYS = [f"k{number}" for number in range(12)]
SUPPORT = Path(__file__).parents[1] / "support"


class Stage:
    """A topic, a table of what was handled, and the applications that handle it."""

    def __init__(self, name: str, kafka: str, database: str) -> None:
        self.name = name
        self.kafka = kafka
        self.database = database
        self.engine = create_async_engine(database)
        self.topic = f"{name}.words"
        self.group = f"{name}.g"
        self.written = table(f"{name}_written")
        self.broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka))
        self.sent = dict.fromkeys(KEYS, 0)
        self.ends = dict.fromkeys(range(PARTITIONS), 0)

    async def open(self) -> None:
        await create_framework_tables(self.engine)
        async with self.engine.begin() as connection:
            await connection.run_sync(self.written.metadata.create_all)
        await self.broker.create_topics([NewTopic(self.topic, PARTITIONS), NewTopic(f"{self.topic}-dlt", PARTITIONS)])

    async def close(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self.written.metadata.drop_all)
            for each in (kafka_offsets, kafka_retries):
                await connection.execute(sa.delete(each).where(each.c.consumer_group == self.group))
        await self.engine.dispose()

    async def send(self, count: int) -> None:
        """So many messages, the same number of each key."""
        records = []
        for number in range(count):
            place = number % len(KEYS)
            key, partition = KEYS[place], place % PARTITIONS
            records.append(
                OutboundRecord(self.topic, key=key.encode(), value=str(self.sent[key]).encode(), partition=partition)
            )
            self.sent[key] += 1
            self.ends[partition] += 1
        producer = self.broker.producer(ProducerOptions())
        await producer.start()
        try:
            await producer.send(records)
        finally:
            await producer.stop()

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "kafka.bootstrap_servers": self.kafka,
            "producers.topic_prefix": f"{self.name}.",
            "consumers.commit_interval": 0.1,
            "consumers.session_timeout": 3.0,
            "consumers.heartbeat_interval": 0.2,
            "consumers.shutdown_timeout": 10.0,
            "consumers.keyed_retries.backoff_initial": 0.01,
            "consumers.keyed_retries.backoff_maximum": 0.1,
            "consumers.keyed_retries.attempts": 1000,
        }

    def app(
        self,
        *,
        batch: bool,
        fails: float = 0.2,
        database: str | None = None,
        on_engine: Callable[[AsyncEngine], None] | None = None,
    ) -> Deimos:
        engine = create_async_engine(database or self.database, pool_pre_ping=True)
        if on_engine is not None:
            on_engine(engine)
        app = Deimos(self.settings, engine=engine, metrics=None, tracing=None)
        consume(app, self.written.name, batch=batch, fails=fails)
        return app

    async def process(self, log: Path, *, batch: bool) -> Process:
        """A member of its own, which writes its log into a file."""
        # A transaction of one that is frozen holds up nobody for longer than its session lasts.
        database = {"database.url": self.database, "database.idle_transaction_timeout": 3}
        variables = {
            "DEIMOS_" + name.upper().replace(".", "__"): str(value)
            for name, value in (self.settings | database).items()
        }
        variables |= {"KEYED_TABLE": self.written.name, "KEYED_BATCH": "1" if batch else "", "PYTHONPATH": str(SUPPORT)}
        command = [sys.executable, "-m", "deimos_async", "run", "keyed_member:app"]
        with log.open("ab") as file:
            return await asyncio.create_subprocess_exec(
                *command, env={**os.environ, **variables}, stdin=DEVNULL, stdout=file, stderr=file
            )

    async def count(self) -> int:
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(sa.func.count()).select_from(self.written))).scalar_one()

    async def waiting(self) -> int:
        rows = sa.select(sa.func.count()).where(kafka_retries.c.consumer_group == self.group)
        async with self.engine.connect() as connection:
            return (await connection.execute(rows)).scalar_one()

    async def stored(self) -> Mapping[int, int]:
        rows = sa.select(kafka_offsets.c.topic_partition, kafka_offsets.c.next_offset).where(
            kafka_offsets.c.consumer_group == self.group
        )
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(rows)}

    async def until_written(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while await self.count() < count:
                pass

    async def finished(self) -> None:
        """Wait until the stored offsets are at the ends, and nothing waits."""
        async with asyncio.timeout(DEADLINE):
            while await self.stored() != self.ends or await self.waiting():
                pass

    async def check(self) -> None:
        """Every message was written once, those of a key in their order; nothing was put aside."""
        rows = sa.select(self.written.c.word_key, self.written.c.number).order_by(self.written.c.n)
        found: dict[str, list[int]] = {key: [] for key in KEYS}
        async with self.engine.connect() as connection:
            for key, number in await connection.execute(rows):
                found[key].append(number)
        assert found == {key: list(range(count)) for key, count in self.sent.items()}
        letters = await self.broker.end_offsets(TopicPartition(f"{self.topic}-dlt", n) for n in range(PARTITIONS))
        assert sum(letters.values()) == 0


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
async def test_members_that_come_and_go_keep_the_order_of_each_key(stage: Stage, batch: bool) -> None:
    await stage.send(240)
    async with stage.app(batch=batch).running():
        await stage.until_written(40)
        async with stage.app(batch=batch).running():
            await stage.until_written(100)
        await stage.send(120)
        async with stage.app(batch=batch).running():
            await stage.until_written(200)
        await stage.finished()
    await stage.check()


@BOTH
async def test_member_that_is_thrown_out_amid_retries_keeps_the_order_of_each_key(stage: Stage, batch: bool) -> None:
    await stage.send(240)
    older = stage.app(batch=batch, fails=0.4)
    async with older.running():
        await stage.until_written(40)
        await throw_out(stage, older)
        async with stage.app(batch=batch).running():
            await stage.until_written(120)
            await stage.send(60)
            await stage.finished()
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


@BOTH
@pytest.mark.parametrize("is_sent", [False, True], ids=["before", "after"])
async def test_connection_cut_around_commits_keeps_the_order_of_each_key(
    stage: Stage, batch: bool, is_sent: bool
) -> None:
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
                if commits % 7 == 6 and cuts < 8:
                    cuts += 1
                    if is_sent:
                        proxy.cut_at_answer()
                    else:
                        proxy.cut()
                        proxy.heal()

        through = url.set(host=HOST, port=port).render_as_string(hide_password=False)
        await stage.send(120)
        async with stage.app(batch=batch, database=through, on_engine=break_commits).running():
            await stage.finished()
    assert cuts >= 4
    await stage.check()


@BOTH
async def test_members_killed_and_frozen_amid_retries_keep_the_order_of_each_key(
    stage: Stage, batch: bool, tmp_path: Path
) -> None:
    log = tmp_path / "members.log"
    members = [await stage.process(log, batch=batch) for _ in range(2)]
    try:
        await stage.send(96)
        await stage.until_written(30)
        killed = members.pop(0)
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        members.append(await stage.process(log, batch=batch))
        await stage.send(96)
        await stage.until_written(120)
        members[0].send_signal(signal.SIGSTOP)  # for longer than its session lasts: the other one takes over
        await stage.send(96)
        await stage.until_written(240)
        members[0].send_signal(signal.SIGCONT)
        await stage.send(96)
        await stage.finished()
        await stage.check()
    finally:
        for member in members:
            if member.returncode is None:
                member.send_signal(signal.SIGCONT)
                member.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            statuses = [await member.wait() for member in members]
        print(log.read_text()[-20_000:])  # shown where the test fails
    assert statuses == [0, 0]

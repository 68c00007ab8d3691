"""Pollers as processes on a real broker: they share the tables, and one that dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import fresh_database
from source_bench import WIDGET
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import NewTopic
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import deimos_poll_info
from deimos_async.message import TopicPartition

SUPPORT = Path(__file__).parents[1] / "support"
SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.services("postgres")),
    pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
]
DEADLINE = 90.0
ROWS = 40
"""Rows of a table."""


class Bench:
    """A database with tables that are polled, and what has arrived in their topics."""

    def __init__(self, url: str, broker: KafkaBroker, bootstrap: str, topic: str, folder: Path, app: Any) -> None:
        self.url = url
        self.broker = broker
        self.bootstrap = bootstrap
        self.topic = topic
        self.folder = folder
        self.app = app
        self.engine = create_async_engine(url)
        self.versions: dict[tuple[str, int], int] = {}
        """Of each row, as it was committed last."""
        self.changes = 0

    @asynccontextmanager
    async def program(self, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deimos_async",
            "poller",
            "poller_app:app",
            "--log-level",
            "warning",
            *options,
            env={
                **os.environ,
                "PYTHONPATH": str(SUPPORT),
                "POLLER_TOPIC": self.topic,
                "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
                "DEIMOS_DATABASE__URL": self.url,
                "DEIMOS_SCHEMA__PATH": str(self.folder),
            },
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def change(self, table: str, id: int) -> None:
        """Insert or change a row, stamped before it is committed."""
        model = self.app.MODELS[table].__table__
        version = self.versions.get((table, id), 0) + 1
        values = {"some_int": version, "updated_at": datetime.now(UTC).replace(tzinfo=None)}
        async with self.engine.begin() as connection:
            if version == 1:
                await connection.execute(sa.insert(model).values(id=id, **values))
            else:
                await connection.execute(sa.update(model).where(model.c.id == id).values(values))
        self.versions[table, id] = version
        self.changes += 1

    async def arrived(self) -> list[tuple[str, int, int, int]]:
        """Table, key, version, and who has sent it."""
        found = []
        for table in self.app.TABLES:
            name = self.topic + table
            ends = await self.broker.end_offsets([TopicPartition(name, 0)])
            codec = self.app.app.codec(name)
            async with aclosing(self.broker.read({id_: (0, end) for id_, end in ends.items()})) as reading:
                async for records in reading:
                    for record in records:
                        payload = await codec.decode_payload(record.value)
                        found.append((table, payload["id"], payload["some_int"], int(payload["name"])))
        return found

    async def until_sent_by(self, *processes: asyncio.subprocess.Process) -> None:
        """Change rows until each of these has sent some from now on."""
        before = len(await self.arrived())
        wanted = {process.pid for process in processes}
        async with asyncio.timeout(DEADLINE):
            while not wanted <= {sender for *_, sender in (await self.arrived())[before:]}:
                for table in self.app.TABLES:
                    await self.change(table, self.changes % ROWS)

    async def until_complete(self) -> list[tuple[str, int, int, int]]:
        """Wait until the last message of each key says what the row says; returns all messages."""
        async with asyncio.timeout(DEADLINE):
            while True:
                found = await self.arrived()
                if {(table, key): version for table, key, version, _ in found} == self.versions:
                    return found


@pytest.fixture(params=SERVERS)
async def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    unique_name: str,
    kafka_bootstrap: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka_bootstrap))
    await broker.start()
    folder = tmp_path / "com" / "acme"
    folder.mkdir(parents=True)
    (folder / "Widget.avsc").write_text(json.dumps(WIDGET))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.stop)
        server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "own_mariadb_url")
        url = await stack.enter_async_context(fresh_database(server, unique_name[:60]))
        topic = f"{unique_name}."
        monkeypatch.setenv("POLLER_TOPIC", topic)
        monkeypatch.setenv("DEIMOS_SCHEMA__PATH", str(tmp_path))
        monkeypatch.delitem(sys.modules, "poller_app", raising=False)
        app = import_module("poller_app")
        monkeypatch.delitem(sys.modules, "poller_app")
        bench = Bench(url, broker, kafka_bootstrap, topic, tmp_path, app)
        stack.push_async_callback(bench.engine.dispose)
        await create_framework_tables(bench.engine)
        async with bench.engine.begin() as connection:
            await connection.run_sync(app.Base.metadata.create_all)
        await broker.create_topics([NewTopic(topic + table, 1) for table in app.TABLES])
        yield bench


async def test_killed_poller_is_replaced_and_the_topic_ends_as_the_table(bench: Bench) -> None:
    page = bench.app.PAGE
    async with bench.program() as first, bench.program() as second:
        await bench.until_sent_by(first, second)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        await bench.until_sent_by(second)
        found = await bench.until_complete()
    duplicates = len(found) - len({message[:3] for message in found})
    assert duplicates <= page * len(bench.app.TABLES)


async def test_poller_that_is_asked_to_stop_hands_over_without_sending_twice(bench: Bench) -> None:
    async with bench.program() as first, bench.program() as second:
        await bench.until_sent_by(first, second)
        first.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await first.wait() == 0
        await bench.until_sent_by(second)
        found = await bench.until_complete()
        second.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await second.wait() == 0
    assert len(found) == len({message[:3] for message in found})
    async with bench.engine.connect() as connection:
        owners = await connection.execute(sa.select(deimos_poll_info.c.owner))
        assert list(owners.scalars()) == [None, None]


async def test_backfill_by_several_processes_ends_when_everything_was_sent(bench: Bench) -> None:
    model = bench.app.MODELS["widgets"].__table__
    old = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    rows = [{"id": n, "some_int": 1, "updated_at": old} for n in range(2000)]
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(model), rows)
    options = ("--backfill", "widgets", "--chunk-rows", "100")
    async with bench.program(*options) as first, bench.program(*options) as second:
        async with asyncio.timeout(DEADLINE):
            assert [await first.wait(), await second.wait()] == [0, 0]
    found = await bench.arrived()
    assert sorted(key for _, key, _, _ in found) == list(range(2000))

"""The outbox is written the same way on PostgreSQL, MariaDB and SQLite: what commits is stored, and nothing else.

Names of the items are those of the parity list, part B, sections 1.1 and 1.2.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import fresh_database
from sqlalchemy import event, exc, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from deimos_async import (
    ConfigurationError,
    DatabaseUnavailableError,
    Deimos,
    EncodeError,
    Key,
    LifecycleError,
    Message,
    OnError,
    Producer,
)
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.outbox.protocol import NewRow
from deimos_async.database.outbox.writing import insert_rows
from deimos_async.database.tables import kafka_messages, kafka_topic_info
from deimos_async.message import OutboundRecord
from deimos_async.outbox.rows import decode_headers, make_rows
from deimos_async.outbox.shards import LAYOUT, order_hash, shard_of
from deimos_async.outbox.signal import CHANNEL, parse_notice
from deimos_async.producing.outlet import Outgoing, Outlets, StoringBackend, is_storing
from deimos_async.telemetry.mock import Mock

DEADLINE = 30.0
"""Seconds after which a wait has failed."""

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))
THING = {
    "type": "record",
    "name": "Thing",
    "namespace": "com.acme",
    "fields": [{"name": "id", "type": "string"}, {"name": "amount", "type": "int"}],
}
Columns = kafka_messages.c


@pytest.fixture(params=["sqlite", POSTGRESQL, MARIADB])
async def url(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[str]:
    """A database of the test's own."""
    if request.param == "sqlite":
        opened: AbstractAsyncContextManager[str] = nullcontext(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    else:
        server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
        opened = fresh_database(server, unique_name)
    async with opened as url:
        yield url


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(url)
    await create_framework_tables(made)
    yield made
    await made.dispose()


@pytest.fixture
def telemetry() -> Mock:
    return Mock()


@pytest.fixture
def make_app(engine: AsyncEngine, telemetry: Mock, tmp_path: Path) -> Callable[..., Deimos]:
    """An application in memory with a real database; producers use the outbox."""
    folder = tmp_path / "schemas" / "com" / "acme"
    folder.mkdir(parents=True)
    (folder / "Thing.avsc").write_text(json.dumps(THING))
    settings = {"embedded": True, "schema.path": str(tmp_path / "schemas"), "producers.backend": "outbox"}

    def made(more: dict[str, Any] | None = None, **arguments: Any) -> Deimos:
        options: dict[str, Any] = {"engine": engine, "metrics": telemetry, "tracing": None} | arguments
        return Deimos(settings | (more or {}), **options)

    return made


@pytest.fixture
def app(make_app: Callable[..., Deimos]) -> Deimos:
    return make_app()


def things(app: Deimos, *arguments: Any, **options: Any) -> Producer:
    return app.producer(app.topic("things", schema="com.acme.Thing", key=Key.field("id")), *arguments, **options)


def plain(app: Deimos, **options: Any) -> Producer:
    return app.producer(app.topic("notes", schema_backend="plain", key=Key.plain()), **options)


async def stored(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(select(kafka_messages).order_by(Columns.id)))


async def values(engine: AsyncEngine) -> list[bytes | None]:
    return [row.message for row in await stored(engine)]


async def sent(app: Deimos) -> int:
    """Messages that have reached the broker."""
    running = app._running
    assert running is not None
    broker = running.brokers["default"]
    return sum([topic.partitions and await _size(broker, topic) for topic in (await broker.topics()).values()])


async def _size(broker: Any, topic: Any) -> int:
    from deimos_async.message import TopicPartition

    ends = await broker.end_offsets([TopicPartition(topic.name, number) for number in range(topic.partitions)])
    return sum(ends.values())


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """The SQL of the block."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        seen.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", note)


# --- B-001, B-007, B-008: what a row holds ---------------------------------------------------------------------------


async def test_messages_become_rows_in_order_and_nothing_is_sent(
    make_app: Callable[..., Deimos], engine: AsyncEngine
) -> None:
    app = make_app({"producers.topic_prefix": "test."})
    producer = things(app)
    async with app.running(only=("producers",)):
        payloads = [{"id": f"k{number}", "amount": number} for number in range(3)]
        assert await producer.produce_many([{"payload": payload} for payload in payloads]) is None
        rows = await stored(engine)
        codec = app.codec("things")
        assert [await codec.decode_payload(row.message) for row in rows] == payloads
        assert [await codec.decode_key(row.key) for row in rows] == ["k0", "k1", "k2"]
        assert [row.key for row in rows] == [await codec.encode_key(f"k{number}") for number in range(3)]
        assert await sent(app) == 0
    assert {row.topic for row in rows} == {"test.things"}
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    for row in rows:
        assert row.order_hash == order_hash("test.things", row.key)
        assert row.shard == shard_of(row.order_hash)
        assert row.size == len(row.message) + len(row.key)
        assert (row.partition_key, row.order_key, row.headers, row.kafka_partition) == (None, None, None, None)
        assert row.timestamp_ms is None
    assert len({row.message_id for row in rows}) == 3


async def test_times_are_the_databases_and_in_utc(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)):
        await producer.produce(b"x", key="k")
    (row,) = await stored(engine)
    assert row.created_at.tzinfo is None
    assert row.created_at == row.updated_at
    # Servers of tests run on this machine.
    assert abs(row.created_at.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=5)


async def test_tombstone_and_message_without_key(app: Deimos, engine: AsyncEngine) -> None:
    """B-011, B-012."""
    keyed = things(app)
    keyless = app.producer(app.topic("events", schema="com.acme.Thing", key=Key.none()))
    async with app.running(only=("producers",)):
        await keyed.delete("k")
        for _ in range(2):
            await keyless.produce({"id": "a", "amount": 1})
        expected = await app.codec("things").encode_key("k")
    tombstone, *others = await stored(engine)
    assert (tombstone.message, tombstone.key) == (None, expected)
    assert [(row.key, row.partition_key, row.order_key) for row in others] == [(None, None, None)] * 2
    assert all(row.shard == shard_of(row.order_hash) for row in others)


async def test_partition_key_decides_the_shard(app: Deimos, engine: AsyncEngine) -> None:
    """B-013; the key alone needs no copy in that column."""

    class ByAmount(Producer):
        def partition_key(self, payload: Any) -> str:
            return f"amount-{payload['amount']}"

    hooked = things(app, ByAmount)
    async with app.running(only=("producers",)):
        await hooked.produce({"id": "a", "amount": 7})
        await hooked.produce({"id": "b", "amount": 7})
        await hooked.produce({"id": "c", "amount": 7}, partition_key=b"\xff\0")
    one, two, three = await stored(engine)
    assert (one.partition_key, two.partition_key, three.partition_key) == ("amount-7", "amount-7", None)
    assert (one.order_key, two.order_key, three.order_key) == (None, None, b"\xff\0")
    assert one.shard == two.shard == shard_of(order_hash("things", b"amount-7") or 0)
    assert three.order_hash == order_hash("things", b"\xff\0")


async def test_bytes_are_stored_as_they_are(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    awkward = [bytes(range(256)), b"100 % of '\"\\%s \0\x1a", b"", "Zürich ✓ \U0001f600".encode(), b"'" * 10_000]
    async with app.running(only=("producers",)):
        await producer.produce_many([{"payload": value, "key": "k%s\\'\0"} for value in awkward if value])
        await producer.produce(b"", key="empty")
    rows = await stored(engine)
    assert [row.message for row in rows] == [value for value in awkward if value] + [b""]
    assert {row.key for row in rows[:-1]} == {b"k%s\\'\0"}


async def test_large_values_are_stored_in_as_many_statements_as_fit(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    large = [bytes([number]) * 900_000 for number in range(1, 4)] + [b"\0" * 6_000_000]
    async with app.running(only=("producers",)):
        await producer.produce_many([{"payload": value, "key": "k"} for value in large])
    assert await values(engine) == large


# --- headers and timestamp: what Deimos's table had no room for ------------------------------------------------------


async def test_headers_and_timestamp_are_kept_and_reserved_names_left_out(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    given = [
        ("a", "ä"), ("a", b"\xff"), ("none", None), ("deimos-message-id", "old"), ("deimos-seq", "7"),
        ("deimos-dlq-topic", "x"), ("deimos-enqueued-at", "y"),
    ]  # fmt: skip
    async with app.running(only=("producers",)):
        await producer.produce(
            b"x", key="k", headers=given, timestamp=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
        )
    (row,) = await stored(engine)
    assert decode_headers(row.headers) == [("a", "ä".encode()), ("a", b"\xff"), ("none", None)]
    assert row.timestamp_ms == 1767323045678
    assert row.size == len(b"xk") + len(row.headers)


async def test_trace_crosses_the_outbox(make_app: Callable[..., Deimos], telemetry: Mock, engine: AsyncEngine) -> None:
    app = make_app(tracing=telemetry)
    producer = plain(app)
    async with app.running(only=("producers",)):
        await producer.produce_many([{"payload": b"x", "key": "a"}, {"payload": b"y", "key": "b"}])
        async with app.transaction():
            await producer.produce(b"z", key="c")
    spans = [span for span in telemetry.spans if span.kind == "producer"]
    carried = [dict(decode_headers(row.headers))["traceparent"] for row in await stored(engine)]
    assert [value is not None and value.split(b"-")[2].decode() for value in carried] == [
        spans[0].span_id,
        spans[0].span_id,
        spans[1].span_id,
    ]


@pytest.mark.parametrize("within", [False, True])
async def test_headers_beyond_the_limits_are_an_error_and_store_nothing(
    app: Deimos, engine: AsyncEngine, *, within: bool
) -> None:
    producer = plain(app)
    messages = [{"payload": b"x", "key": "k"}, {"payload": b"x", "key": "k", "headers": {"bad name": "secret"}}]
    async with app.running(only=("producers",)):
        if within:
            async with app.transaction():
                with pytest.raises(EncodeError, match=r"topic 'notes'.*header 'bad name' cannot be stored") as told:
                    await producer.produce_many(messages)
        else:
            with pytest.raises(EncodeError, match=r"topic 'notes'.*header 'bad name' cannot be stored") as told:
                await producer.produce_many(messages)
    assert "secret" not in str(told.value)
    assert await stored(engine) == []


# --- B-009, B-010: all or nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [False, True])
async def test_bad_message_in_a_list_stores_nothing_of_it(app: Deimos, engine: AsyncEngine, *, within: bool) -> None:
    producer = things(app)
    bad = [{"payload": {"id": "a", "amount": 1}}, {"payload": {"id": "b", "amount": "many"}}]
    async with app.running(only=("producers",)):
        if within:
            async with app.transaction():
                await producer.produce({"id": "before", "amount": 0})
                with pytest.raises(EncodeError, match="amount"):
                    await producer.produce_many(bad)
        else:
            with pytest.raises(EncodeError, match="amount"):
                await producer.produce_many(bad)
    assert len(await stored(engine)) == int(within)


async def test_transaction_stores_at_its_commit_and_never_after_a_rollback(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)):
        with pytest.raises(ZeroDivisionError):
            async with app.transaction():
                await producer.produce(b"rolled back", key="k")
                raise ZeroDivisionError
        with statements(engine) as seen:
            async with app.transaction() as session:
                assert await producer.produce(b"1", key="k") is None
                await session.execute(text("SELECT 1"))
                await producer.produce_many([{"payload": b"2", "key": "k"}, {"payload": b"3", "key": "k"}])
                assert not any("kafka_messages" in statement for statement in seen)
                assert await stored(engine) == []
    assert len([statement for statement in seen if statement.startswith("INSERT INTO kafka_messages")]) == 1
    assert await values(engine) == [b"1", b"2", b"3"]


async def test_savepoint_that_rolls_back_stores_nothing_of_its_own(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)), app.transaction():
        await producer.produce(b"outer", key="k")
        with pytest.raises(ZeroDivisionError):
            async with app.transaction():
                await producer.produce(b"dropped", key="k")
                raise ZeroDivisionError
        async with app.transaction():
            await producer.produce(b"released", key="k")
    assert await values(engine) == [b"outer", b"released"]


async def test_session_of_ones_own_decides(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)):
        async with AsyncSession(engine) as session, app.transaction():
            await producer.produce(b"own", key="k", session=session)
            await producer.produce(b"surrounding", key="k")
            await session.rollback()
        async with AsyncSession(engine) as session:
            await producer.produce(b"own", key="k", session=session)
            await session.commit()
    assert await values(engine) == [b"surrounding", b"own"]


@pytest.mark.parametrize("url", [MARIADB], indirect=True)  # the one whose async driver has two-phase commits
async def test_two_phase_commit_stores_before_it_is_prepared(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)):
        for prepared, ended in [(False, "commit"), (True, "commit"), (False, "rollback"), (True, "rollback")]:
            async with AsyncSession(engine, twophase=True) as session:
                await session.execute(text("SELECT 1"))
                await producer.produce(f"{prepared} {ended}".encode(), key="k", session=session)
                if prepared:
                    await session.run_sync(Session.prepare)
                await (session.commit() if ended == "commit" else session.rollback())
    assert await values(engine) == [b"False commit", b"True commit"]


async def test_ended_transaction_takes_nothing(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    ended = asyncio.Event()

    async def later() -> None:
        await ended.wait()
        with pytest.raises(LifecycleError, match="has ended"):
            await producer.produce(b"late", key="k")

    async with app.running(only=("producers",)):
        async with app.transaction():
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        ended.set()
        await task
    assert await stored(engine) == []


async def test_without_a_transaction_messages_are_one_of_their_own(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)), AsyncSession(engine) as session, session.begin():
        await producer.produce(b"by itself", key="k")
        assert await values(engine) == [b"by itself"]
        await session.rollback()
    assert await values(engine) == [b"by itself"]


async def test_handler_with_a_session_stores_with_what_it_writes(
    make_app: Callable[..., Deimos], engine: AsyncEngine
) -> None:
    """The offset of `effectively_once` is in the same transaction, so nothing can be lost or doubled."""
    app = make_app({"consumers.commit_interval": 0.05})
    incoming = app.topic("incoming", schema_backend="plain", key=Key.plain(), partitions=1)
    feed = app.producer(incoming, backend="kafka")
    outgoing = plain(app)
    attempts: list[bytes] = []
    done = asyncio.Event()

    @app.consumer(incoming, group="g", delivery="effectively_once", on_error=OnError(attempts=2, then="skip"))
    async def handle(message: Message[bytes], session: AsyncSession) -> None:
        attempts.append(message.payload)
        await outgoing.produce(b"for " + message.payload, key="k")
        if message.payload == b"bad" or (message.payload == b"flaky" and attempts.count(b"flaky") == 1):
            raise ZeroDivisionError
        if message.payload == b"last":
            done.set()

    async with app.running(only=("producers", "consumers")):
        for payload in (b"one", b"bad", b"flaky", b"last"):
            await feed.produce(payload, key="k")
        async with asyncio.timeout(DEADLINE):
            await done.wait()
    assert attempts == [b"one", b"bad", b"bad", b"flaky", b"flaky", b"last"]
    assert await values(engine) == [b"for one", b"for flaky", b"for last"]


# --- B-014, B-015: what is told --------------------------------------------------------------------------------------


async def test_counter_and_log_line_come_with_the_commit(
    app: Deimos, telemetry: Mock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deimos_async.messages")
    producer, other = plain(app), app.topic("others", schema_backend="plain", key=Key.plain(), payload_log="count")
    async with app.running(only=("producers",)):
        with pytest.raises(ZeroDivisionError):
            async with app.transaction():
                await producer.produce(b"x", key="k")
                raise ZeroDivisionError
        assert telemetry.count("outbox.insert") == 0
        async with app.transaction():
            messages = [{"payload": b"1", "key": "k"}, {"payload": b"2", "key": "k", "topic": other}]
            await producer.produce_many([*messages, {"payload": b"3", "key": "k"}])
            assert telemetry.count("outbox.insert") == 0
            assert "produced to" not in caplog.text
        await producer.produce(b"4", key="k")
    assert telemetry.count("outbox.insert", topic="notes") == 3
    assert telemetry.count("outbox.insert", topic="others") == 1
    assert telemetry.count("deimos.outbox.inserted", topic="notes") == 3
    assert telemetry.count("publish") == 0  # nothing was sent
    lines = [record.getMessage() for record in caplog.records if "produced to" in record.getMessage()]
    assert [line.partition(":")[0] for line in lines] == [
        "produced to notes",
        "produced to others",
        "produced to notes",
    ]
    assert lines[1] == "produced to others: {'payloads_count': 1}"
    assert "b'1'" in lines[0]


# --- B-016, B-017, B-020: which way ----------------------------------------------------------------------------------


async def test_call_and_producer_choose_another_backend(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    direct = things(app, backend="kafka")
    async with app.running(only=("producers",)):
        delivery = await producer.produce(b"direct", key="k", backend="kafka")
        assert delivery is not None
        assert delivery.topic == "notes"
        assert await direct.produce({"id": "a", "amount": 1}) is not None
        assert await stored(engine) == []
        await direct.produce({"id": "a", "amount": 1}, backend="outbox")
    assert [row.topic for row in await stored(engine)] == ["things"]


async def test_many_messages_are_stored_in_order_in_one_statement(app: Deimos, engine: AsyncEngine) -> None:
    """B-017: Deimos took three statements for these."""
    producer = plain(app)
    async with app.running(only=("producers",)):
        with statements(engine) as seen:
            await producer.produce_many([{"payload": b"%d" % number, "key": str(number)} for number in range(1200)])
    assert len([statement for statement in seen if statement.startswith("INSERT INTO kafka_messages")]) == 1
    assert await values(engine) == [b"%d" % number for number in range(1200)]


async def test_disabled_producers_store_nothing(app: Deimos, engine: AsyncEngine) -> None:
    """B-020."""
    one, other = plain(app), things(app)
    async with app.running(only=("producers",)):
        with app.disable_producers():
            await one.produce(b"x", key="k")
        with app.disable_producers(one):
            await one.produce(b"x", key="k")
            await other.produce({"id": "a", "amount": 1})
    assert [row.topic for row in await stored(engine)] == ["things"]


# --- where it works, and where it says why not -----------------------------------------------------------------------


@pytest.fixture
def web_settings(tmp_path: Path) -> dict[str, Any]:
    """Of a process that only serves requests: no broker is at that address."""
    return {"kafka.bootstrap_servers": "127.0.0.1:1", "producers.backend": "outbox", "kafka.connect_timeout": 0.5}


async def test_process_that_only_stores_needs_no_broker(
    web_settings: dict[str, Any], engine: AsyncEngine, telemetry: Mock
) -> None:
    app = Deimos(web_settings, engine=engine, metrics=telemetry, tracing=None)
    producer = plain(app)
    async with app.running(only=("producers",)):
        await producer.produce(b"x", key="k")
        with pytest.raises(ConfigurationError, match="'kafka': this process has no connection to Kafka"):
            await producer.produce(b"x", key="k", backend="kafka")
    assert await values(engine) == [b"x"]


async def test_missing_table_is_told_at_start_with_the_command(web_settings: dict[str, Any], url: str) -> None:
    engine = create_async_engine(url)
    app = Deimos(web_settings, engine=engine, metrics=None, tracing=None)
    plain(app)
    with pytest.raises(ConfigurationError, match=r"no table 'kafka_messages'.*python -m deimos_async migrate"):
        async with app.running(only=("producers",)):
            pass
    await engine.dispose()


async def test_missing_table_is_told_by_the_call_where_nothing_declared_the_outbox(
    make_app: Callable[..., Deimos], url: str
) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(kafka_messages.drop)
    app = make_app({"producers.backend": "kafka"}, engine=engine)
    producer = plain(app)
    async with app.running(only=("producers",)):
        with pytest.raises(ConfigurationError, match="python -m deimos_async migrate"):
            await producer.produce(b"x", key="k", backend="outbox")
        with pytest.raises(ConfigurationError, match="python -m deimos_async migrate"):
            async with app.transaction():
                await producer.produce(b"x", key="k", backend="outbox")
    await engine.dispose()


async def test_table_of_another_layout_is_refused(make_app: Callable[..., Deimos], engine: AsyncEngine) -> None:
    app = make_app()
    producer = plain(app)
    async with app.running(only=("producers",)):
        await producer.produce(b"x", key="k")
    async with engine.begin() as connection:
        owner = select(kafka_topic_info.c.locked_by).where(kafka_topic_info.c.topic == "layout")
        assert await connection.scalar(owner) == LAYOUT
        await connection.execute(
            kafka_topic_info.update().where(kafka_topic_info.c.topic == "layout").values(locked_by="shards=7")
        )
    with pytest.raises(ConfigurationError, match=r"laid out as 'shards=7', this version wants 'shards=64"):
        async with app.running(only=("producers",)):
            pass


async def test_first_processes_at_once_write_the_same_layout(
    make_app: Callable[..., Deimos], engine: AsyncEngine, url: str
) -> None:
    engines = [create_async_engine(url) for _ in range(4)]
    apps = [make_app(engine=each) for each in engines]
    for app in apps:
        plain(app)

    async def start(app: Deimos) -> None:
        async with app.running(only=("producers",)):
            pass

    await asyncio.gather(*map(start, apps))
    async with engine.connect() as connection:
        found = await connection.execute(select(kafka_topic_info.c.topic, kafka_topic_info.c.locked_by))
        assert found.all() == [("layout", LAYOUT)]


def test_outbox_without_a_database_is_told_at_start() -> None:
    """B-018."""

    async def start(app: Deimos) -> None:
        async with app.running():
            pass

    by_settings = Deimos({"producers.backend": "outbox"}, metrics=None, tracing=None)
    with pytest.raises(ConfigurationError, match=r"'producers.backend' is 'outbox', but there is no database"):
        asyncio.run(start(by_settings))
    by_producer = Deimos(metrics=None, tracing=None)
    plain(by_producer, backend="outbox")
    with pytest.raises(ConfigurationError, match="topic 'notes' has backend='outbox', but there is no database"):
        asyncio.run(start(by_producer))


async def test_engine_that_commits_each_statement_is_refused(make_app: Callable[..., Deimos], url: str) -> None:
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    app = make_app(engine=engine)
    plain(app)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        async with app.running(only=("producers",)):
            pass
    await engine.dispose()


async def test_error_of_the_database_reaches_the_commit_without_what_the_message_says(
    app: Deimos, engine: AsyncEngine
) -> None:
    """The engine is the user's, and shows parameters in its errors."""
    producer = plain(app)
    async with app.running(only=("producers",)):
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE others (id INTEGER)"))
            full = kafka_messages.name
            if engine.dialect.name == "sqlite":
                trigger = f"CREATE TRIGGER full BEFORE INSERT ON {full} BEGIN SELECT RAISE(ABORT, 'full'); END"
                await connection.exec_driver_sql(trigger)
            else:
                await connection.execute(text(f"ALTER TABLE {full} ADD CONSTRAINT full_ CHECK (size < 0)"))
        with pytest.raises(exc.DBAPIError) as told:
            async with app.transaction() as session:
                await session.execute(text("INSERT INTO others VALUES (1)"))
                await producer.produce(b"a very secret value", key="a very secret key")
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM others")) == 0
    assert "a very secret" not in str(told.value)
    assert await stored(engine) == []


async def test_database_that_is_away_is_told_as_such(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)

    def refuse(*arguments: Any) -> None:
        raise ConnectionRefusedError

    async with app.running(only=("producers",)):
        await engine.dispose()
        event.listen(engine.sync_engine, "do_connect", refuse)
        with pytest.raises(DatabaseUnavailableError, match="cannot be stored in the outbox"):
            await producer.produce(b"x", key="k")
        event.remove(engine.sync_engine, "do_connect", refuse)
        await producer.produce(b"y", key="k")
    assert await values(engine) == [b"y"]


@pytest.mark.parametrize("url", [MARIADB], indirect=True)
async def test_row_larger_than_the_server_takes_is_an_error_of_the_message(app: Deimos, engine: AsyncEngine) -> None:
    """The server would close the connection, which looks as if it were away and would be waited for."""
    producer = plain(app)
    async with engine.connect() as connection:
        room = int((await connection.exec_driver_sql("SELECT @@max_allowed_packet")).scalar_one())
    async with app.running(only=("producers",)):
        with pytest.raises(exc.DataError, match="larger than the server takes"):
            async with app.transaction():
                await producer.produce(b"'" * (room // 2), key="k")
        await producer.produce(b"x" * (room - 4096), key="k")
    assert [len(value or b"") for value in await values(engine)] == [room - 4096]


# --- sessions that nobody awaits, and drivers that are not known -----------------------------------------------------


def outbox_of(app: Deimos) -> tuple[Outlets, StoringBackend]:
    running = app._running
    assert running is not None
    assert running.outlets is not None
    backend = running.outlets.backend("outbox")
    assert is_storing(backend)
    return running.outlets, backend


@pytest.mark.parametrize("url", ["sqlite", MARIADB], indirect=True)  # for PostgreSQL no other driver is installed
async def test_plain_session_stores_too(app: Deimos, engine: AsyncEngine) -> None:
    plain(app)
    drivers = {"sqlite": "sqlite", "mysql": "mysql+pymysql"}
    plain_engine = sa.create_engine(engine.url.set(drivername=drivers[engine.dialect.name]), poolclass=NullPool)

    def work(outlets: Outlets, outbox: StoringBackend) -> None:
        outlet = outlets.topic("notes")
        with Session(plain_engine) as session, session.begin():
            for number in range(3):
                record = OutboundRecord("notes", b"k", b"%d" % number)
                outbox.enlist(session, [Outgoing(outlet, "Producer", record, record.value, "k", None)])

    async with app.running(only=("producers",)):
        await asyncio.to_thread(work, *outbox_of(app))
    assert await values(engine) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("url", ["sqlite", POSTGRESQL], indirect=True)
async def test_driver_that_is_not_known_gets_statements_of_sqlalchemys(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([OutboundRecord("notes", b"k", bytes([number]), [("a", b"1")]) for number in range(5)])
    name = engine.dialect.name

    def insert(connection: sa.Connection) -> None:
        with monkeypatch.context() as patched:
            if name == "postgresql":
                patched.setattr(connection.dialect, "driver", "another")
            else:
                patched.setattr(connection.dialect, "name", "another")
            insert_rows(connection, rows)

    async with engine.begin() as connection:
        await connection.run_sync(insert)
    found = await stored(engine)
    assert [tuple(getattr(row, field) for field in NewRow._fields) for row in found] == rows
    assert all(row.created_at is not None for row in found)


# --- B-021 ff.: who is told ------------------------------------------------------------------------------------------


async def test_signal_comes_after_the_commit_with_the_shards(app: Deimos, engine: AsyncEngine) -> None:
    producer = plain(app)
    async with app.running(only=("producers",)):
        running = app._running
        assert running is not None
        listener = running.outbox_signal.listen()
        with pytest.raises(ZeroDivisionError):
            async with app.transaction():
                await producer.produce(b"x", key="k")
                raise ZeroDivisionError
        assert listener.take() == frozenset()
        async with app.transaction():
            await producer.produce(b"x", key="k")
            await producer.produce(b"x", key="other")
            assert listener.take() == frozenset()
        told = listener.take()
        assert told == {row.shard for row in await stored(engine)}
        await producer.produce(b"x", key="third")
        assert listener.take() == {(await stored(engine))[-1].shard}


@pytest.mark.parametrize("url", [POSTGRESQL], indirect=True)
async def test_other_processes_are_told_by_postgresql_of_shards_that_nobody_serves_here(
    app: Deimos, engine: AsyncEngine, url: str
) -> None:
    producer = plain(app)
    heard: asyncio.Queue[str] = asyncio.Queue()
    elsewhere = create_async_engine(url)
    async with elsewhere.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.add_listener(CHANNEL, lambda _, pid, channel, payload: heard.put_nowait(payload))
        async with app.running(only=("producers",)), asyncio.timeout(DEADLINE):
            running = app._running
            assert running is not None
            await producer.produce(b"x", key="k")
            shard = (await stored(engine))[0].shard
            assert parse_notice(await heard.get()) == {shard}
            running.outbox_signal.served = frozenset({shard})
            await producer.produce(b"x", key="k")
            other = next(f"k{number}" for number in range(1000) if _shard(f"k{number}") != shard)
            await producer.produce(b"x", key=other)
            assert parse_notice(await heard.get()) == {_shard(other)}
            # The connection of the notices is lost; the next one is made by itself.
            async with elsewhere.connect() as killing:
                await killing.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_notify%' "
                        "AND pid <> pg_backend_pid()"
                    )
                )
            while heard.empty():
                await producer.produce(b"x", key=other)
                await asyncio.sleep(0)
        await driver.reset()
    await elsewhere.dispose()


def _shard(key: str) -> int:
    found = order_hash("notes", key.encode())
    assert found is not None
    return shard_of(found)


async def test_random_rows_come_back_as_they_were(engine: AsyncEngine) -> None:
    records = [
        OutboundRecord(
            f"topic-{number % 7}",
            os.urandom(number % 5) or None,
            os.urandom(number * 13 % 2000) if number % 11 else None,
            [("a", os.urandom(3)), ("b", None)][: number % 3],
            number % 4 or None,
            os.urandom(4) if number % 6 == 0 else None,
            number * 10**10 or None,
        )
        for number in range(700)
    ]
    rows = make_rows(records)
    async with engine.begin() as connection:
        await connection.run_sync(insert_rows, rows)
    found = [tuple(getattr(row, field) for field in NewRow._fields) for row in await stored(engine)]
    assert found == rows

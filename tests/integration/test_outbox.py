"""Rows of three databases reach a real Kafka: all of them, in the order of each key, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from fresh_database import fresh_database
from outbox_bench import DEADLINE, OutboxBench, firsts
from servers import KafkaBroker as KafkaServer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.outbox.parking import ParkedFilter, ParkedStore
from deimos_async.message import OutboundRecord

SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.services("postgres")),
    pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
]


@pytest.fixture(params=["sqlite", *SERVERS])
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, unique_name: str, kafka_bootstrap: str
) -> AsyncIterator[OutboxBench]:
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka_bootstrap))
    await broker.start()
    if request.param == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
        await create_framework_tables(engine)
        yield OutboxBench(engine, broker, f"{unique_name}.topic")
        await engine.dispose()
        return
    server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    async with fresh_database(server, unique_name[:60]) as url:
        engine = create_async_engine(url)
        await create_framework_tables(engine)
        yield OutboxBench(engine, broker, f"{unique_name}.topic")
        await engine.dispose()


def numbered(bench: OutboxBench, count: int, *, keys: int) -> list[OutboundRecord]:
    return [bench.record(f"key-{number % keys}", f"{number}") for number in range(count)]


def expected(count: int, *, keys: int) -> dict[bytes | None, list[str]]:
    found: dict[bytes | None, list[str]] = {}
    for number in range(count):
        found.setdefault(b"key-%d" % (number % keys), []).append(f"{number}")
    return found


async def test_stored_rows_arrive_once_in_the_order_of_each_key_and_are_deleted(bench: OutboxBench) -> None:
    await bench.create()
    await bench.write(*numbered(bench, 5000, keys=50))
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
    assert await bench.values() == expected(5000, keys=50)


async def test_record_arrives_as_it_was_stored(bench: OutboxBench) -> None:
    await bench.create(partitions=5)
    await bench.write(
        OutboundRecord(bench.topic, b"\x00k", b"\xff", [("a", b"\xfe"), ("a", None)], 3, None, 1_700_000_000_000),
        OutboundRecord(bench.topic, b"other", None, [("deimos-seq", b"old")], None, b"\x00k"),
    )
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
    value, tombstone = sorted(await bench.arrived(), key=lambda record: record.value is None)
    assert (value.key, value.value, value.partition, value.timestamp) == (b"\x00k", b"\xff", 3, 1_700_000_000_000)
    assert list(value.headers[:2]) == [("a", b"\xfe"), ("a", None)]
    assert [name for name, _ in value.headers[2:]] == ["deimos-message-id", "deimos-seq", "deimos-enqueued-at"]
    assert tombstone.value is None
    assert [found for name, found in tombstone.headers if name == "deimos-seq"] != [b"old"]


async def test_rows_written_while_it_runs_arrive_in_order(bench: OutboxBench) -> None:
    await bench.create()
    async with bench.pumping() as pump:
        for start in range(0, 600, 20):
            await bench.write(*numbered(bench, start + 20, keys=7)[start:], notify=start % 40 == 0)
        await bench.until_empty(pump)
    assert await bench.values() == expected(600, keys=7)


async def test_rows_of_a_process_that_tells_nobody_are_found(bench: OutboxBench) -> None:
    await bench.create()
    async with bench.pumping() as pump:
        await bench.write(bench.record("a", "1"), notify=False)
        await bench.until_empty(pump)
    assert await bench.values() == {b"a": ["1"]}


async def test_what_was_rolled_back_never_arrives(bench: OutboxBench) -> None:
    await bench.create()
    chance = random.Random(7)
    written: list[str] = []
    async with bench.pumping() as pump:
        for number in range(200):
            async with bench.engine.connect() as connection:
                await bench.write_in(connection, bench.record("a", f"{number}"))
                if chance.random() < 0.5:
                    await connection.rollback()
                else:
                    await connection.commit()
                    written.append(f"{number}")
        await bench.until_empty(pump)
    assert await bench.values() == {b"a": written}


@pytest.mark.parametrize("bench", SERVERS, indirect=True)
async def test_low_ids_that_become_visible_late_are_sent(bench: OutboxBench) -> None:
    await bench.create()
    async with bench.pumping() as pump:
        async with bench.engine.connect() as slow:
            await bench.write_in(slow, bench.record("late", "late"))
            for number in range(50):
                await bench.write(bench.record("a", f"{number}"))
            await bench.until(pump, lambda left: left == 0)
            await slow.commit()
        await bench.until_empty(pump)
    values = await bench.values()
    assert values[b"late"] == ["late"]
    assert values[b"a"] == [f"{number}" for number in range(50)]


async def test_row_that_is_too_large_blocks_its_key_and_nothing_else(bench: OutboxBench) -> None:
    await bench.create(**{"max.message.bytes": "2000"})
    await bench.write(
        bench.record("a", "1"),
        bench.record("a", "2" * 3000),
        bench.record("a", "3"),
        *(bench.record(f"other-{number}", "x") for number in range(50)),
    )
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 2)
        assert pump.status().blocked_keys == 1
        await bench.write(bench.record("b", "4"), bench.record("a", "5"))
        await bench.until(pump, lambda left: left == 3)
    values = await bench.values()
    assert values.pop(b"a") == ["1"]
    assert values.pop(b"b") == ["4"]
    assert set(values) == {b"other-%d" % number for number in range(50)}


async def test_rows_that_cannot_be_sent_are_put_aside_and_later_ones_of_their_keys_arrive(bench: OutboxBench) -> None:
    await bench.create(**{"max.message.bytes": "2000"})
    store = ParkedStore(bench.engine)
    await bench.write(
        bench.record("a", "1"),
        bench.record("a", "2" * 3000),
        bench.record("a", "3"),
        bench.record("b", "4", partition=99),
    )
    async with bench.pumping(parking=store) as pump:
        await bench.until_empty(pump)
        assert await bench.values() == {b"a": ["1", "3"]}
        missing, large = await store.rows(ParkedFilter())
        assert (missing.code, large.code) == ("no_partition", "too_large")
        assert pump.status().blocked_keys == 0
        # Given back with the cause still there, it is put aside again, and holds up nothing either.
        assert await store.retry([large.id]) == 1
        await bench.write(bench.record("a", "5"))
        await bench.until_empty(pump)
    again, _ = await store.rows(ParkedFilter())
    assert again.id > missing.id
    assert again.message_id == large.message_id
    assert await bench.values() == {b"a": ["1", "3", "5"]}


async def test_topic_that_does_not_exist_holds_up_no_other(bench: OutboxBench) -> None:
    await bench.create()
    missing = f"{bench.topic}.missing"
    await bench.write(*(bench.record("a", f"{number}", topic=missing) for number in range(10)))
    await bench.write(*numbered(bench, 300, keys=30))
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 10)
        assert set(pump.status().failing_topics) == {missing}
        await bench.create(missing)
        await bench.until_empty(pump)
    assert await bench.values() == expected(300, keys=30)
    assert await bench.values(missing) == {b"a": [f"{number}" for number in range(10)]}


async def test_two_pumps_share_the_slots_and_one_that_ends_leaves_all_to_the_other(bench: OutboxBench) -> None:
    await bench.create()
    async with bench.pumping() as first:
        async with bench.pumping() as second:
            async with asyncio.timeout(DEADLINE):
                while not len(first.status().slots) == len(second.status().slots) == 4:
                    await bench.write(bench.record("a", "x"))
                    await bench.until_empty()
            await bench.write(*numbered(bench, 1000, keys=40))
            await bench.until_empty()
        await bench.write(*(bench.record(f"key-{number}", "last") for number in range(40)))
        async with asyncio.timeout(DEADLINE):
            await bench.until_empty(first)
    values = await bench.values()
    values.pop(b"a", None)
    assert {key: firsts(found) for key, found in values.items()} == {
        key: [*found, "last"] for key, found in expected(1000, keys=40).items()
    }


@pytest.mark.parametrize("bench", SERVERS, indirect=True)
async def test_connections_that_the_database_cuts_are_made_again_and_nothing_is_lost(bench: OutboxBench) -> None:
    await bench.create()
    count = 0
    async with bench.pumping() as pump:
        for _ in range(5):
            for _ in range(20):
                await bench.write(*(bench.record(f"key-{(count + n) % 10}", f"{count + n}") for n in range(10)))
                count += 10
            await cut_connections(bench)
        await bench.until_empty(pump)
        async with asyncio.timeout(DEADLINE):
            while len(pump.status().slots) < 8:
                await bench.a_moment()
    values = await bench.values()
    assert {key: firsts(found) for key, found in values.items()} == expected(count, keys=10)


async def cut_connections(bench: OutboxBench) -> None:
    """All but the one that does it."""
    if bench.engine.dialect.name == "postgresql":
        find = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        kill = "SELECT pg_terminate_backend({})"
    else:
        find = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        kill = "KILL {}"
    await bench.engine.dispose()
    async with bench.engine.connect() as connection:
        for id_ in (await connection.execute(sa.text(find))).scalars().all():
            with contextlib.suppress(DBAPIError):  # it has ended by itself
                await connection.execute(sa.text(kill.format(id_)))


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_broker_that_goes_away_is_waited_for_and_nothing_is_lost(
    bench: OutboxBench, own_kafka: KafkaServer
) -> None:
    bench.broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=own_kafka.bootstrap_servers))
    await bench.create()
    async with bench.pumping(producer=ProducerOptions(delivery_timeout=3.0)) as pump:
        await bench.write(*numbered(bench, 100, keys=10))
        await bench.until_empty(pump)
        await own_kafka.stop()
        await bench.write(*numbered(bench, 300, keys=10)[100:])
        async with asyncio.timeout(DEADLINE):
            while not pump.status().failing_topics:
                await bench.a_moment()
        assert await bench.count() == 200
        await own_kafka.start()
        await bench.until_empty(pump)
        assert not pump.status().failing_topics
    assert {key: firsts(found) for key, found in (await bench.values()).items()} == expected(300, keys=10)

"""The table of waiting messages does the same on three databases: rows come with an offset, and go once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import SERVERS
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deimos_async.database.offsets import SqlOffsetStore
from deimos_async.database.protocol import Bookmark, Failure, RetryRow, WaitingRow
from deimos_async.database.retries import SqlRetryStore
from deimos_async.database.tables import LONGEST_CLASS, LONGEST_ERROR
from deimos_async.errors import ConfigurationError, DatabaseUnavailableError
from deimos_async.message import TopicPartition

DEADLINE = 30.0
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
MOMENT = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)


@pytest.fixture
def group(unique_name: str) -> str:
    return unique_name


@pytest.fixture
def offsets(engine: AsyncEngine) -> SqlOffsetStore:
    return SqlOffsetStore(engine)


@pytest.fixture
def store(engine: AsyncEngine, offsets: SqlOffsetStore) -> SqlRetryStore:
    return SqlRetryStore(engine, offsets)


def row(offset: int, *, partition: int = 0, **values: Any) -> RetryRow:
    given: dict[str, Any] = {
        "topic": "orders",
        "timestamp": 1_700_000_000_000,
        "key": b"k",
        "value": b"v",
        "headers": (),
        "topic_id": "an-id",
        "key_hash": 7,
        "attempts": 0,
        "next_at": 1_800_000_000.25,
    }
    return RetryRow(partition=partition, offset=offset, **(given | values))


async def put(store: SqlRetryStore, offsets: SqlOffsetStore, group: str, *rows: RetryRow) -> None:
    """Rows of one partition, with its offset moving from 0."""
    at = TopicPartition(rows[0].topic, rows[0].partition)
    await offsets.insert(group, {at: Bookmark(0)})
    assert await store.add_and_move(group, at, 0, rows[-1].offset + 1, rows) is True


async def test_store_is_fit_where_the_table_is(store: SqlRetryStore) -> None:
    await store.check()


async def test_row_is_read_as_it_was_written(store: SqlRetryStore, offsets: SqlOffsetStore, group: str) -> None:
    full = row(
        2**62,
        key=bytes(range(256)),
        value=bytes(range(256)) * 4096,  # beyond what BLOB holds
        headers=[("a", b"\x00\xff"), ("a", None), ("", b""), ("\U0001f600\ud800", b"x")],
        timestamp=2**63 - 1,
        key_hash=-(2**63),
        attempts=3,
        failure=Failure(MOMENT, "shop.errors.Bad", "caf\u00e9 \U0001f600 \\x00"),
    )
    empty = row(2**62 + 1, key=b"", value=b"", timestamp=None, topic_id=None, key_hash=2**63 - 1)
    none = row(2**62 + 2, key=None, value=None, key_hash=None)
    await put(store, offsets, group, full, empty, none)
    for written in (full, empty, none):
        found = await store.read(group, P0, written.offset)
        assert found is not None
        assert found == replace(written, headers=list(written.headers))
    assert await store.read(group, P1, full.offset) is None
    assert await store.read(f"{group}2", P0, full.offset) is None


async def test_texts_of_errors_are_cut_to_what_the_columns_hold(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    failure = Failure(MOMENT, "\U0001f600" * 2000, "\U0001f600" * 2000)
    await put(store, offsets, group, row(0, failure=failure))
    found = await store.read(group, P0, 0)
    assert found is not None
    assert found.failure == Failure(MOMENT, "\U0001f600" * LONGEST_CLASS, "\U0001f600" * LONGEST_ERROR)


async def test_what_waits_is_listed_by_partition_and_offset_and_counted_by_group(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    await put(store, offsets, group, row(3), row(11, key_hash=None, key=None, next_at=1_900_000_000.5))
    await put(store, offsets, group, row(1, partition=1))
    await put(store, offsets, group, row(1, partition=2))
    await put(store, offsets, group, row(1, topic="Orders"))
    await put(store, offsets, group.upper(), row(4))
    assert await store.waiting(group, "orders", [1, 0]) == [
        WaitingRow(0, 3, 7, 1_800_000_000.25),
        WaitingRow(0, 11, None, 1_900_000_000.5),
        WaitingRow(1, 1, 7, 1_800_000_000.25),
    ]
    assert await store.waiting(group, "others", [0]) == []
    assert (await store.count(group), await store.count(f"{group}2")) == (5, 0)


async def test_rows_come_only_with_the_offset_that_is_expected(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    await offsets.insert(group, {P0: Bookmark(5)})
    assert await store.add_and_move(group, P0, 4, 6, [row(5)]) is None
    assert await store.add_and_move(group, P1, 0, 6, [row(5, partition=1)]) is None
    assert await store.count(group) == 0
    assert await store.add_and_move(group, P0, 5, 7, [row(5), row(6)]) is True
    assert await offsets.read(group, "orders") == {0: Bookmark(7)}
    assert await store.count(group) == 2


async def test_row_that_is_there_is_left_as_it_is_unless_it_is_of_another_topic(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    await put(store, offsets, group, row(0, attempts=4))
    assert await store.add_and_move(group, P0, 1, 2, [row(0), row(1)]) is True
    found = await store.read(group, P0, 0)
    assert found is not None
    assert found.attempts == 4
    assert await store.add_and_move(group, P0, 2, 4, [row(2), row(1, topic_id="another")]) is False
    assert await store.add_and_move(group, P0, 2, 4, [row(1, topic_id=None)]) is False
    assert await offsets.read(group, "orders") == {0: Bookmark(2)}
    assert await store.count(group) == 2


async def test_rows_of_a_session_come_and_go_with_its_transaction(
    store: SqlRetryStore, offsets: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await put(store, offsets, group, row(0))
    async with AsyncSession(engine) as session:
        assert await store.add(session, group, [row(1), row(2)])
        assert await store.remove(session, group, P0, 0, 0)
        await session.rollback()
        assert await store.count(group) == 1
        assert await store.add(session, group, [row(1), row(2)])
        assert not await store.add(session, group, [row(2, topic_id="another")])
        assert await store.remove(session, group, P0, 0, 0)
        assert not await store.remove(session, group, P0, 0, 0)
        await session.commit()
    assert [found.offset for found in await store.waiting(group, "orders", [0])] == [1, 2]


async def test_row_goes_only_with_the_attempts_that_are_expected(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    await put(store, offsets, group, row(0, attempts=2), row(1, attempts=2))
    assert not await store.remove_alone(group, P0, 0, 1)
    assert not await store.remove_alone(group, P1, 0, 2)
    assert await store.remove_alone(group, P0, 0, 2)
    assert not await store.remove_alone(group, P0, 0, 2)
    assert await store.count(group) == 1


async def test_attempt_is_counted_once_and_the_time_of_the_first_failure_is_kept(
    store: SqlRetryStore, offsets: SqlOffsetStore, group: str
) -> None:
    await put(store, offsets, group, row(0), row(1))
    first = Failure(MOMENT, "One", "first")
    assert await store.postpone(group, P0, 0, 0, next_at=1_900_000_000.5, failure=first)
    assert not await store.postpone(group, P0, 0, 0, next_at=1.0, failure=first)
    second = Failure(datetime(2027, 1, 1, tzinfo=UTC), "Two", "second")
    assert await store.postpone(group, P0, 0, 1, next_at=1e300, failure=second)
    found = await store.read(group, P0, 0)
    assert found is not None
    assert found.attempts == 2
    assert found.failure == Failure(MOMENT, "Two", "second")
    assert found.next_at > 2e11
    other = await store.read(group, P0, 1)
    assert other is not None
    assert (other.attempts, other.failure) == (0, None)


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_second_of_two_who_handle_a_row_waits_for_the_first_and_is_told(
    store: SqlRetryStore, offsets: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await put(store, offsets, group, row(0), row(1))
    async with AsyncSession(engine) as first, AsyncSession(engine) as second, asyncio.timeout(DEADLINE):
        assert await store.remove(first, group, P0, 0, 0)
        removing = asyncio.create_task(store.remove(second, group, P0, 0, 0))
        assert await store.remove_alone(group, P0, 1, 0)  # other rows do not wait
        assert not removing.done()
        await first.commit()
        assert not await removing


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_second_of_two_who_handle_a_row_goes_on_where_the_first_rolled_back(
    store: SqlRetryStore, offsets: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await put(store, offsets, group, row(0))
    async with AsyncSession(engine) as first, AsyncSession(engine) as second, asyncio.timeout(DEADLINE):
        assert await store.remove(first, group, P0, 0, 0)
        removing = asyncio.create_task(store.remove(second, group, P0, 0, 0))
        await first.rollback()
        assert await removing
        await second.commit()
    assert await store.count(group) == 0


async def test_missing_table_is_reported(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}")
    store = SqlRetryStore(engine, SqlOffsetStore(engine))
    for question in (store.check(), store.waiting("g", "orders", [0])):
        with pytest.raises(ConfigurationError, match="no table 'kafka_retries'"):
            await question
    await engine.dispose()


async def test_other_errors_of_statements_are_not_taken_for_a_missing_table(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite3'}")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE kafka_retries (id INTEGER)")
    with pytest.raises(sa.exc.OperationalError, match="no such column"):
        await SqlRetryStore(engine, SqlOffsetStore(engine)).waiting("g", "orders", [0])
    await engine.dispose()


async def test_unreachable_database_is_told_as_such(unused_tcp_port: int) -> None:
    for scheme in ("postgresql+asyncpg", "mysql+aiomysql"):
        engine = create_async_engine(f"{scheme}://user:word@127.0.0.1:{unused_tcp_port}/none")
        store = SqlRetryStore(engine, SqlOffsetStore(engine))
        for question in (store.check(), store.count("g"), store.read("g", P0, 0), store.remove_alone("g", P0, 0, 0)):
            with pytest.raises(DatabaseUnavailableError):
                await question
        await engine.dispose()

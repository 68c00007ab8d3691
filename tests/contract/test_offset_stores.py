"""The table of stored offsets does the same on three databases: of two who move an offset, one is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from fresh_database import SERVERS
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deimos_async.database.offsets import SqlOffsetStore
from deimos_async.database.protocol import Bookmark
from deimos_async.database.tables import kafka_offsets
from deimos_async.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError
from deimos_async.message import TopicPartition

DEADLINE = 30.0
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def group(unique_name: str) -> str:
    return unique_name


@pytest.fixture
def store(engine: AsyncEngine) -> SqlOffsetStore:
    return SqlOffsetStore(engine)


async def test_store_is_fit_where_the_table_is(store: SqlOffsetStore) -> None:
    await store.check()


async def test_rows_are_made_once_and_read_by_group_and_topic(store: SqlOffsetStore, group: str) -> None:
    assert await store.read(group, "orders") == {}
    await store.insert(group, {P0: Bookmark(5, "an-id"), P1: Bookmark(0, None)})
    await store.insert(group, {P0: Bookmark(9, "another"), TopicPartition("others", 0): Bookmark(1, None)})
    assert await store.read(group, "orders") == {0: Bookmark(5, "an-id"), 1: Bookmark(0, None)}
    assert await store.read(f"{group}2", "orders") == {}


async def test_case_of_names_counts(store: SqlOffsetStore, group: str) -> None:
    await store.insert(group, {P0: Bookmark(5)})
    await store.insert(group.upper(), {P0: Bookmark(6)})
    assert await store.read(group, "orders") == {0: Bookmark(5)}
    assert await store.read(group, "Orders") == {}
    assert await store.move_alone(group.upper(), P0, 6, 7)
    assert await store.read(group, "orders") == {0: Bookmark(5)}


async def test_offset_moves_only_from_where_it_is(store: SqlOffsetStore, group: str) -> None:
    await store.insert(group, {P0: Bookmark(5, "an-id"), P1: Bookmark(5)})
    assert await store.move_alone(group, P0, 5, 8)
    assert not await store.move_alone(group, P0, 5, 8)
    assert not await store.move_alone(group, P0, 7, 9)
    assert not await store.move_alone(group, TopicPartition("orders", 2), 0, 1)
    assert await store.read(group, "orders") == {0: Bookmark(8, "an-id"), 1: Bookmark(5)}


async def test_time_of_the_last_move_is_utc(store: SqlOffsetStore, engine: AsyncEngine, group: str) -> None:
    await store.insert(group, {P0: Bookmark(0)})
    await store.move_alone(group, P0, 0, 1)
    async with engine.connect() as connection:
        found = (
            await connection.execute(
                sa.select(kafka_offsets.c.updated_at).where(kafka_offsets.c.consumer_group == group)
            )
        ).scalar_one()
    moved = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - moved) < timedelta(minutes=5)


async def test_move_within_a_session_goes_with_its_transaction(
    store: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await store.insert(group, {P0: Bookmark(0)})
    async with AsyncSession(engine) as session:
        assert await store.move(session, group, P0, 0, 3)
        await session.rollback()
        assert await store.move(session, group, P0, 0, 4)
        assert not await store.move(session, group, P0, 0, 4)
        await session.commit()
    assert await store.read(group, "orders") == {0: Bookmark(4)}


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_second_of_two_waits_for_the_first_and_is_told(
    store: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await store.insert(group, {P0: Bookmark(0)})
    async with AsyncSession(engine) as first, AsyncSession(engine) as second, asyncio.timeout(DEADLINE):
        assert await store.move(first, group, P0, 0, 3)
        moving = asyncio.create_task(store.move(second, group, P0, 0, 3))
        assert await store.move_alone(f"{group}2", P1, 0, 1) is False  # others do not wait
        assert not moving.done()
        await first.commit()
        assert not await moving


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_second_of_two_goes_on_where_the_first_rolled_back(
    store: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    await store.insert(group, {P0: Bookmark(0)})
    async with AsyncSession(engine) as first, AsyncSession(engine) as second, asyncio.timeout(DEADLINE):
        assert await store.move(first, group, P0, 0, 3)
        moving = asyncio.create_task(store.move(second, group, P0, 0, 3))
        await first.rollback()
        assert await moving


async def test_row_is_replaced_only_as_it_was_read(store: SqlOffsetStore, group: str) -> None:
    await store.insert(group, {P0: Bookmark(5, None)})
    assert not await store.replace(group, P0, Bookmark(5, "an-id"), Bookmark(0, "new"))
    assert not await store.replace(group, P0, Bookmark(4, None), Bookmark(0, "new"))
    assert await store.replace(group, P0, Bookmark(5, None), Bookmark(5, "an-id"))
    assert await store.replace(group, P0, Bookmark(5, "an-id"), Bookmark(5, "an-id"))
    assert await store.replace(group, P0, Bookmark(5, "an-id"), Bookmark(0, "new"))
    assert await store.read(group, "orders") == {0: Bookmark(0, "new")}


async def test_lock_that_is_not_to_be_had_is_told_as_a_conflict(
    store: SqlOffsetStore, engine: AsyncEngine, group: str
) -> None:
    limits = {
        "sqlite": "PRAGMA busy_timeout = 1",
        "postgresql": "SET lock_timeout = 1",
        "mysql": "SET innodb_lock_wait_timeout = 1",
        "mariadb": "SET innodb_lock_wait_timeout = 1",
    }

    @sa.event.listens_for(engine.sync_engine, "begin")
    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(limits[engine.dialect.name])

    await store.insert(group, {P0: Bookmark(0)})
    async with AsyncSession(engine) as first:
        assert await store.move(first, group, P0, 0, 3)
        with pytest.raises(DatabaseError, match="lost against another one") as caught:
            await store.move_alone(group, P0, 0, 3)
    assert caught.value.retriable


async def test_unreachable_database_is_told_as_such(unused_tcp_port: int) -> None:
    for scheme in ("postgresql+asyncpg", "mysql+aiomysql"):
        engine = create_async_engine(f"{scheme}://user:word@127.0.0.1:{unused_tcp_port}/none")
        with pytest.raises(DatabaseUnavailableError):
            await SqlOffsetStore(engine).read("g", "orders")
        await engine.dispose()


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_engine_that_commits_each_statement_is_refused(engine: AsyncEngine) -> None:
    each = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        await SqlOffsetStore(each).check()
    await each.dispose()

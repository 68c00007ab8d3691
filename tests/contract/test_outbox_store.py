"""The outbox's rows are read, deleted and given shards alike on three databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import SERVERS
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from deimos_async.database.outbox.protocol import OutboxRow, Page
from deimos_async.database.outbox.store import SqlOutboxStore
from deimos_async.database.tables import kafka_messages
from deimos_async.errors import ConfigurationError, DatabaseUnavailableError
from deimos_async.outbox.shards import SHARDS

DEADLINE = 30.0
ALL = dict.fromkeys(range(SHARDS), 0)
FEW = dict.fromkeys((1, 2, 9), 0)
"""Shards that are read by the index on MySQL and SQLite; ALL are read by the primary key there."""


@pytest.fixture
async def store(engine: AsyncEngine) -> AsyncIterator[SqlOutboxStore]:
    store = SqlOutboxStore(engine, shards=SHARDS)
    yield store
    await store.close()


def row(shard: int | None, **more: Any) -> dict[str, Any]:
    message = more.pop("message", b"value")
    return {
        "topic": "orders",
        "message": message,
        "key": b"key",
        "partition_key": None,
        "shard": shard,
        "order_hash": shard,
        "order_key": None,
        "headers": None,
        "kafka_partition": None,
        "timestamp_ms": None,
        "message_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "size": len(message or b"") + 3,
    } | more


async def insert(engine: AsyncEngine, *rows: Mapping[str, Any]) -> list[int]:
    ids = []
    async with engine.begin() as connection:
        for values in rows:
            result = await connection.execute(sa.insert(kafka_messages).values(_sendable(engine, values)))
            ids.append(result.inserted_primary_key[0])
    return ids


def _sendable(engine: AsyncEngine, values: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes as literals where aiomysql cannot send them with this PyMySQL."""
    if engine.dialect.name not in ("mysql", "mariadb"):
        return dict(values)
    return {name: sa.text(f"x'{value.hex()}'") if isinstance(value, bytes) else value for name, value in values.items()}


async def read(store: SqlOutboxStore, floors: Mapping[int, int], **more: Any) -> Page:
    defaults: dict[str, Any] = {"limit": 100, "max_bytes": 1 << 20, "without_orders": (), "without_topics": ()}
    return await store.read(floors, **(defaults | more))


def ids_of(rows: Sequence[OutboxRow]) -> list[int]:
    return sorted(found.id for found in rows)


async def test_store_is_fit_where_the_tables_are(store: SqlOutboxStore) -> None:
    await store.check()


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_row_comes_as_it_was_written(store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]) -> None:
    values = {
        "topic": "Ördërs",
        "message": b"\x00\xff value",
        "key": b"\x00\xfe key",
        "order_key": b"\x00\xfd order",
        "headers": '[["a","ü"]]',
        "kafka_partition": 3,
        "timestamp_ms": 1_700_000_000_123,
        "order_hash": -7,
    }
    (id_,) = await insert(engine, row(9, **values))
    (found,) = (await read(store, floors)).rows
    assert found[:11] == (
        id_,
        9,
        -7,
        "Ördërs",
        b"\x00\xfe key",
        b"\x00\xff value",
        b"\x00\xfd order",
        '[["a","ü"]]',
        3,
        1_700_000_000_123,
        "01890a5d-ac96-774b-bcce-b302099a8057",
    )
    written = datetime.fromisoformat(str(found.created_at))
    assert abs(datetime.now(UTC) - written.replace(tzinfo=UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_empty_values_and_missing_ones_are_told_apart(
    store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]
) -> None:
    await insert(engine, row(1, message=None, key=b""), row(1, message=b"", key=None, partition_key="abc"))
    tombstone, empty = (await read(store, floors)).rows
    assert (tombstone.message, tombstone.key, tombstone.partition_key) == (None, b"", None)
    assert (empty.message, empty.key, empty.partition_key) == (b"", None, b"abc")
    assert tombstone.headers is None


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_rows_of_a_shard_come_in_order_from_above_its_floor(
    store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]
) -> None:
    ids = await insert(engine, *(row(shard) for shard in (1, 2, 1, 9, 2, 1)))
    page = await read(store, floors)
    assert [found.id for found in page.rows if found.shard == 1] == [ids[0], ids[2], ids[5]]
    assert ids_of(page.rows) == ids
    assert not page.more
    assert page.floors[1] == ids[5]
    later = await insert(engine, row(1))
    again = await read(store, floors | dict(page.floors))
    assert ids_of(again.rows) == later


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_reading_on_from_the_floors_gives_every_row_once(
    store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]
) -> None:
    ids = await insert(engine, *(row((1, 2, 9)[number % 3 if number < 20 else 0]) for number in range(40)))
    seen: list[int] = []
    current = dict(floors)
    todo: set[int] = set(floors)
    async with asyncio.timeout(DEADLINE):
        while todo:
            page = await read(store, {shard: current[shard] for shard in sorted(todo)}, limit=7)
            assert len(page.rows) <= 7
            for found in page.rows:
                assert found.id > floors[found.shard]
            seen += [found.id for found in page.rows if found.id not in seen]
            current |= page.floors
            todo = set(page.more)
    assert sorted(seen) == ids


async def test_shards_that_are_not_asked_for_stay_out(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    ids = await insert(engine, row(1), row(3), row(40), row(None, order_hash=None))
    assert ids_of((await read(store, {3: 0})).rows) == [ids[1]]
    assert ids_of((await read(store, dict.fromkeys(range(40), 0))).rows) == ids[:2]
    assert (await read(store, {})).rows == ()


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_keys_and_topics_can_be_left_out(
    store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]
) -> None:
    ids = await insert(
        engine, row(1, order_hash=1), row(1, order_hash=-63), row(2, topic="bills"), row(2, topic="Orders")
    )
    assert ids_of((await read(store, floors, without_orders=[-63, 5])).rows) == [ids[0], ids[2], ids[3]]
    assert ids_of((await read(store, floors, without_topics={"bills", "orders"})).rows) == [ids[3]]


@pytest.mark.parametrize("floors", [ALL, FEW], ids=["all", "few"])
async def test_reading_ends_before_too_many_bytes(
    store: SqlOutboxStore, engine: AsyncEngine, floors: dict[int, int]
) -> None:
    large = b"x" * 300_000
    ids = await insert(engine, *(row(1, message=large[: 300_000 - number]) for number in range(4)))
    page = await read(store, floors, max_bytes=700_000)
    assert [found.message for found in page.rows] == [large, large[:-1]]
    assert 1 in page.more
    rest = await read(store, floors | dict(page.floors), max_bytes=700_000)
    assert ids_of(rest.rows) == ids[2:]


async def test_single_row_may_be_larger_than_all_rows_together(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    await insert(engine, row(1, message=b"y" * 100_000), row(1))
    page = await read(store, ALL, max_bytes=1000)
    assert [len(found.message or b"") for found in page.rows] == [100_000]
    assert 1 in page.more


async def test_size_that_is_not_known_is_measured(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    await insert(engine, *(row(1, message=b"z" * 100_000, size=None) for _ in range(3)))
    assert len((await read(store, ALL, max_bytes=250_000)).rows) == 2


async def test_only_the_rows_given_are_deleted(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    ids = await insert(engine, *(row(1) for _ in range(5)))
    await store.delete([ids[0], ids[2], ids[4], ids[4] + 1000])
    assert ids_of((await read(store, ALL)).rows) == [ids[1], ids[3]]


async def test_thousands_are_deleted_at_once(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        rows = [row(number % SHARDS, message=None, key=None, message_id=None, size=0) for number in range(5000)]
        await connection.execute(sa.insert(kafka_messages), rows)
    page = await read(store, ALL, limit=5000)
    assert len(page.rows) == 5000
    await store.delete(ids_of(page.rows))
    assert not (await read(store, ALL)).rows


# SQLite has one writer at a time: there ids become visible in order.
@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_row_whose_transaction_is_open_is_found_later_below_the_floor(
    store: SqlOutboxStore, engine: AsyncEngine
) -> None:
    async with engine.connect() as slow:
        first = (await slow.execute(sa.insert(kafka_messages).values(_sendable(engine, row(1))))).inserted_primary_key[
            0
        ]
        second = await insert(engine, row(1))
        page = await read(store, ALL)
        assert ids_of(page.rows) == second
        await store.delete(second)
        await slow.commit()
    assert not (await read(store, ALL | dict(page.floors))).rows
    assert ids_of((await read(store, ALL)).rows) == [first]


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_reading_and_deleting_wait_for_no_open_transaction(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    ids = await insert(engine, *(row(1) for _ in range(3)), row(None, order_hash=None))
    async with engine.connect() as other, asyncio.timeout(DEADLINE):
        for shard in (1, None):
            await other.execute(sa.insert(kafka_messages).values(_sendable(engine, row(shard, order_hash=shard))))
        await other.execute(sa.select(kafka_messages.c.id).where(kafka_messages.c.id == ids[0]))
        await store.assign({unsharded.id: 1 for unsharded in await store.unsharded(10)})
        await store.delete(ids_of((await read(store, ALL)).rows))
        await other.rollback()
    assert not (await read(store, ALL)).rows


async def test_rows_without_a_shard_are_given_one(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    ids = await insert(
        engine,
        row(None, order_hash=None, partition_key="abc"),
        row(4),
        row(None, order_hash=None, key=None),
    )
    found = await store.unsharded(10)
    assert found == [(ids[0], "orders", b"key", b"abc"), (ids[2], "orders", None, None)]
    assert len(await store.unsharded(1)) == 1
    await store.assign({ids[0]: -1, ids[1]: 5, ids[2]: 7})
    assert not await store.unsharded(10)
    rows = {found.id: (found.shard, found.order_hash) for found in (await read(store, ALL)).rows}
    assert rows == {ids[0]: (63, -1), ids[1]: (4, 4), ids[2]: (7, 7)}
    await store.assign({})


async def test_what_waits_is_counted_by_topic(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    assert not await store.pending()
    hour = timedelta(hours=1)
    now = datetime.now(UTC).replace(tzinfo=None)
    await insert(
        engine,
        row(1, created_at=now - hour, updated_at=now),
        row(2, created_at=now, updated_at=now),
        row(2, topic="bills", created_at=now, updated_at=now),
    )
    found = {pending.topic: pending for pending in await store.pending()}
    assert {topic: pending.rows for topic, pending in found.items()} == {"orders": 2, "bills": 1}
    assert 3500 < found["orders"].age < 3900
    assert found["bills"].age < 300


@pytest.mark.parametrize("engine", SERVERS[:1], indirect=True)
async def test_postgresql_passes_notices_on(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    store.listen("deimos_outbox", heard.put_nowait)
    await read(store, ALL)
    async with asyncio.timeout(DEADLINE):
        async with engine.begin() as connection:
            await connection.execute(sa.text("SELECT pg_notify('deimos_outbox', '1,2')"))
        assert await heard.get() == "1,2"
    assert store.tells


async def test_lost_connection_is_made_again(store: SqlOutboxStore, engine: AsyncEngine) -> None:
    ids = await insert(engine, row(1))
    await read(store, ALL)
    await store.close()
    assert ids_of((await read(store, ALL)).rows) == ids


async def test_unreachable_database_is_told_as_such(unused_tcp_port: int) -> None:
    for scheme in ("postgresql+asyncpg", "mysql+aiomysql"):
        engine = create_async_engine(f"{scheme}://user:word@127.0.0.1:{unused_tcp_port}/none")
        store = SqlOutboxStore(engine, shards=SHARDS)
        with pytest.raises(DatabaseUnavailableError):
            await read(store, ALL)
        with pytest.raises(DatabaseUnavailableError):
            await store.check()
        await store.close()
        await engine.dispose()


async def test_missing_tables_are_told(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}")
    with pytest.raises(ConfigurationError, match="migrate"):
        await SqlOutboxStore(engine, shards=SHARDS).check()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE kafka_messages (id INTEGER PRIMARY KEY)"))
        await connection.execute(sa.text("CREATE TABLE kafka_topic_info (id INTEGER PRIMARY KEY)"))
    with pytest.raises(ConfigurationError, match="as Deimos makes it"):
        await SqlOutboxStore(engine, shards=SHARDS).check()
    await engine.dispose()


async def test_engine_whose_sessions_share_a_connection_is_refused() -> None:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    with pytest.raises(ConfigurationError, match="use a file"):
        SqlOutboxStore(engine, shards=SHARDS)
    await engine.dispose()

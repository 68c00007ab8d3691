"""Rows of the outbox are put aside, given back and deleted alike on three databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import SERVERS
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async.database.leases import SqlSlotLeases
from deimos_async.database.outbox.parking import ParkedFilter, ParkedStore
from deimos_async.database.outbox.protocol import Fence
from deimos_async.database.outbox.writing import insert_rows
from deimos_async.database.tables import LONGEST_ERROR, kafka_messages, kafka_parked_messages
from deimos_async.errors import DatabaseError, DatabaseUnavailableError
from deimos_async.message import OutboundRecord
from deimos_async.outbox.rows import make_rows
from deimos_async.outbox.shards import LAYOUT, SLOTS

DEADLINE = 30.0
EVERYTHING = ParkedFilter()


@pytest.fixture
def store(engine: AsyncEngine) -> ParkedStore:
    return ParkedStore(engine)


@pytest.fixture
async def leases(engine: AsyncEngine) -> AsyncIterator[SqlSlotLeases]:
    leases = SqlSlotLeases(engine, worker="me", slots=SLOTS, layout=LAYOUT, ttl=60)
    await leases.join()
    yield leases
    await leases.close()


def record(value: bytes | None = b"\xffvalue", **more: Any) -> OutboundRecord:
    values: dict[str, Any] = {"topic": "orders", "key": b"\xfe", "headers": [("a", b"\xfd")], "partition": None}
    values |= {"partition_key": None, "timestamp": 1_700_000_000_123} | more
    return OutboundRecord(values.pop("topic"), values.pop("key"), value, **values)


async def write(engine: AsyncEngine, *records: OutboundRecord) -> list[int]:
    rows = make_rows(records)
    async with engine.begin() as connection:
        before = await connection.scalar(sa.select(sa.func.coalesce(sa.func.max(kafka_messages.c.id), 0)))
        await connection.run_sync(lambda sync: insert_rows(sync, rows))
        query = sa.select(kafka_messages.c.id).where(kafka_messages.c.id > before).order_by(kafka_messages.c.id)
        return list((await connection.execute(query)).scalars())


async def table(engine: AsyncEngine, which: sa.Table = kafka_messages) -> list[Mapping[str, Any]]:
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(sa.select(which).order_by(which.c.id))).mappings()]


async def park(store: ParkedStore, *ids: int, code: str = "too_large") -> None:
    for id_ in ids:
        assert await store.park(id_, code=code, text="too large", attempts=1, fence=None)


async def test_parked_row_moves_as_it_is_with_the_reason(store: ParkedStore, engine: AsyncEngine) -> None:
    first, other = await write(engine, record(partition_key=b"\xfc", partition=2), record())
    before = await table(engine)
    assert await store.park(first, code="too_large", text="x\0" * LONGEST_ERROR, attempts=3, fence=None)
    assert [row["id"] for row in await table(engine)] == [other]
    (moved,) = await table(engine, kafka_parked_messages)
    assert {name: moved[name] for name in before[0]} == before[0]
    assert (moved["error_code"], moved["error_text"], moved["attempts"]) == ("too_large", "x" * LONGEST_ERROR, 3)
    (row,) = await store.rows(EVERYTHING)
    assert row[:4] == (first, "orders", before[0]["message_id"], before[0]["size"])
    assert abs(datetime.now(UTC) - row.parked_at) < timedelta(minutes=5)


async def test_row_that_is_gone_or_parked_already_is_not_parked(store: ParkedStore, engine: AsyncEngine) -> None:
    (id_,) = await write(engine, record())
    await park(store, id_)
    assert not await store.park(id_, code="x", text="", attempts=1, fence=None)
    assert not await store.park(id_ + 1000, code="x", text="", attempts=1, fence=None)
    assert [row.code for row in await store.rows(EVERYTHING)] == ["too_large"]


async def test_two_that_park_the_same_row_at_once_park_it_once(store: ParkedStore, engine: AsyncEngine) -> None:
    (id_,) = await write(engine, record())
    parking = (store.park(id_, code="x", text="", attempts=1, fence=None) for _ in range(4))
    assert sorted(await asyncio.gather(*parking)) == [False, False, False, True]
    assert not await table(engine)
    assert len(await table(engine, kafka_parked_messages)) == 1


async def test_row_is_parked_only_by_who_has_the_lease(
    store: ParkedStore, engine: AsyncEngine, leases: SqlSlotLeases
) -> None:
    ids = await write(engine, record(), record())
    epoch = await leases.acquire(3, owner=None, epoch=0)
    assert epoch is not None
    mine = Fence(3, "me", epoch)

    async def parked(fence: Fence, id_: int = ids[0]) -> bool:
        return await store.park(id_, code="x", text="", attempts=1, fence=fence)

    for other in (mine._replace(epoch=epoch - 1), mine._replace(worker="you"), mine._replace(slot=4)):
        assert not await parked(other)
    assert len(await table(engine)) == 2
    assert await parked(mine)
    await leases.release(3, epoch=epoch)
    assert not await parked(mine, ids[1])
    assert [row["id"] for row in await table(engine)] == ids[1:]


# SQLite has one writer at a time.
@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_lease_cannot_be_taken_while_its_owner_parks(
    store: ParkedStore, engine: AsyncEngine, leases: SqlSlotLeases
) -> None:
    (id_,) = await write(engine, record())
    epoch = await leases.acquire(3, owner=None, epoch=0)
    assert epoch is not None
    async with engine.connect() as other, asyncio.timeout(DEADLINE):
        # Somebody takes the slot, and has not committed yet.
        await other.execute(
            sa.text("UPDATE kafka_topic_info SET locked_by = 'you', epoch = epoch + 1 WHERE topic = 'slot-3'")
        )
        parking = asyncio.ensure_future(store.park(id_, code="x", text="", attempts=1, fence=Fence(3, "me", epoch)))
        assert not (await asyncio.wait([parking], timeout=0.2))[0]
        await other.commit()
        assert not await parking
    assert len(await table(engine)) == 1


async def test_retried_rows_come_back_behind_what_waits_with_their_message_ids(
    store: ParkedStore, engine: AsyncEngine
) -> None:
    ids = await write(engine, record(b"1"), record(None), record(b"3"))
    before = await table(engine)
    await park(store, ids[1], ids[0])
    assert await store.retry([ids[1], ids[0], ids[2] + 1000]) == 2
    after = await table(engine)
    assert [row["message"] for row in after] == [b"3", b"1", None]
    assert min(row["id"] for row in after[1:]) > ids[2]
    kept = [{name: row[name] for name in row if name not in ("id", "updated_at")} for row in after[1:]]
    assert kept == [{name: row[name] for name in row if name not in ("id", "updated_at")} for row in before[:2]]
    assert not await table(engine, kafka_parked_messages)


async def test_rows_retried_twice_at_once_come_back_once(store: ParkedStore, engine: AsyncEngine) -> None:
    ids = await write(engine, *(record() for _ in range(5)))
    await park(store, *ids)
    outcomes = await asyncio.gather(*(store.retry(ids) for _ in range(3)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(error, DatabaseError) and error.retriable for error in refused)
    assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 5
    assert len(await table(engine)) == 5
    assert not await table(engine, kafka_parked_messages)


async def test_many_rows_are_retried_and_dropped_in_parts(store: ParkedStore, engine: AsyncEngine) -> None:
    ids = await write(engine, *(record(b"%d" % number) for number in range(250)))
    async with engine.begin() as connection:
        names = [column.name for column in kafka_messages.columns]
        reasons = (sa.literal(1), sa.func.current_timestamp(), sa.true())
        copied = sa.select(*kafka_messages.columns, *reasons)
        into = [*names, "attempts", "parked_at", "releases_key"]
        await connection.execute(sa.insert(kafka_parked_messages).from_select(into, copied))
        await connection.execute(sa.delete(kafka_messages))
    assert await store.drop(ids[:120]) == 120
    assert await store.retry(ids) == 130
    assert [row["message"] for row in await table(engine)] == [b"%d" % number for number in range(120, 250)]
    assert not await store.rows(EVERYTHING)


async def test_rows_are_chosen_by_everything_that_is_given(store: ParkedStore, engine: AsyncEngine) -> None:
    ids = await write(engine, record(), record(topic="bills"), record(), record(topic="Orders"))
    await park(store, ids[0], ids[1], ids[3])
    await park(store, ids[2], code="no_key")

    async def found(**wanted: Any) -> list[int]:
        return [row.id for row in await store.rows(ParkedFilter(**wanted))]

    assert await found() == ids[::-1]
    assert await found(topics=["orders"]) == [ids[2], ids[0]]
    assert await found(topics=["orders"], codes=["no_key"]) == [ids[2]]
    assert await found(ids=[ids[3], ids[1]], topics=["bills", "orders"]) == [ids[1]]
    now = datetime.now(UTC)
    assert await found(since=now - timedelta(hours=1), until=now + timedelta(hours=1)) == ids[::-1]
    assert await found(until=now - timedelta(hours=1)) == []
    assert await found(since=now + timedelta(hours=1)) == []
    assert [row.id for row in await store.rows(EVERYTHING, limit=2)] == ids[:1:-1]
    assert sorted(await store.counts(EVERYTHING)) == [
        ("Orders", "too_large", 1),
        ("bills", "too_large", 1),
        ("orders", "no_key", 1),
        ("orders", "too_large", 1),
    ]


async def test_first_row_of_each_key_that_waits_for_long_is_found(store: ParkedStore, engine: AsyncEngine) -> None:
    ids = await write(engine, record(), record(), record(key=b"b"), record(topic="bills"), record(key=b"new"))
    async with engine.begin() as connection:
        written = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
        old = sa.update(kafka_messages).where(kafka_messages.c.id.in_(ids[:4])).values(created_at=written)
        await connection.execute(old)
    fronts = await store.waiting(older_than=60)
    assert [front.id for front in fronts] == [ids[0], ids[2], ids[3]]
    assert all(3500 < front.age < 3900 for front in fronts)
    assert [front.id for front in await store.waiting(older_than=60, topics=["bills"])] == [ids[3]]
    one = await store.waiting_row(ids[0])
    assert one is not None
    assert one[:4] == fronts[0][:4]
    assert await store.waiting_row(ids[4] + 1000) is None


async def test_content_is_the_same_before_and_after(store: ParkedStore, engine: AsyncEngine) -> None:
    ids = await write(engine, record(partition_key=b"abc", partition=1), record(None, partition_key=b"\xfb"))
    before = [await store.content(id_, is_parked=False) for id_ in ids]
    assert before[0] is not None
    assert before[0] == (b"\xfe", b"\xffvalue", b"abc", before[0].headers, 1, 1_700_000_000_123)
    assert before[1] is not None
    assert (before[1].message, before[1].partition_key) == (None, b"\xfb")
    await park(store, *ids)
    assert [await store.content(id_, is_parked=True) for id_ in ids] == before
    assert await store.content(ids[0], is_parked=False) is None


@pytest.mark.parametrize("isolation", ["default", "AUTOCOMMIT"])
async def test_move_that_breaks_off_leaves_the_row_where_it_was(engine: AsyncEngine, isolation: str) -> None:
    first, second = await write(engine, record(), record())
    own = engine if isolation == "default" else engine.execution_options(isolation_level=isolation)
    store = ParkedStore(own)
    await park(store, second)

    class Broken(Exception):
        pass

    def fail(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("DELETE"):
            raise Broken

    sa.event.listen(engine.sync_engine, "before_cursor_execute", fail)
    with pytest.raises(Broken):
        await store.park(first, code="x", text="", attempts=1, fence=None)
    with pytest.raises(Broken):
        await store.retry([second])
    sa.event.remove(engine.sync_engine, "before_cursor_execute", fail)
    assert [row["id"] for row in await table(engine)] == [first]
    assert [row["id"] for row in await table(engine, kafka_parked_messages)] == [second]


async def test_unreachable_database_is_told_as_such(unused_tcp_port: int) -> None:
    for scheme in ("postgresql+asyncpg", "mysql+aiomysql"):
        engine = create_async_engine(f"{scheme}://user:word@127.0.0.1:{unused_tcp_port}/none")
        with pytest.raises(DatabaseUnavailableError):
            await ParkedStore(engine).park(1, code="x", text="", attempts=1, fence=None)
        await engine.dispose()

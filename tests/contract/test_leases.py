"""The table of leases does the same on three databases: of two who want a slot one has it, for as long as it renews."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from fresh_database import KINDS, SERVERS, fresh_database
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async.database.creation import create_framework_tables
from deimos_async.database.leases import SqlSlotLeases
from deimos_async.database.outbox.protocol import LeaseTable, WorkerRow
from deimos_async.errors import ConfigurationError, DatabaseUnavailableError

DEADLINE = 30.0


@pytest.fixture(params=KINDS)
async def engine(request: pytest.FixtureRequest, tmp_path: Path, unique_name: str) -> AsyncIterator[AsyncEngine]:
    if request.param == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
        await create_framework_tables(engine)
        yield engine
        await engine.dispose()
        return
    server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    async with fresh_database(server, unique_name[:60]) as url:
        engine = create_async_engine(url)
        await create_framework_tables(engine)
        yield engine
        await engine.dispose()


Make = Callable[..., SqlSlotLeases]


@pytest.fixture
async def make(engine: AsyncEngine) -> AsyncIterator[Make]:
    made: list[SqlSlotLeases] = []

    def make(worker: str, *, ttl: float = 60.0, layout: str = "a layout") -> SqlSlotLeases:
        leases = SqlSlotLeases(engine, worker=worker, slots=4, layout=layout, ttl=ttl)
        made.append(leases)
        return leases

    yield make
    for leases in made:
        await leases.close()


def owners(table: LeaseTable) -> Sequence[str | None]:
    return [slot.owner for slot in table.slots]


def alive(table: LeaseTable) -> list[str]:
    return [worker.id for worker in table.workers if worker.is_alive]


async def test_first_who_joins_finds_all_slots_free(make: Make) -> None:
    leases = make("one")
    await leases.join()
    table = await leases.look(renew=False)
    assert [slot.number for slot in table.slots] == [0, 1, 2, 3]
    assert owners(table) == [None] * 4
    assert not any(slot.is_leased for slot in table.slots)
    assert alive(table) == ["one"]


async def test_slot_is_taken_once_and_its_epoch_grows_with_each_owner(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.join()
    await two.join()
    assert await one.acquire(2, owner=None, epoch=0) == 1
    assert await two.acquire(2, owner=None, epoch=0) is None
    table = await two.look(renew=False)
    assert table.slots[2] == (2, "one", 1, True)
    await one.release(2, epoch=1)
    assert (await two.look(renew=True)).slots[2] == (2, None, 1, False)
    assert await two.acquire(2, owner=None, epoch=1) == 2
    assert (await one.look(renew=True)).slots[2] == (2, "two", 2, True)


async def test_slot_is_taken_from_an_owner_as_it_was_seen(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.join()
    await two.join()
    await one.acquire(0, owner=None, epoch=0)
    assert await two.acquire(0, owner="three", epoch=1) is None
    assert await two.acquire(0, owner="one", epoch=0) is None
    assert await two.acquire(0, owner="one", epoch=1) == 2
    await one.release(0, epoch=1)
    await one.look(renew=True)
    assert (await two.look(renew=False)).slots[0] == (0, "two", 2, True)


async def test_lease_that_is_not_renewed_expires_and_a_renewal_makes_it_last_again(make: Make) -> None:
    one, two = make("one", ttl=0.2), make("two")
    await two.join()
    await one.join()
    await one.acquire(1, owner=None, epoch=0)
    async with asyncio.timeout(DEADLINE):
        while (table := await two.look(renew=False)).slots[1].is_leased or "one" in alive(table):
            pass
    assert table.slots[1].owner == "one"
    table = await one.look(renew=True)
    table = await one.look(renew=False)
    assert table.slots[1].is_leased
    assert "one" in alive(table)


async def test_renewal_leaves_leases_of_others_alone(make: Make) -> None:
    one, two = make("one", ttl=0.2), make("two")
    await one.join()
    await two.join()
    await one.acquire(1, owner=None, epoch=0)
    async with asyncio.timeout(DEADLINE):
        while (await two.look(renew=True)).slots[1].is_leased:
            pass


async def test_who_leaves_is_no_worker_any_more(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.join()
    await two.join()
    await one.leave()
    assert alive(await two.look(renew=False)) == ["two"]
    with pytest.raises(DatabaseUnavailableError):
        await one.look(renew=False)


async def test_who_joins_again_has_kept_its_slots(make: Make) -> None:
    leases = make("one")
    await leases.join()
    await leases.acquire(3, owner=None, epoch=0)
    await leases.close()
    await leases.join()
    assert (await leases.look(renew=True)).slots[3] == (3, "one", 1, True)


async def test_another_layout_is_refused(make: Make) -> None:
    await make("one").join()
    with pytest.raises(ConfigurationError, match="laid out as 'a layout'"):
        await make("two", layout="another one").join()


async def test_workers_that_died_long_ago_are_forgotten(make: Make, engine: AsyncEngine) -> None:
    one, two = make("one"), make("two")
    await one.join()
    await two.join()
    await two.close()
    async with engine.begin() as connection:
        await connection.execute(
            sa.text("UPDATE kafka_topic_info SET expires_at = '2020-01-01 00:00:00.000000' WHERE topic = 'worker-two'")
        )
    await one.forget_dead()
    assert [worker.id for worker in (await one.look(renew=False)).workers] == ["one"]


async def test_rows_of_a_deimos_are_left_alone(make: Make, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO kafka_topic_info (topic, locked_by) VALUES ('orders', 'abc')"))
    leases = make("one")
    await leases.join()
    await leases.acquire(0, owner=None, epoch=0)
    await leases.look(renew=True)
    await leases.leave()
    async with engine.connect() as connection:
        found = await connection.execute(
            sa.text("SELECT locked_by, expires_at, epoch FROM kafka_topic_info WHERE topic = 'orders'")
        )
        assert found.one() == ("abc", None, 0)


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_lock_of_a_worker_is_free_as_soon_as_its_connection_is_gone(make: Make) -> None:
    one, two = make("one"), make("two")
    await one.join()
    await two.join()
    assert one.has_locks
    await one.look(renew=True)
    table = await one.look(renew=False)
    assert WorkerRow("two", True, False) in table.workers
    await two.close()
    async with asyncio.timeout(DEADLINE):
        while WorkerRow("two", True, True) not in (await one.look(renew=False)).workers:
            pass


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_database_without_locks_says_so(make: Make) -> None:
    leases = make("one")
    await leases.join()
    assert not leases.has_locks
    await leases.look(renew=True)
    assert (await leases.look(renew=False)).workers == [WorkerRow("one", True, False)]


async def test_missing_table_is_told(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}")
    leases = SqlSlotLeases(engine, worker="one", slots=4, layout="a layout", ttl=5.0)
    with pytest.raises(Exception, match="kafka_topic_info"):
        await leases.join()
    await engine.dispose()

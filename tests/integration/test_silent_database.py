"""A network that forgets connections to the database without a word: nobody waits for them longer than need be."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from fault_proxy import TcpProxy
from servers import free_port

from deimos_async.database.direct import DirectConnection
from deimos_async.database.engines import Database
from deimos_async.errors import DatabaseUnavailableError

DEADLINE = 30.0


class Place:
    """A database, and the way to it."""

    def __init__(self, proxy: TcpProxy, database: Database) -> None:
        self.proxy = proxy
        self.database = database


@pytest.fixture(
    params=[
        pytest.param("postgres_url", marks=pytest.mark.services("postgres"), id="postgresql"),
        pytest.param("mariadb_url", marks=pytest.mark.services("mariadb"), id="mariadb"),
    ]
)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    url = make_url(request.getfixturevalue(request.param))
    async with TcpProxy(free_port(), (url.host or "", url.port or 0)) as proxy:
        way = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        place = Place(proxy, Database.from_url(way))
        yield place
        await place.database.close()


async def answer(connection: DirectConnection) -> int:
    return int((await connection.fetch("SELECT 1"))[0][0])


async def test_wait_for_an_answer_ends_when_the_connection_is_distrusted(place: Place) -> None:
    connection = DirectConnection(place.database.engine, timeout=3600.0)
    async with asyncio.timeout(DEADLINE):
        await connection.open()
        place.proxy.silence(new=False)
        asking = asyncio.create_task(answer(connection))
        await asyncio.sleep(0)  # its first step: it waits for the network
        connection.distrust()
        with pytest.raises(DatabaseUnavailableError, match="on a newer connection"):
            await asking
        await connection.open()
        assert await answer(connection) == 1
        await connection.close()


async def test_wait_for_a_connection_ends_when_it_is_distrusted(place: Place) -> None:
    connection = DirectConnection(place.database.engine, timeout=3600.0)
    place.proxy.silence(new=True)
    async with asyncio.timeout(DEADLINE):
        opening = asyncio.create_task(connection.open())
        await asyncio.sleep(0)  # its first step: it waits for the network
        connection.distrust()
        with pytest.raises(DatabaseUnavailableError, match="no connection before"):
            await opening
        place.proxy.heal()
        await connection.open()
        assert await answer(connection) == 1
        await connection.close()


async def test_idle_connection_that_is_distrusted_is_not_used_again(place: Place) -> None:
    connection = DirectConnection(place.database.engine)
    await connection.open()
    connection.distrust()
    with pytest.raises(DatabaseUnavailableError):
        await answer(connection)
    await connection.close()


async def test_connection_of_its_own_is_none_of_the_pool_whose_idle_ones_may_be_dead(place: Place) -> None:
    async with place.database.engine.connect() as pooled:
        await pooled.execute(text("SELECT 1"))
    place.proxy.silence(new=False)
    connection = DirectConnection(place.database.engine, timeout=3600.0)
    async with asyncio.timeout(DEADLINE):
        await connection.open()
        assert await answer(connection) == 1
        await connection.close()


async def test_pool_with_dead_connections_is_closed_in_bounded_time(place: Place) -> None:
    engine = place.database.engine
    async with engine.connect() as one, engine.connect() as another:
        for pooled in (one, another):
            await pooled.execute(text("SELECT 1"))
    place.proxy.silence(new=False)
    async with asyncio.timeout(DEADLINE):
        await place.database.close()

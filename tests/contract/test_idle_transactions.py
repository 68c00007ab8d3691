"""A transaction that nobody goes on with is ended by the server, and its locks with it."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from deimos_async.database.engines import Database
from deimos_async.database.errors import is_away

DEADLINE = 60.0


@pytest.mark.parametrize(
    "service",
    [
        pytest.param("postgres_url", marks=pytest.mark.services("postgres"), id="postgresql"),
        pytest.param("mariadb_url", marks=pytest.mark.services("mariadb"), id="mariadb"),
    ],
)
async def test_locks_of_a_transaction_that_is_left_idle_hold_up_others_for_a_bounded_time(
    request: pytest.FixtureRequest, service: str, unique_name: str
) -> None:
    url: str = request.getfixturevalue(service)
    table = sa.Table(
        unique_name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer)
    )
    count = sa.update(table).values(n=table.c.n + 1)
    frozen, other = Database.from_url(url, idle_transaction_timeout=1.0), Database.from_url(url)
    try:
        async with other.engine.begin() as connection:
            await connection.run_sync(table.metadata.create_all)
            await connection.execute(sa.insert(table), [{"id": 1, "n": 0}])
        async with frozen.session() as session:
            await session.execute(count)  # holds the row's lock, and is left
            async with asyncio.timeout(DEADLINE), other.engine.begin() as connection:
                await connection.execute(count)
            with pytest.raises(DBAPIError) as caught:
                await session.execute(count)
            assert is_away(caught.value)
        async with other.engine.begin() as connection:
            assert (await connection.execute(sa.select(table.c.n))).scalar_one() == 1
            await connection.run_sync(table.metadata.drop_all)
    finally:
        await frozen.close()
        await other.close()

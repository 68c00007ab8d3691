"""Rows for the outbox, and the quickest way to insert them that drivers offer.

Ours is what a producer does with encoded messages in `app.transaction()`: it makes the rows, keeps them for the end of
the transaction, and tells what was committed. By hand the same rows, made before, go to the driver; no commit is saved
on either side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from measuring import Clock, key
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from upserting import Server

ROWS = 1000
"""Rows of one transaction, ours and theirs."""
VALUE = b"x" * 500

Insert = Callable[[Sequence[tuple[Any, ...]]], Awaitable[None]]
"""Inserts rows and commits."""


@asynccontextmanager
async def empty_outbox(server: Server) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with an empty outbox. Its tables are dropped in the end. SQLite: a file, in WAL mode."""
    from deimos_async.database.creation import create_framework_tables
    from deimos_async.database.tables import metadata

    with tempfile.TemporaryDirectory() as folder:
        if server == "sqlite":
            engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/bench.db")
            event.listen(engine.sync_engine, "connect", _tune)
        else:
            engine = create_async_engine(os.environ[f"DEIMOS_TEST_{server.upper()}"])
        try:
            async with engine.begin() as connection:
                await connection.run_sync(metadata.drop_all)
            await create_framework_tables(engine)
            yield engine
            async with engine.begin() as connection:
                await connection.run_sync(metadata.drop_all)
        finally:
            await engine.dispose()


def _tune(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def records(count: int) -> list[Any]:
    """Encoded messages, as producers make them."""
    from deimos_async.message import OutboundRecord

    return [OutboundRecord("bench", key(number).encode(), VALUE) for number in range(count)]


async def enqueue_ours(count: int, *, server: Server) -> dict[str, float]:
    """Through the backend `outbox`, in transactions of `ROWS` messages."""
    from deimos_async import Deimos, Key
    from deimos_async.producing.outlet import Outgoing, is_storing

    async with empty_outbox(server) as engine:
        settings = {"producers.backend": "outbox", "logging.payload_log": "count"}
        app = Deimos(settings, engine=engine, metrics=None, tracing=None)
        app.producer(app.topic("bench", schema_backend="plain", key=Key.plain()))
        async with app.running(only=("producers",)):
            outlets = app._current_outlets()
            backend, outlet = outlets.backend("outbox"), outlets.topic("bench")
            assert is_storing(backend)
            messages = [Outgoing(outlet, "Producer", record, VALUE, None, None) for record in records(count)]

            async def store(batch: Sequence[Any]) -> None:
                async with app.transaction() as session:
                    backend.enlist(session, batch)

            await store(messages[:ROWS])
            clock = Clock()
            clock.start()
            for start in range(0, count, ROWS):
                await store(messages[start : start + ROWS])
            clock.stop()
        await _check(engine, count + ROWS)
    return clock.measured


async def enqueue_raw(count: int, *, server: Server) -> dict[str, float]:
    """By the driver, in transactions of `ROWS` rows."""
    from deimos_async.outbox.rows import make_rows

    async with empty_outbox(server) as engine:
        rows = make_rows(records(count))
        async with BY_HAND[server](engine) as insert:
            await insert(rows[:ROWS])
            clock = Clock()
            clock.start()
            for start in range(0, count, ROWS):
                await insert(rows[start : start + ROWS])
            clock.stop()
        await _check(engine, count + ROWS)
    return clock.measured


async def _check(engine: AsyncEngine, count: int) -> None:
    """Raises RuntimeError unless the table has so many rows."""
    async with engine.connect() as connection:
        found = await connection.scalar(text("SELECT count(*) FROM kafka_messages"))
    if found != count:
        raise RuntimeError(f"the outbox has {found} rows, it should have {count}")


COLUMNS = (
    "topic", "message", "key", "partition_key", "shard", "order_hash", "order_key", "headers", "kafka_partition",
    "timestamp_ms", "message_id", "size",
)  # fmt: skip


@asynccontextmanager
async def unnest(engine: AsyncEngine) -> AsyncIterator[Insert]:
    """asyncpg: one statement with an array for each column, a quarter quicker than its `executemany`."""
    import asyncpg

    kinds = ("text", "bytea", "bytea", "text", "int2", "int4", "bytea", "text", "int4", "int8", "text", "int4")
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(kinds, 1))
    statement = f"INSERT INTO kafka_messages ({', '.join(COLUMNS)}) SELECT * FROM unnest({arrays})"
    connection = await asyncpg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:

        async def insert(rows: Sequence[tuple[Any, ...]]) -> None:
            async with connection.transaction():
                await connection.execute(statement, *map(list, zip(*rows, strict=True)))

        yield insert
    finally:
        await connection.close()


@asynccontextmanager
async def many_values(engine: AsyncEngine) -> AsyncIterator[Insert]:
    """aiomysql: statements of many rows, as its `executemany` makes them, which cannot send bytes with PyMySQL 1.2."""
    import aiomysql

    url = engine.url
    head = f"INSERT INTO kafka_messages ({', '.join(COLUMNS).replace(', key,', ', `key`,')}) VALUES "
    connection = await aiomysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        db=url.database,
        charset="utf8mb4",
    )
    escape = connection.escape

    def literal(value: Any) -> str:
        return f"x'{value.hex()}'" if type(value) is bytes else "NULL" if value is None else str(escape(value))

    try:
        async with connection.cursor() as cursor:

            async def insert(rows: Sequence[tuple[Any, ...]]) -> None:
                for start in range(0, len(rows), 500):
                    part = [f"({','.join(map(literal, row))})" for row in rows[start : start + 500]]
                    await cursor.execute(head + ",".join(part))
                await connection.commit()

            yield insert
    finally:
        connection.close()


@asynccontextmanager
async def prepared(engine: AsyncEngine) -> AsyncIterator[Insert]:
    """aiosqlite: its `executemany`."""
    import aiosqlite

    statement = f"INSERT INTO kafka_messages ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    assert engine.url.database is not None
    async with aiosqlite.connect(engine.url.database) as connection:

        async def insert(rows: Sequence[tuple[Any, ...]]) -> None:
            await connection.executemany(statement, rows)
            await connection.commit()

        yield insert


BY_HAND: Mapping[Server, Callable[[AsyncEngine], AbstractAsyncContextManager[Insert]]] = {
    "postgres": unnest,
    "mariadb": many_values,
    "sqlite": prepared,
}

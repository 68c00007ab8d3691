"""The table of the area "upsert", what must be in it afterwards, and the quickest way into it that drivers offer.

It needs SQLAlchemy and the drivers, which the environment of other frameworks has too, and nothing of ours.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from measuring import outcome
from sqlalchemy import BigInteger, DateTime, Double, Integer, String, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Server = Literal["postgres", "mariadb", "sqlite"]
Row = tuple[Any, ...]
Write = Callable[[Collection[Row]], Awaitable[None]]
"""Puts rows into the table and commits; no key occurs twice in one call."""

BATCH = 5000
"""Most messages in a batch, ours and theirs."""


class Base(DeclarativeBase):
    """Of the one model."""


class Purchase(Base):
    """A row for each order; its address and its tags are not kept."""

    __tablename__ = "bench_orders"

    order_id: Mapped[int] = mapped_column(
        # SQLite has a quicker kind of key for this type alone.
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=False,
    )
    customer: Mapped[str] = mapped_column(String(100))
    coupon: Mapped[str | None] = mapped_column(String(40))
    total: Mapped[float] = mapped_column(Double)
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    status: Mapped[str] = mapped_column(String(10))


COLUMNS: tuple[str, ...] = tuple(Purchase.__table__.columns.keys())
OTHERS = COLUMNS[1:]
"""All but the key."""
row_of: Callable[[Mapping[str, Any]], Row] = itemgetter(*COLUMNS)
"""The columns of a decoded payload."""


@asynccontextmanager
async def emptied(server: Server) -> AsyncIterator[AsyncEngine]:
    """An engine on a database in which the table is empty. The table is dropped in the end.

    The server's URL is in the variable that `scripts/services.py` sets; SQLite gets a file of its own, in WAL mode and
    with `synchronous=NORMAL`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if server == "sqlite":
            engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/bench.db")
            event.listen(engine.sync_engine, "connect", _tune)
        else:
            engine = create_async_engine(os.environ[f"DEIMOS_TEST_{server.upper()}"])
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.drop_all)
                await connection.run_sync(Base.metadata.create_all)
            try:
                yield engine
            finally:
                async with engine.begin() as connection:
                    await connection.run_sync(Base.metadata.drop_all)
        finally:
            await engine.dispose()


def _tune(connection: Any, record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


async def check(engine: AsyncEngine, count: int) -> None:
    """Raises RuntimeError unless the table is what `count` messages leave behind."""
    async with engine.connect() as connection:
        found = (await connection.execute(select(func.count(), func.sum(Purchase.total)))).one()
    if tuple(found) != outcome(count):
        raise RuntimeError(f"the table has (rows, sum of total) {tuple(found)}, it should be {outcome(count)}")


# --- by hand, with drivers alone -------------------------------------------------------------------------------


@asynccontextmanager
async def copy_and_merge(engine: AsyncEngine) -> AsyncIterator[Write]:
    """asyncpg: COPY into a temporary table of the session, and one statement from there."""
    import asyncpg

    names = ", ".join(COLUMNS)
    changes = ", ".join(f"{name} = excluded.{name}" for name in OTHERS)
    merge = (
        f"INSERT INTO bench_orders ({names}) SELECT {names} FROM bench_staging"
        f" ON CONFLICT (order_id) DO UPDATE SET {changes}"
    )
    connection = await asyncpg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        await connection.execute("CREATE TEMPORARY TABLE bench_staging (LIKE bench_orders) ON COMMIT DELETE ROWS")

        async def write(rows: Collection[Row]) -> None:
            async with connection.transaction():
                await connection.copy_records_to_table("bench_staging", records=rows, columns=COLUMNS)
                await connection.execute(merge)

        yield write
    finally:
        await connection.close()


@asynccontextmanager
async def load_and_merge(engine: AsyncEngine) -> AsyncIterator[Write]:
    """aiomysql: LOAD DATA LOCAL into a temporary table of the session, and one statement from there.

    It is a fifth quicker than one statement with all values. LOAD DATA with REPLACE would be quicker still, but it
    deletes rows to make them anew, which is no upsert. The server must allow `local_infile`, as MariaDB does by
    default.
    """
    import aiomysql

    url = engine.url
    names = ", ".join(COLUMNS)
    changes = ", ".join(f"{name} = VALUES({name})" for name in OTHERS)
    merge = f"INSERT INTO bench_orders ({names}) SELECT {names} FROM bench_staging ON DUPLICATE KEY UPDATE {changes}"
    connection = await aiomysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        db=url.database,
        charset="utf8mb4",
        local_infile=True,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows"
            load = f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE bench_staging CHARACTER SET utf8mb4 ({names})"
            async with connection.cursor() as cursor:
                await cursor.execute("CREATE TEMPORARY TABLE bench_staging LIKE bench_orders")

                async def write(rows: Collection[Row]) -> None:
                    path.write_text("".join(["\t".join(map(_field, row)) + "\n" for row in rows]))
                    await cursor.execute(load)
                    await cursor.execute(merge)
                    await connection.commit()
                    await cursor.execute("TRUNCATE TABLE bench_staging")

                yield write
    finally:
        connection.close()


def _field(value: Any) -> str:
    """A value in a file for LOAD DATA."""
    if value is None:
        return "\\N"
    if type(value) is str:
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return f"{value:%Y-%m-%d %H:%M:%S.%f}" if type(value) is datetime else str(value)


@asynccontextmanager
async def executemany(engine: AsyncEngine) -> AsyncIterator[Write]:
    """aiosqlite: `executemany` of one statement."""
    import aiosqlite

    changes = ", ".join(f"{name} = excluded.{name}" for name in OTHERS)
    statement = (
        f"INSERT INTO bench_orders ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
        f" ON CONFLICT (order_id) DO UPDATE SET {changes}"
    )
    moment = COLUMNS.index("placed_at")
    assert engine.url.database is not None
    async with aiosqlite.connect(engine.url.database) as connection:
        await connection.execute("PRAGMA synchronous=NORMAL")  # the other one stays with the file

        async def write(rows: Collection[Row]) -> None:
            # The driver's own conversion of times is deprecated.
            await connection.executemany(
                statement, [(*row[:moment], row[moment].isoformat(" "), *row[moment + 1 :]) for row in rows]
            )
            await connection.commit()

        yield write


BY_HAND: Mapping[Server, Callable[[AsyncEngine], AbstractAsyncContextManager[Write]]] = {
    "postgres": copy_and_merge,
    "mariadb": load_and_merge,
    "sqlite": executemany,
}

"""A table that is polled, and a loop by hand that reads the same pages and sends the same messages.

By hand: pages by keyset with the driver, fastavro, aiokafka's batches, the cursor saved after each page.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from measuring import BATCH_BYTES, FRAME, HERE, KAFKA, REGISTRY, Clock, order
from sqlalchemy import BigInteger, DateTime, Double, Index, String, insert
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from upserting import Server

PAGE = 1000
"""Rows of one page, ours and theirs."""
BEGUN = datetime(2026, 1, 1, 12, 30, tzinfo=UTC).replace(tzinfo=None)
_STAMP = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_FIELDS = ("order_id", "customer", "coupon", "total", "placed_at", "status")

Page = Callable[[datetime, int], Awaitable[Sequence[Sequence[Any]]]]
"""Rows behind a time and a key; the last column is the time."""
Save = Callable[[datetime, int], Awaitable[None]]


class Base(DeclarativeBase):
    """Of the one model."""


class PolledPurchase(Base):
    """A row for each order."""

    __tablename__ = "bench_polled"
    __table_args__ = (Index("bench_polled_by_time", "updated_at", "order_id"),)

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(String(100))
    coupon: Mapped[str | None] = mapped_column(String(40))
    total: Mapped[float] = mapped_column(Double)
    placed_at: Mapped[datetime] = mapped_column(_STAMP)
    status: Mapped[str] = mapped_column(String(10))
    updated_at: Mapped[datetime] = mapped_column(_STAMP)


@asynccontextmanager
async def filled(server: Server, count: int) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with so many rows, none of which was sent. Its tables are dropped in the end."""
    from deimos_async.database.creation import create_framework_tables
    from deimos_async.database.tables import metadata

    engine = create_async_engine(os.environ[f"DEIMOS_TEST_{server.upper()}"])
    try:
        for tables in (metadata, Base.metadata):
            async with engine.begin() as connection:
                await connection.run_sync(tables.drop_all)
        await create_framework_tables(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            for first in range(0, count, PAGE):
                numbers = range(first, min(first + PAGE, count))
                await connection.execute(insert(PolledPurchase), [_row(number) for number in numbers])
        yield engine
        for tables in (metadata, Base.metadata):
            async with engine.begin() as connection:
                await connection.run_sync(tables.drop_all)
    finally:
        await engine.dispose()


def _row(number: int) -> dict[str, Any]:
    payload = {name: value for name, value in order(number).items() if name in _FIELDS}
    return payload | {"placed_at": BEGUN, "updated_at": BEGUN + timedelta(milliseconds=number)}


async def poll_ours(topic: str, count: int, *, server: Server) -> dict[str, float]:
    """One run of a poller, from its start until it has ended."""
    from deimos_async import Deimos, Key, ModelProducer
    from deimos_async.cli.run import settle_memory
    from deimos_async.service import Supervisor

    async with filled(server, count) as engine:
        settings = {
            "kafka.bootstrap_servers": KAFKA,
            "kafka.create_topics": True,
            "schema.registry_url": REGISTRY,
            "schema.path": str(HERE / "schemas"),
            "logging.payload_log": "count",
            "pollers.batch_rows": PAGE,
        }
        app = Deimos(settings, engine=engine)
        declared = app.topic(topic, schema="com.acme.BenchPurchase", key=Key.field("order_id"))
        app.poller(app.producer(declared, types.new_class("PurchaseProducer", (ModelProducer[PolledPurchase],))))
        clock, supervisor, ended = Clock(), Supervisor(), asyncio.Event()
        async with app.running(only=("producers",)):
            assert app._running is not None
            assert app._running.plan is not None
            for planned in app._running.plan.topics.values():
                await planned.codec.prepare()
            settle_memory()
            pollers = app._running.build_pollers()
            pollers.on_change = lambda: ended.set() if pollers.status()[0].runs else None
            await supervisor.open()
            clock.start()
            await supervisor.start([pollers])
            await ended.wait()
            clock.stop()
            await supervisor.stop(pollers, timeout=30.0)
            await supervisor.close()
        if pollers.status()[0].rows != count:
            raise RuntimeError(f"{pollers.status()[0].rows} rows were sent, it should be {count}")
    return clock.measured


async def poll_raw(topic: str, count: int, *, server: Server) -> dict[str, float]:
    """The loop by hand, until a page is empty."""
    async with filled(server, count) as engine, engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        page, save = _postgres(driver) if server == "postgres" else await _mariadb(driver)
        clock = Clock()
        sent = await _send(topic, page, save, clock)
        if sent != count:
            raise RuntimeError(f"{sent} rows were sent, it should be {count}")
    return clock.measured


def _postgres(driver: Any) -> tuple[Page, Save]:
    columns = ", ".join(_FIELDS)

    async def page(time: datetime, key: int) -> Sequence[Sequence[Any]]:
        found: Sequence[Sequence[Any]] = await driver.fetch(
            f"SELECT {columns}, updated_at FROM bench_polled WHERE (updated_at, order_id) > ($1, $2) "
            f"ORDER BY updated_at, order_id LIMIT {PAGE}",
            time,
            key,
        )
        return found

    async def save(time: datetime, key: int) -> None:
        await driver.execute("UPDATE deimos_poll_info SET cursor_time = $1, cursor_key = $2", str(time), str(key))

    return page, save


async def _mariadb(driver: Any) -> tuple[Page, Save]:
    columns = ", ".join(_FIELDS)
    await driver.autocommit(True)

    async def page(time: datetime, key: int) -> Sequence[Sequence[Any]]:
        async with driver.cursor() as cursor:
            await cursor.execute(
                f"SELECT {columns}, updated_at FROM bench_polled WHERE updated_at >= %s "
                f"AND (updated_at > %s OR order_id > %s) ORDER BY updated_at, order_id LIMIT {PAGE}",
                (time, time, key),
            )
            found: Sequence[Sequence[Any]] = await cursor.fetchall()
            return found

    async def save(time: datetime, key: int) -> None:
        async with driver.cursor() as cursor:
            await cursor.execute("UPDATE deimos_poll_info SET cursor_time = %s, cursor_key = %s", (str(time), str(key)))

    return page, save


async def _send(topic: str, page: Page, save: Save, clock: Clock) -> int:
    from aiokafka import AIOKafkaProducer
    from fastavro import parse_schema, schemaless_writer

    parsed = parse_schema(json.loads((HERE / "schemas/com/acme/BenchPurchase.avsc").read_text()))
    key_schema = parse_schema(
        {"type": "record", "name": "BenchPurchase_key", "fields": [{"name": "order_id", "type": "long"}]}
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=KAFKA, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
    )

    def encoded(schema: Any, payload: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(FRAME)
        schemaless_writer(out, schema, payload)
        return out.getvalue()

    await producer.start()
    try:
        await producer.partitions_for(topic)
        sent, time, key = 0, BEGUN - timedelta(days=1), 0
        clock.start()
        while rows := await page(time, key):
            batches: list[Any] = []
            batch = producer.create_batch()
            for row in rows:
                payload = dict(zip(_FIELDS, row, strict=False))
                payload["placed_at"] = payload["placed_at"].replace(tzinfo=UTC)
                name = encoded(key_schema, {"order_id": payload["order_id"]})
                value = encoded(parsed, payload)
                if batch.append(key=name, value=value, timestamp=None) is None:
                    batches.append(await producer.send_batch(batch, topic, partition=0))
                    batch = producer.create_batch()
                    batch.append(key=name, value=value, timestamp=None)
            batches.append(await producer.send_batch(batch, topic, partition=0))
            await asyncio.gather(*batches)
            time, key = rows[-1][-1], rows[-1][0]
            await save(time, key)
            sent += len(rows)
        clock.stop()
        return sent
    finally:
        await producer.stop()

"""Tables whose rows are sent: an application in memory on a database of any kind, and what its producers have sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_database import fresh_database
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, mapped_column

from deimos_async import Deimos, KafkaConfig, KafkaSource, Key, Producer, Topic
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import kafka_messages
from deimos_async.message import OutboundRecord

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))
DATABASES = ["sqlite", POSTGRESQL, MARIADB]

WIDGET = {
    "type": "record",
    "name": "Widget",
    "namespace": "com.acme",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"], "default": None},
        {"name": "model_id", "type": ["null", "string"], "default": None},
        {"name": "some_int", "type": ["null", "int"], "default": None},
        {"name": "state", "type": ["null", "string"], "default": None},
    ],
}
KEY = {
    "type": "record",
    "name": "WidgetKey",
    "namespace": "com.acme",
    "fields": [{"name": "part_one", "type": "string"}, {"name": "part_two", "type": "int"}],
}


class SourceBench:
    """An application, a database with models of this test, and messages by their topics."""

    def __init__(self, engine: AsyncEngine, name: str, folder: Path, settings: dict[str, Any] | None = None) -> None:
        self.engine = engine
        self.name = name
        self.folder = folder
        self.base: Any = type("Base", (DeclarativeBase,), {"metadata": sa.MetaData()})
        self.add_schema(WIDGET)
        self.add_schema(KEY)
        self.app = Deimos(
            {"embedded": True, "producers.backend": "test", "schema.path": str(folder)} | (settings or {}),
            engine=engine,
            metrics=None,
            tracing=None,
        )
        self.widgets = self.topic("widgets")

    @property
    def kind(self) -> str:
        """The database's: `"sqlite"`, `"postgresql"`, `"mysql"` (MariaDB too)."""
        return self.engine.dialect.name

    def add_schema(self, schema: dict[str, Any]) -> None:
        path = self.folder.joinpath(*schema["namespace"].split("."), f"{schema['name']}.avsc")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema))

    def topic(self, name: str, **options: Any) -> Topic:
        return self.app.topic(name, **({"schema": "com.acme.Widget", "key": Key.field("id")} | options))

    def model(
        self,
        *producers: Producer,
        config: KafkaConfig | None = None,
        table: str = "",
        base: tuple[type, ...] = (KafkaSource,),
        args: Sequence[Any] = (),
        body: dict[str, Any] | None = None,
    ) -> Any:
        """A mapped class whose changes go to the producers."""
        columns: dict[str, Any] = {
            "id": mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
            "name": mapped_column(sa.String(100)),
            "model_id": mapped_column(sa.String(20), unique=True),
            "some_int": mapped_column(sa.Integer),
            "state": mapped_column(sa.String(20), server_default="new"),
            "secret": mapped_column(sa.String(20)),
            "updated_at": mapped_column(sa.DateTime),
        }
        own: dict[str, Any] = {
            "__tablename__": f"{self.name}{table}",
            "__table_args__": tuple(args),
            "kafka_producers": classmethod(lambda cls: list(producers)),
        }
        if config is not None:
            own["kafka_config"] = config
        return type(f"Widget{table}", (self.base, *base), own | (columns if body is None else body))

    async def make_tables(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self.base.metadata.create_all)

    async def drop_tables(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(self.base.metadata.drop_all)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SourceBench]:
        """The tables are made; the application runs."""
        await self.make_tables()
        async with self.app.running(only=("producers",)):
            yield self

    async def prepare(self) -> None:
        """Have the ids of all schemas found, which else happens when the first message needs them."""
        assert self.app._running is not None
        assert self.app._running.plan is not None
        for topic in self.app._running.plan.topics.values():
            await topic.codec.prepare()

    def session(self, **options: Any) -> AsyncSession:
        return AsyncSession(self.engine, **({"expire_on_commit": False} | options))

    def records(self, topic: str = "widgets") -> list[OutboundRecord]:
        assert self.app._running is not None
        return [message.record for message in self.app._running.test_backend.sent if message.topic == topic]

    async def sent(self, topic: str = "widgets", *fields: str) -> list[tuple[Any, Any]]:
        """Keys and payloads, decoded, since the last time; of payloads these fields alone, as a tuple."""
        codec = self.app.codec(topic)
        found = []
        for record in self.records(topic):
            payload = await codec.decode_payload(record.value)
            if fields and payload is not None:
                payload = tuple(payload[field] for field in fields)
            found.append((await codec.decode_key(record.key), payload))
        assert self.app._running is not None
        backend = self.app._running.test_backend
        backend.sent[:] = [message for message in backend.sent if message.topic != topic]
        return found

    async def stored(self, topic: str = "widgets", *fields: str) -> list[tuple[Any, Any]]:
        """As `sent`, of what is in the outbox and stays there."""
        codec = self.app.codec(topic)
        columns = kafka_messages.c
        wanted = sa.select(columns.key, columns.message).where(columns.topic == topic).order_by(columns.id)
        async with self.engine.connect() as connection:
            rows = (await connection.execute(wanted)).all()
        found = []
        for key, message in rows:
            payload = await codec.decode_payload(message)
            if fields and payload is not None:
                payload = tuple(payload[field] for field in fields)
            found.append((await codec.decode_key(key), payload))
        return found

    async def rows(self, model: Any, *columns: str) -> list[tuple[Any, ...]]:
        """All rows, in the order of the first column."""
        chosen = [getattr(model, name) for name in columns]
        async with self.session() as session:
            found = await session.execute(sa.select(*chosen).order_by(chosen[0]))
            return [tuple(row) for row in found]


@asynccontextmanager
async def source_bench(
    kind: str, address: Callable[[str], str], name: str, folder: Path, settings: dict[str, Any] | None = None
) -> AsyncIterator[SourceBench]:
    """A bench on a database of this kind; its tables are dropped at the end."""
    if kind == "sqlite":
        url = f"sqlite+aiosqlite:///{folder / 'test.sqlite3'}"
    else:
        url = address("postgres_url" if kind == "postgresql" else "mariadb_url")
    bench = SourceBench(create_async_engine(url), name, folder / "schemas", settings)
    try:
        yield bench
    finally:
        await bench.drop_tables()
        await bench.engine.dispose()


@asynccontextmanager
async def storing_bench(
    kind: str, address: Callable[[str], str], name: str, folder: Path
) -> AsyncIterator[SourceBench]:
    """A bench with a database of its own, whose producers use the outbox."""
    opened: AbstractAsyncContextManager[str] = nullcontext(f"sqlite+aiosqlite:///{folder / 'test.sqlite3'}")
    if kind != "sqlite":
        opened = fresh_database(address("postgres_url" if kind == "postgresql" else "mariadb_url"), name)
    async with opened as url:
        bench = SourceBench(create_async_engine(url), name, folder / "schemas", {"producers.backend": "outbox"})
        await create_framework_tables(bench.engine)
        try:
            yield bench
        finally:
            await bench.engine.dispose()

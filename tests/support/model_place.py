"""A database with models, and model consumers on it as the dispatcher calls them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, mapped_column

from deimos_async import Key, Message, ModelConsumer
from deimos_async.brokers.memory import MemoryRecord
from deimos_async.consuming.consumer import Circumstances
from deimos_async.consuming.handling import build_call
from deimos_async.database.engines import Database
from deimos_async.events import Event, EventBus
from deimos_async.message import OutboundRecord
from deimos_async.specs import handler_spec
from deimos_async.topics import KeyConfig, TopicOptions

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))


def message(key: Any, payload: Any = None, *, offset: int = 0) -> Message[Any]:
    raw_key = None if key is None else repr(key).encode()
    raw_payload = None if payload is None else repr(payload).encode()
    record = MemoryRecord(OutboundRecord("widgets", raw_key, raw_payload), 0, offset, 1_700_000_000_000)
    return Message(record, key, payload)


class Place:
    """A database, with models whose tables are dropped at the end."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.base: Any = type("Base", (DeclarativeBase,), {"metadata": sa.MetaData()})
        self.events = EventBus()

    @property
    def kind(self) -> str:
        return self.engine.dialect.name

    async def model(self, *parts: Any, table: str = "", **columns: Any) -> Any:
        """A new mapped class with its table."""
        name = f"{self.name}{table}"
        made = type(f"Widget{table}", (self.base,), {"__tablename__": name, "__table_args__": tuple(parts), **columns})
        async with self.engine.begin() as connection:
            await connection.run_sync(self.base.metadata.create_all)
        return made

    async def widgets(self) -> Any:
        """The usual model."""
        return await self.model(
            id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
            name=mapped_column(sa.String(20)),
            note=mapped_column(sa.String(20), default="dflt"),
            some_int=mapped_column(sa.Integer),
            created_at=mapped_column(sa.DateTime(timezone=True)),
            updated_at=mapped_column(sa.DateTime(timezone=True)),
        )

    async def rows(self, model: Any, *columns: str) -> list[tuple[Any, ...]]:
        """All rows, in the order of the first column."""
        chosen = [getattr(model, name) for name in columns]
        async with AsyncSession(self.engine) as session:
            found = await session.execute(sa.select(*chosen).order_by(chosen[0]))
            return [tuple(row) for row in found]

    async def add(self, *records: Any) -> None:
        async with AsyncSession(self.engine) as session:
            session.add_all(records)
            await session.commit()

    def consumer(
        self,
        cls: type[ModelConsumer[Any]],
        *,
        batch: bool = True,
        key: KeyConfig | None = None,
        delivery: Any = None,
        **options: Any,
    ) -> Any:
        """What the dispatcher calls with a batch or a message."""
        instance = cls()
        instance._prepare(
            Circumstances(
                name=cls.__name__,
                key=key or Key.plain(),
                batch=batch,
                delivery=delivery or "at_least_once",
                dialect=self.engine.dialect,
                events=self.events,
                options=TopicOptions(**options),
            )
        )
        method = instance.consume_batch if batch else instance.consume_message
        spec = handler_spec(method, batch=batch, name=cls.__name__)
        call = build_call(spec, open_session=Database(self.engine).session, owner=self)
        if not batch:
            return call

        async def call_with(*messages: Message[Any]) -> None:
            await call(list(messages))

        return call_with

    def told(self, *names: str) -> list[Event]:
        """Events of these names from now on."""
        found: list[Event] = []
        for name in names:
            self.events.subscribe(name, found.append)
        return found


@asynccontextmanager
async def opened(url: str, name: str, **options: Any) -> AsyncIterator[Place]:
    place = Place(create_async_engine(url, **options), name)
    try:
        yield place
    finally:
        async with place.engine.begin() as connection:
            await connection.run_sync(place.base.metadata.drop_all)
        await place.engine.dispose()

"""Tables that are polled: an application on a database of its own, whose pollers run when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fresh_database import fresh_database
from source_bench import SourceBench
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import mapped_column

from deimos_async import ModelProducer, Producer
from deimos_async.database.creation import create_framework_tables
from deimos_async.polling.scheduler import Pollers
from deimos_async.service import Supervisor
from deimos_async.testing.clock import MovableClock
from deimos_async.testing.idle import run_consumers_until_idle

STAMP = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
"""A time in UTC, to the microsecond."""
PAST = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
"""When rows were changed that lie well behind."""


def at(seconds: float) -> datetime:
    return PAST + timedelta(seconds=seconds)


class PollBench(SourceBench):
    """With pollers, that run while `poll` does."""

    clock: MovableClock

    def polled(self, *, table: str = "", **columns: Any) -> Any:
        """A model with a timestamp."""
        body = {
            "id": mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
            "name": mapped_column(sa.String(100)),
            "state": mapped_column(sa.String(20)),
            "updated_at": mapped_column(STAMP, nullable=False),
        }
        return self.model(base=(), table=table, body=body | columns)

    def producer(self, model: Any, topic: Any = None, **members: Any) -> Any:
        """A producer of the model."""
        cls: Any = type("WidgetProducer", (ModelProducer,), members)
        cls.__orig_bases__ = (ModelProducer[model],)
        return self.app.producer(topic or self.widgets, cls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PollBench]:
        async with super().running():
            self.clock = MovableClock()
            assert self.app._running is not None
            self.app._running.clock = self.clock
            try:
                yield self
            finally:
                self.clock.clear()

    async def poll(self, seconds: float = 0.0, *, to_the_end: bool = False, timeout: float = 60.0) -> None:
        """Move time on, and have everything run that is due; with `to_the_end` whatever will be, too."""
        assert self.app._running is not None
        self.clock.advance(seconds)
        await run_consumers_until_idle(
            self.app._running,
            self.clock if to_the_end else None,
            flush=self.app.flush,
            timeout=timeout,
            prefix="",
            time_ahead=lambda: self.clock.ahead,
        )
        self.clock.clear()

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[LongPolling]:
        """Pollers that run within the block, and remember what they have sent."""
        assert self.app._running is not None
        pollers = self.app._running.build_pollers(lambda: self.clock.ahead)
        supervisor = Supervisor()
        await supervisor.open()
        try:
            yield LongPolling(self, pollers, supervisor)
            await supervisor.stop(pollers, timeout=30.0)
        finally:
            await supervisor.close()

    @staticmethod
    async def a_while() -> None:
        """Let a database get on by itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.Event().wait()

    async def ids(self, topic: str = "widgets") -> list[Any]:
        """Keys of what was sent since the last time."""
        return [key for key, _ in await self.sent(topic)]

    async def add(self, *records: Any) -> None:
        async with self.session() as session:
            session.add_all(records)
            await session.commit()

    async def execute(self, statement: Any, values: Any = None) -> list[Any]:
        async with self.engine.begin() as connection:
            found = await connection.execute(statement, values)
            return list(found.all()) if found.returns_rows else []

    async def change(self, model: Any, id: Any, **values: Any) -> None:
        """Change a row at the present time."""
        now = datetime.now(UTC).replace(tzinfo=None)
        await self.execute(sa.update(model.__table__).where(model.id == id).values({"updated_at": now} | values))

    def poller(self, *producers: Producer, **options: Any) -> None:
        self.app.poller(*producers, **({"name": "widgets"} | options))


@asynccontextmanager
async def poll_bench(
    kind: str, address: Callable[[str], str], name: str, folder: Path, settings: dict[str, Any] | None = None
) -> AsyncIterator[PollBench]:
    """A bench with a database of its own."""
    opened: AbstractAsyncContextManager[str] = nullcontext(f"sqlite+aiosqlite:///{folder / 'test.sqlite3'}")
    if kind != "sqlite":
        opened = fresh_database(address("postgres_url" if kind == "postgresql" else "own_mariadb_url"), name)
    async with opened as url:
        bench = PollBench(create_async_engine(url), name, folder / "schemas", settings)
        await create_framework_tables(bench.engine)
        try:
            yield bench
        finally:
            await bench.engine.dispose()


class LongPolling:
    """One poller, and when it has run."""

    def __init__(self, bench: PollBench, pollers: Pollers, supervisor: Supervisor) -> None:
        self._bench = bench
        self._pollers = pollers
        self._supervisor = supervisor
        self._changed = asyncio.Event()
        pollers.on_change = self._changed.set
        self._is_started = False

    async def until_run(self, seconds: float = 0.0) -> None:
        """Move time on, and wait for one more run."""
        (status,) = self._pollers.status()
        self._bench.clock.advance(seconds)
        async with asyncio.timeout(30.0):
            if not self._is_started:
                self._is_started = True
                await self._supervisor.start([self._pollers])
            while self._pollers.status()[0].runs == status.runs or self._pollers.status()[0].is_running:
                self._changed.clear()
                await self._changed.wait()


class Flaky:
    """Makes a producer's backend fail: `failures` are raised one after the other, then everything is sent."""

    def __init__(self, bench: PollBench, *failures: Exception) -> None:
        assert bench.app._running is not None
        self._backend = bench.app._running.test_backend
        self._send = self._backend.send
        self.failures = list(failures)
        self.calls: list[int] = []
        self.called = asyncio.Event()
        self._backend.send = self.send  # type: ignore[method-assign]

    async def send(self, messages: Any) -> None:
        self.calls.append(len(messages))
        self.called.set()
        if self.failures and messages:
            raise self.failures.pop(0)
        await self._send(messages)

"""The application's engine: from `database.url`, or the user's own."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool

from deimos_async.errors import ConfigurationError

__all__ = ["Database"]

_CLOSE_TIMEOUT = 2.0
"""Seconds for closing the pool's connections in order, before one that does not answer is cut off."""


class Database:
    """An engine and sessions on it.

    `close()` disposes of the pool in the loop that used it; an engine of the user's stays usable.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        if engine.dialect.name == "sqlite" and not event.contains(engine.sync_engine, "savepoint", _begin_first):
            event.listen(engine.sync_engine, "savepoint", _begin_first)

    @classmethod
    def from_url(cls, url: str, *, idle_transaction_timeout: float | None = None) -> Database:
        """An engine of our own. Errors of statements do not show their parameters.

        Args:
            idle_transaction_timeout: Seconds after which PostgreSQL or MariaDB ends a transaction that nobody goes on
                with, and its connection; None: what the server does by itself. MySQL has nothing like it.

        Raises:
            ConfigurationError: The URL cannot be read, has no async driver, or its driver is not installed. The text
                does not hold the URL.
        """
        where = "setting 'database.url' (variable DEIMOS_DATABASE__URL)"
        try:
            parsed = make_url(url)
            dialect = parsed.get_dialect()
        except (ArgumentError, ValueError):  # a port that is no number is a ValueError that shows part of the URL
            raise ConfigurationError(
                f"{where} is not a SQLAlchemy URL; write it as e.g. postgresql+asyncpg://user:password@host/database"
            ) from None
        except NoSuchModuleError:
            raise ConfigurationError(f"{where}: SQLAlchemy knows no dialect of that name") from None
        extras = {"asyncpg": "postgres", "aiomysql": "mysql", "asyncmy": "mysql"}
        if not getattr(dialect, "is_async", False):
            raise ConfigurationError(
                f"{where} names the driver {parsed.drivername!r}, which is not async; "
                "use postgresql+asyncpg, mysql+aiomysql or sqlite+aiosqlite"
            )
        options: dict[str, object] = {"hide_parameters": True}
        if parsed.get_backend_name() == "sqlite":
            if parsed.database and parsed.database != ":memory:":
                options["poolclass"] = NullPool
        else:
            options["pool_pre_ping"] = True
        try:
            engine = create_async_engine(parsed, **options)
        except ModuleNotFoundError as error:
            driver = parsed.get_driver_name()
            extra = extras.get(driver)
            what = f"pip install 'deimos-async[{extra}]'" if extra else f"pip install {driver}"
            raise ConfigurationError(f"{where} needs the driver {driver!r}, which is not installed: {what}") from error
        if idle_transaction_timeout is not None and parsed.get_backend_name() != "sqlite":
            _limit_idle_transactions(engine, idle_transaction_timeout)
        return cls(engine)

    def session(self, inner: type[Session] = Session) -> AsyncSession:
        """A new session; what it loaded stays readable after the commit.

        Args:
            inner: Class of the plain session that it drives.
        """
        return AsyncSession(self.engine, expire_on_commit=False, sync_session_class=inner)

    async def close(self) -> None:
        """Dispose of the pool, in bounded time: a connection whose other end has vanished without a word is cut off."""
        while True:
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await self.engine.dispose()
                return
            except TimeoutError:
                # The one that was being closed is out of the pool; the others are still to be closed.
                pool = self.engine.sync_engine.pool
                if not isinstance(pool, QueuePool) or not pool.checkedin():
                    return


def _begin_first(connection: Connection, name: str) -> None:
    """Python's driver begins a transaction of SQLite with the first row that is written, not with a savepoint.

    So a savepoint that comes before would be a transaction itself: durable when it is released, whatever the session
    does afterwards, and without the messages that belong to it.
    """
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN")


def _limit_idle_transactions(engine: AsyncEngine, seconds: float) -> None:
    """Have the server end transactions that are idle for so long, and with them the locks of a frozen process."""
    dialect = engine.dialect.name

    @event.listens_for(engine.sync_engine, "connect")
    def limit(connection: Any, record: Any) -> None:
        if dialect == "postgresql":
            milliseconds = math.ceil(seconds * 1000)
            connection.run_async(
                lambda driver: driver.execute(f"SET idle_in_transaction_session_timeout = {milliseconds}")
            )
        else:
            connection.run_async(lambda driver: _limit_of_mariadb(driver, math.ceil(seconds)))


async def _limit_of_mariadb(driver: Any, seconds: int) -> None:
    async with driver.cursor() as cursor:
        await cursor.execute("SELECT VERSION()")
        (version,) = await cursor.fetchone()
        if "mariadb" in version.lower():
            await cursor.execute(f"SET SESSION idle_transaction_timeout = {seconds}")
    await driver.rollback()

"""A connection of the framework's own, past SQLAlchemy's pool and cursors: each statement commits by itself.

For services that keep a connection as long as they run and change what is set for its session. It is made as those of
the application's engine are, so that what the user has set up for connections holds, but for listeners of
`engine_connect`. It is never one of its pool: that may be exhausted, and its idle connections may be dead.

Statements are the driver's own: PostgreSQL's with `$1`, those of MySQL and MariaDB with `%s`, SQLite's with `?`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import StaticPool

from deimos_async.database.errors import conflict, is_away, is_transient
from deimos_async.database.schema_lock import as_database_error
from deimos_async.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError

__all__ = ["DirectConnection", "Kind", "kind_of"]

Kind = Literal["postgresql", "mysql", "sqlite"]
"""Whose statements a database takes; MariaDB's are MySQL's."""

_KINDS: dict[tuple[str, str], Kind] = {
    ("postgresql", "asyncpg"): "postgresql",
    ("mysql", "aiomysql"): "mysql",
    ("mysql", "asyncmy"): "mysql",
    ("mariadb", "aiomysql"): "mysql",
    ("mariadb", "asyncmy"): "mysql",
    ("sqlite", "aiosqlite"): "sqlite",
}
_CLOSE_TIMEOUT = 2.0


def kind_of(engine: AsyncEngine) -> Kind:
    """Raises ConfigurationError for a driver that is not known, and for an engine whose sessions share a connection."""
    found = _KINDS.get((engine.dialect.name, engine.dialect.driver))
    if found is None:
        raise ConfigurationError(
            f"outbox and pollers know no driver {engine.dialect.name}+{engine.dialect.driver}; use postgresql+asyncpg, "
            "mysql+aiomysql or sqlite+aiosqlite"
        )
    if isinstance(engine.sync_engine.pool, StaticPool):
        raise ConfigurationError(
            "outbox and pollers need connections of their own, but all sessions of this engine share one, as with a "
            "SQLite database in memory; use a file"
        )
    return found


def _beside(engine: AsyncEngine) -> AsyncEngine:
    """An engine that connects in the same way, with an empty pool."""
    sync = engine.sync_engine
    return AsyncEngine(Engine(sync.pool.recreate(), sync.dialect, sync.url))


class DirectConnection:
    """One connection to the database. It takes one statement at a time; callers wait for their turn.

    A statement that was cancelled, timed out or has lost the server makes it unusable: close it and open another one.

    Attributes:
        kind: Whose statements it takes.
        is_usable: Whether statements can be executed.
    """

    def __init__(self, engine: AsyncEngine, *, timeout: float = 30.0) -> None:
        self.kind = kind_of(engine)
        self.is_usable = False
        self._engine = engine
        self._timeout = timeout
        self._connection: AsyncConnection | None = None
        self._adapted: Any = None
        self._driver: Any = None
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Timeout | None = None
        """Deadline of what is being waited for."""
        self._is_distrusted = False
        """Whether that was ended early."""

    async def open(self, *setup: str) -> None:
        """Connect, and execute these statements.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
            DatabaseError: It refuses.
        """
        await self.close()
        try:
            async with self._patience():
                connection = await _beside(self._engine).connect()
                try:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    pooled = await connection.get_raw_connection()
                    self._adapted, self._driver = pooled.dbapi_connection, pooled.driver_connection
                    assert connection.sync_connection is not None
                    connection.sync_connection.detach()
                except BaseException:
                    await connection.invalidate()
                    await connection.close()
                    raise
        except TimeoutError as error:
            raise DatabaseUnavailableError(f"the database gave no connection {self._in_time()}") from error
        except Exception as error:
            # Drivers let errors of their own through while they connect, so all of them are told here.
            raise as_database_error(error) from error
        self._connection = connection
        self.is_usable = True
        if self.kind == "mysql":
            setup = ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", *setup)
        try:
            for statement in setup:
                await self.execute(statement)
        except BaseException:
            await self.close()
            raise

    async def fetch(self, statement: str, *values: Any) -> Sequence[Sequence[Any]]:
        """Rows of a statement. Raises as `execute`."""
        async with self._speaking():
            if self.kind == "postgresql":
                return await self._driver.fetch(statement, *values)  # type: ignore[no-any-return]
            if self.kind == "sqlite":
                return await self._driver.execute_fetchall(statement, values)  # type: ignore[no-any-return]
            async with self._driver.cursor() as cursor:
                await cursor.execute(statement, values or None)
                return await cursor.fetchall()  # type: ignore[no-any-return]

    async def execute(self, statement: str, *values: Any) -> int:
        """Execute a statement; returns the number of rows that it has met.

        Raises:
            DatabaseUnavailableError: The database cannot be reached, or cannot work; or no answer came in time. The
                statement may have been executed.
            DatabaseError: `retriable`: it lost against another transaction. Else the database refuses.
        """
        async with self._speaking():
            if self.kind == "postgresql":
                status = await self._driver.execute(statement, *values)
                count = str(status).rpartition(" ")[2]
                return int(count) if count.isdecimal() else 0
            if self.kind == "sqlite":
                async with self._driver.execute(statement, values) as cursor:
                    return max(0, int(cursor.rowcount))
            async with self._driver.cursor() as cursor:
                return int(await cursor.execute(statement, values or None))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Statements of the block are one transaction. Nobody else may use the connection meanwhile."""
        await self.execute("BEGIN IMMEDIATE" if self.kind == "sqlite" else "BEGIN")
        try:
            yield
        except BaseException:
            if self.is_usable:
                await self.execute("ROLLBACK")
            raise
        await self.execute("COMMIT")

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """PostgreSQL: call `heard` with the text of each notification, as long as the connection is usable."""
        async with self._speaking():
            await self._driver.add_listener(channel, lambda connection, pid, name, payload: heard(payload))

    async def close(self) -> None:
        """Close it for good, in bounded time, whatever it is doing. Any number of times."""
        connection, self._connection = self._connection, None
        driver, self._driver, self._adapted = self._driver, None, None
        usable, self.is_usable = self.is_usable, False
        if connection is None:
            return
        try:
            await asyncio.shield(asyncio.ensure_future(self._end(driver, usable)))
        finally:
            # Without a driver's connection left it only puts SQLAlchemy's own objects away.
            await connection.invalidate()
            await connection.close()

    async def _end(self, driver: Any, usable: bool) -> None:
        try:
            if self.kind == "sqlite":
                await driver.close()
            elif self.kind == "mysql":
                driver.close()
            elif usable:
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await driver.close()
            else:
                driver.terminate()
        except Exception:
            # Whatever a lost connection says about being closed: it must not stay open.
            if self.kind == "postgresql":
                driver.terminate()

    def distrust(self) -> None:
        """Its other end may have vanished without a word: whoever waits for an answer, or for a connection, is told
        that the time is over; if nobody does, it is unusable from now on.

        For when another connection shows that the database works. A file cannot vanish so.
        """
        if self.kind == "sqlite":
            return
        if self._waiting is None:
            self.is_usable = False
        elif not self._waiting.expired():
            self._is_distrusted = True
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _in_time(self) -> str:
        return "before it did on a newer connection" if self._is_distrusted else f"within {self._timeout:g} s"

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[asyncio.Timeout]:
        async with asyncio.timeout(self._timeout) as deadline:
            self._waiting, self._is_distrusted = deadline, False
            try:
                yield deadline
            finally:
                self._waiting = None

    @asynccontextmanager
    async def _speaking(self) -> AsyncIterator[None]:
        async with self._turn:
            if not self.is_usable:
                raise DatabaseUnavailableError("the connection to the database is lost")
            deadline: asyncio.Timeout | None = None
            try:
                async with self._patience() as deadline:
                    yield
            except TimeoutError as error:
                self.is_usable = False
                if deadline is None or not deadline.expired():
                    raise as_database_error(error) from error
                raise DatabaseUnavailableError(f"the database has not answered {self._in_time()}") from error
            except Exception as error:
                if is_transient(error):
                    raise conflict(error) from error
                if self._is_lost(error):
                    self.is_usable = False
                    raise DatabaseUnavailableError(
                        f"the connection to the database is lost: {type(error).__name__}"
                    ) from error
                raise _refused(error) from error
            except BaseException:
                self.is_usable = False  # an answer may be under way that belongs to nobody
                raise

    def _is_lost(self, error: Exception) -> bool:
        return (
            isinstance(error, OSError)
            or (isinstance(error, ValueError) and "connection" in str(error).lower())
            or bool(self._engine.dialect.is_disconnect(error, self._adapted, None))  # type: ignore[arg-type]
        )


def _refused(error: Exception) -> DatabaseError:
    refused = as_database_error(error)
    if is_away(error):
        refused.retriable = True
    return refused

"""The driver's connection within SQLAlchemy's transaction, and the driver's errors as SQLAlchemy's.

Going past SQLAlchemy's cursors saves more than half of the time of a bulk write, and loses two things that are put
back here: the transaction that SQLAlchemy begins only with its own first statement, and the translation of errors
(with the invalidation of a connection that is lost).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import exc, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.errors import ConfigurationError, LifecycleError

__all__ = ["DRIVERS", "DriverConnection", "driver_connection", "ensure_begun"]

DRIVERS = {
    ("postgresql", "asyncpg"): "postgresql",
    ("mysql", "aiomysql"): "mysql",
    ("mysql", "asyncmy"): "mysql",
    ("mariadb", "aiomysql"): "mysql",
    ("mariadb", "asyncmy"): "mysql",
    ("sqlite", "aiosqlite"): "sqlite",
}
"""SQLAlchemy's dialect and driver: whose statements are written."""


class DriverConnection:
    """A driver's connection that is within a transaction of SQLAlchemy's."""

    __slots__ = ("_adapted", "connection", "driver")

    def __init__(self, connection: AsyncConnection, adapted: DBAPIConnection, driver: Any) -> None:
        self.connection = connection
        self.driver = driver
        self._adapted = adapted

    @asynccontextmanager
    async def translating(self, statement: str) -> AsyncIterator[None]:
        """Errors of the driver leave the block as SQLAlchemy's, with the driver's as `orig`, without parameters.

        PostgreSQL's go by the class of their SQLSTATE (22 `DataError`, 23 `IntegrityError`, 42 `ProgrammingError`,
        others `OperationalError`), other drivers' by the class that the driver chose. A value that the driver cannot
        send is a `DataError`. A connection that is lost is invalidated, and the error says so.

        Cancelled: the connection of a server is invalidated too, as SQLAlchemy does: an answer may be under way that
        belongs to nobody.
        """
        try:
            yield
        except asyncio.CancelledError:
            # SQLite's thread ends what it does and takes the rollback next; its database may live in the connection.
            if self.connection.dialect.name != "sqlite":
                await self.connection.invalidate()
            raise
        except exc.SQLAlchemyError:
            raise
        except Exception as error:
            lost = self._is_lost(error)
            family = exc.OperationalError if lost else _family(error)
            if family is None:
                raise
            if lost:
                await self.connection.invalidate(error)
            raise family(statement, None, error, hide_parameters=True, connection_invalidated=lost) from error

    def _is_lost(self, error: Exception) -> bool:
        if isinstance(error, OSError):
            return True
        if isinstance(error, ValueError) and str(error).lower() in ("no active connection", "connection closed"):
            return True  # how aiosqlite speaks of a connection that was closed
        return bool(self.connection.dialect.is_disconnect(error, self._adapted, None))  # type: ignore[arg-type]


_BY_STATE = {"22": exc.DataError, "23": exc.IntegrityError, "42": exc.ProgrammingError, "0A": exc.NotSupportedError}
_BY_NAME: dict[str, type[exc.DBAPIError]] = {
    cls.__name__: cls
    for cls in (
        exc.IntegrityError,
        exc.DataError,
        exc.OperationalError,
        exc.ProgrammingError,
        exc.NotSupportedError,
        exc.InternalError,
        exc.InterfaceError,
    )
}


def _family(error: Exception) -> type[exc.DBAPIError] | None:
    for cls in type(error).__mro__:
        if cls.__name__ == "PostgresError":  # asyncpg's root of what the server said; DB-API has other families
            state = getattr(error, "sqlstate", None) or ""
            return _BY_STATE.get(state[:2], exc.OperationalError)
        if cls.__name__ in _BY_NAME:
            return _BY_NAME[cls.__name__]
        if cls.__name__ == "InternalClientError":  # asyncpg's
            return exc.InternalError
    # Drivers let such errors of their encoders through.
    return exc.DataError if isinstance(error, TypeError | ValueError | ArithmeticError | AttributeError) else None


async def driver_connection(connection: AsyncConnection) -> DriverConnection:
    """The driver's connection of `connection`, whose transaction has begun on the server as well.

    Raises:
        LifecycleError: No transaction was begun, or the connection commits each statement by itself: what a driver
            writes then could not be committed or rolled back with anything else.
        ConfigurationError: Another driver, or the connection translates names of schemas.
    """
    dialect = connection.dialect
    if (dialect.name, dialect.driver) not in DRIVERS:
        raise ConfigurationError(unsupported(dialect.name, dialect.driver))
    if not connection.in_transaction():
        raise LifecycleError("bulk writes need a transaction: begin one on the connection or session first")
    assert connection.sync_connection is not None
    if connection.sync_connection.get_execution_options().get("schema_translate_map"):
        raise ConfigurationError("schema_translate_map does not reach bulk writes; name the schema in the table itself")
    pooled = await connection.get_raw_connection()
    adapted, driver = pooled.dbapi_connection, pooled.driver_connection
    assert adapted is not None
    assert driver is not None
    await _begin(connection, driver)
    return DriverConnection(connection, adapted, driver)


def unsupported(name: str, driver: str) -> str:
    """Text for a database that has no bulk writes here."""
    known = ", ".join(f"{dialect}+{library}" for dialect, library in DRIVERS)
    return f"no bulk writes for {name}+{driver}; use one of {known}"


async def ensure_begun(connection: AsyncConnection) -> None:
    """Have the transaction of `connection` begin on the server too, if it has not yet. `write` and `delete` do it.

    Call it before a first `begin_nested()`: SQLite takes a savepoint outside of a transaction for the transaction
    itself, and commits when it is released. On SQLite the transaction takes the lock of the writer at once, so that
    waiting for another writer happens here, within the driver's time-out, and a read before the write cannot make the
    write impossible (SQLITE_BUSY_SNAPSHOT).

    Raises:
        LifecycleError: No transaction was begun on `connection`, or it commits each statement by itself.
    """
    await driver_connection(connection)


async def _begin(connection: AsyncConnection, driver: Any) -> None:
    kind = DRIVERS[connection.dialect.name, connection.dialect.driver]
    if kind == "postgresql" and not driver.is_in_transaction():
        # SQLAlchemy sends BEGIN with its own first statement, and nothing public does only that.
        await connection.execute(text("SELECT 1"))
        if not driver.is_in_transaction():
            raise LifecycleError(_AUTOCOMMIT)
    elif kind == "mysql" and driver.get_autocommit():
        raise LifecycleError(_AUTOCOMMIT)
    elif kind == "sqlite" and not driver.in_transaction:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


_AUTOCOMMIT = "bulk writes need a transaction, and this connection is in AUTOCOMMIT"

"""One at a time: whoever makes or changes the framework's tables holds a lock of the database meanwhile.

PostgreSQL: an advisory lock of the transaction, which also works behind a pooler of transactions. MySQL and MariaDB:
`GET_LOCK`, of the connection, as their DDL ends transactions. SQLite: the lock of the writer, by `BEGIN IMMEDIATE`.
Each ends with the connection, so that a process that dies leaves nothing locked.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deimos_async.database.errors import is_away, is_transient
from deimos_async.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError

__all__ = ["LOCK_TIMEOUT", "as_database_error", "schema_lock"]

LOCK_TIMEOUT = 60.0
"""Seconds to wait for whoever changes the tables at the moment."""

_ADVISORY_KEY = 0x6465696D6F73  # "deimos"; advisory locks of PostgreSQL are each database's own
_LOCK_NAME = "CONCAT('deimos_async:', MD5(DATABASE()))"  # at most 64 characters, and common to the server's databases


@asynccontextmanager
async def schema_lock(engine: AsyncEngine, *, timeout: float = LOCK_TIMEOUT) -> AsyncIterator[AsyncConnection]:
    """A connection with a transaction begun, which no other process has at the same time.

    The end of the block commits; an exception in it, or its cancellation, rolls back what the database can roll back
    (MySQL and MariaDB commit with each DDL statement). On PostgreSQL a statement within that has to wait longer than
    `timeout` for a table fails, instead of holding up everybody who comes after it.

    Args:
        timeout: Seconds to wait for the lock; MySQL and MariaDB wait whole seconds, rounded up.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseError: The lock was not to be had in time, or the database refuses; what it said is in the text.
        ConfigurationError: Another kind of database.
    """
    kind = engine.dialect.name
    if kind not in ("postgresql", "mysql", "mariadb", "sqlite"):
        raise ConfigurationError(f"the framework has no tables for {kind}; use PostgreSQL, MySQL, MariaDB or SQLite")
    try:
        connection = await engine.connect()
    except Exception as error:
        # Drivers let errors of their own through while they connect, so all of them are told here.
        raise as_database_error(error) from error
    try:
        if kind == "postgresql":
            locked = _postgresql(connection, timeout)
        elif kind == "sqlite":
            locked = _sqlite(connection, timeout)
        else:
            locked = _mysql(connection, timeout)
        try:
            async with locked:
                yield connection
        except DBAPIError as error:
            raise as_database_error(error) from error
    finally:
        await connection.close()


@asynccontextmanager
async def _postgresql(connection: AsyncConnection, timeout: float) -> AsyncIterator[None]:
    # A snapshot that is older than the lock would not show what its last holder has done.
    await connection.execution_options(isolation_level="READ COMMITTED")
    async with connection.begin():
        milliseconds = max(1, math.ceil(timeout * 1000))  # 0 would be: for ever
        await connection.execute(
            text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": f"{milliseconds}ms"}
        )
        try:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
        except DBAPIError as error:
            if is_transient(error):
                raise _busy(timeout) from error
            raise
        yield


@asynccontextmanager
async def _mysql(connection: AsyncConnection, timeout: float) -> AsyncIterator[None]:
    await connection.execution_options(isolation_level="READ COMMITTED")
    taken = await connection.scalar(text(f"SELECT GET_LOCK({_LOCK_NAME}, :timeout)"), {"timeout": math.ceil(timeout)})
    if taken is None:
        raise DatabaseError("the database gave no lock; does the URL name a database?")
    if not taken:
        raise _busy(timeout)
    try:
        await connection.commit()
        async with connection.begin():
            yield
    finally:
        try:
            await connection.execute(text(f"SELECT RELEASE_LOCK({_LOCK_NAME})"))
            await connection.commit()
        except DBAPIError:
            # It is lost, or a cancelled statement has left it unusable. The lock ends when it is closed for good.
            await connection.invalidate()


@asynccontextmanager
async def _sqlite(connection: AsyncConnection, timeout: float) -> AsyncIterator[None]:
    before = (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one()
    await connection.exec_driver_sql(f"PRAGMA busy_timeout = {math.ceil(timeout * 1000)}")
    try:
        pooled = await connection.get_raw_connection()
        assert pooled.driver_connection is not None
        if pooled.driver_connection.in_transaction:
            # An engine may begin transactions by itself, without the writer's lock.
            await connection.exec_driver_sql("ROLLBACK")
        try:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
        except DBAPIError as error:
            if is_transient(error):
                raise _busy(timeout) from error
            raise
        yield
        await connection.commit()
    finally:
        await connection.rollback()
        await connection.exec_driver_sql(f"PRAGMA busy_timeout = {before}")


def _busy(timeout: float) -> DatabaseError:
    error = DatabaseError(
        f"another process has been changing the framework's tables for {timeout:g} s; try again when it has ended"
    )
    error.retriable = True
    return error


def as_database_error(error: Exception) -> DatabaseError:
    """What a driver raised as an error of ours, with what the database said and without the statement."""
    said = error.orig if isinstance(error, DBAPIError) else error
    if is_away(error):
        return DatabaseUnavailableError(f"the database cannot be reached: {type(said).__name__}: {said}")
    return DatabaseError(f"the database refuses: {type(said).__name__}: {said}")

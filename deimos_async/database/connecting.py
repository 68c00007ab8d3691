"""Connections for what the framework does in the database by itself, and what their errors mean to its callers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deimos_async.database.errors import conflict, is_away, is_transient
from deimos_async.errors import DatabaseUnavailableError

__all__ = ["commits_by_itself", "connected"]


@asynccontextmanager
async def connected(engine: AsyncEngine, problem: str) -> AsyncIterator[AsyncConnection]:
    """A connection for the block; what was not committed in it is rolled back at its end.

    Args:
        problem: What cannot be done without the database, for the error.

    Raises:
        DatabaseUnavailableError: The database cannot be reached, or cannot work now.
        DatabaseError: With `retriable` true: the transaction lost against another one.
        sqlalchemy.exc.DBAPIError: Any other error of the block's statements, as it is.
    """
    try:
        async with engine.connect() as connection:
            yield connection
    except (OSError, DBAPIError, PoolTimeoutError) as error:
        if is_transient(error):
            raise conflict(error) from error
        if is_away(error) or _is_unreached(error):
            raise DatabaseUnavailableError(
                f"the database cannot be reached, {problem} (setting 'database.url')"
            ) from error
        raise


def commits_by_itself(connection: Any) -> bool:
    """Whether a connection of SQLAlchemy's has no transactions, as with AUTOCOMMIT. Called in its greenlet."""
    try:
        return bool(connection.dialect.detect_autocommit_setting(connection.connection.dbapi_connection))
    except NotImplementedError:
        return False


def _is_unreached(error: BaseException) -> bool:
    """Whether a connection could not be made: then there is no statement yet."""
    return isinstance(error, DBAPIError) and error.statement is None

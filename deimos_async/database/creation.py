"""The framework's tables at once, without migrations: for databases that live as long as one run."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.schema_lock import LOCK_TIMEOUT, schema_lock
from deimos_async.database.tables import metadata

__all__ = ["create_framework_tables"]


async def create_framework_tables(engine: AsyncEngine, *, timeout: float = LOCK_TIMEOUT) -> None:
    """Make those that do not exist, as this version wants them; those that do are left as they are.

    For embedded runs and tests. A database that is to be kept is made by `migrate`, which can change its tables later.

    Args:
        timeout: Seconds to wait for another process that does the same.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseError: It refuses, or another process was at it for too long.
        ConfigurationError: Another kind of database than PostgreSQL, MySQL, MariaDB and SQLite.
    """
    async with schema_lock(engine, timeout=timeout) as connection:
        await connection.run_sync(metadata.create_all)

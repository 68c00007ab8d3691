"""A database of a test's own on a server that all tests share, for what has the same names in every database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.services("postgres")),
    pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
]
KINDS = ["sqlite", *SERVERS]
"""Parameters of tests that run on every kind of database."""


@asynccontextmanager
async def fresh_database(server_url: str, name: str) -> AsyncIterator[str]:
    """Its URL, password included; the database is dropped at the end."""
    url = sa.make_url(server_url)
    server = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    async def execute(statement: str) -> None:
        async with server.connect() as connection:
            await connection.exec_driver_sql(statement)

    await execute(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await execute(f"DROP DATABASE {name}")

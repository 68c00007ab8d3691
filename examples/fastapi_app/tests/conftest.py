"""A database file for each test run, and the application for the plugin of deimos_async."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from deimos_async import Deimos


@pytest.fixture(scope="session", autouse=True)
def database_file() -> Iterator[None]:
    """Before anything imports the application, which makes its engine then."""
    with tempfile.TemporaryDirectory(prefix="orders-") as folder:
        os.environ["ORDERS_DATABASE_URL"] = f"sqlite+aiosqlite:///{folder}/orders.sqlite3"
        yield
        del os.environ["ORDERS_DATABASE_URL"]


@pytest.fixture
async def tables(database_file: None) -> AsyncIterator[None]:
    """Empty tables."""
    from fastapi_app.main import Base, engine

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


@pytest.fixture
def deimos_app(tables: None) -> Deimos:
    from fastapi_app.main import app

    return app


@pytest.fixture
async def client(tables: None) -> AsyncIterator[Any]:
    """A client of the web application in this process; it does not run the lifespan."""
    import httpx2
    from fastapi_app.main import api

    transport = httpx2.ASGITransport(app=api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://orders") as client:
        yield client

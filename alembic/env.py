"""Runs revisions of the examples' tables and of the framework's, in one history (table `alembic_version`).

The database is that of `DEIMOS_DATABASE__URL`, or of `alembic -x url=...`.
"""

from __future__ import annotations

import asyncio

from alembic import context
from fastapi_app.main import Base as OrdersBase
from shop.events import Base as ShopBase
from sqlalchemy import Connection
from tables.one_table import Base as CopiesBase
from tables.two_tables import Base as BasketsBase

from deimos_async.database.engines import Database
from deimos_async.database.tables import metadata as framework
from deimos_async.errors import ConfigurationError
from deimos_async.settings import load_settings

TABLES = [ShopBase.metadata, OrdersBase.metadata, CopiesBase.metadata, BasketsBase.metadata, framework]


def database() -> Database:
    url = load_settings().database.url
    given = context.get_x_argument(as_dictionary=True).get("url") or (url and url.get_secret_value())
    if not given:
        raise ConfigurationError("no database is named: set DEIMOS_DATABASE__URL, or give -x url=...")
    return Database.from_url(given)


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=TABLES)
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    opened = database()
    try:
        async with opened.engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await opened.close()


if context.is_offline_mode():
    context.configure(
        dialect_name=database().engine.dialect.name,
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        target_metadata=TABLES,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(run_online())

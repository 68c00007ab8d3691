"""The framework's tables are made, changed and taken back by revisions: the same on PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from fresh_database import fresh_database
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async.database import migrations
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.migrations import VERSION_TABLE, is_framework_table
from deimos_async.database.migrations.migrator import downgrade, downgrade_sql, state, upgrade, upgrade_sql
from deimos_async.database.outbox.writing import insert_rows
from deimos_async.database.schema_lock import schema_lock
from deimos_async.database.tables import kafka_messages, kafka_offsets, metadata
from deimos_async.errors import DatabaseError
from deimos_async.message import OutboundRecord
from deimos_async.outbox.rows import make_rows

REVISIONS = [script.revision for script in ScriptDirectory(migrations.__path__[0]).walk_revisions()][::-1]

DEADLINE = 60.0
"""Seconds after which a wait has failed."""

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))


@pytest.fixture(params=["sqlite", POSTGRESQL, MARIADB])
async def engine(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """A database of the test's own: the framework's tables have the same names in all."""
    if request.param == "sqlite":
        opened: AbstractAsyncContextManager[str] = nullcontext(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    else:
        server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
        opened = fresh_database(server, unique_name)
    async with opened as url:
        made = create_async_engine(url)
        yield made
        await made.dispose()


async def differences(engine: AsyncEngine) -> list[Any]:
    """What Alembic would change to make the database's tables what the code says."""

    def compare(connection: sa.Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **options})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        return await connection.run_sync(compare)


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda inner: sa.inspect(inner).get_table_names()))


async def collations(engine: AsyncEngine) -> dict[str, str | None]:
    """Of the columns of kafka_offsets that hold text."""

    def look(connection: sa.Connection) -> dict[str, str | None]:
        columns = sa.inspect(connection).get_columns("kafka_offsets")
        return {column["name"]: column["type"].collation for column in columns if isinstance(column["type"], sa.String)}

    async with engine.connect() as connection:
        return await connection.run_sync(look)


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def run_script(engine: AsyncEngine, script: str) -> None:
    """As a database's own client does it: one statement after the other, in no transaction but the script's."""
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in "\n".join(lines).split(";"):
            if statement.strip():
                await connection.exec_driver_sql(statement)


async def test_migrated_tables_are_what_the_code_says(engine: AsyncEngine) -> None:
    assert [(step.revision.id, step.up) for step in await upgrade(engine)] == [(name, True) for name in REVISIONS]
    assert await differences(engine) == []
    assert await tables(engine) == {*metadata.tables, VERSION_TABLE}
    assert (await state(engine)).is_head
    assert await upgrade(engine) == []


async def test_tables_made_without_migrations_are_the_same_and_taken_over(engine: AsyncEngine) -> None:
    await create_framework_tables(engine)
    await create_framework_tables(engine)
    assert await differences(engine) == []
    made = await collations(engine)
    await upgrade(engine)
    assert await differences(engine) == []
    await downgrade(engine, "base")
    await upgrade(engine)
    assert await collations(engine) == made


async def test_offline_sql_makes_the_same_as_the_migration(engine: AsyncEngine) -> None:
    dialect = engine.dialect.name
    await run_script(engine, upgrade_sql(dialect))
    assert await differences(engine) == []
    assert (await state(engine)).is_head
    made = await collations(engine)
    await run_script(engine, downgrade_sql(dialect, "base"))
    assert await tables(engine) == {VERSION_TABLE}
    assert (await state(engine)).current is None
    await upgrade(engine)
    assert await collations(engine) == made


async def test_down_to_base_leaves_none_of_the_tables_and_up_makes_them_again(engine: AsyncEngine) -> None:
    await upgrade(engine)
    undone = await downgrade(engine, "base")
    assert [(step.revision.id, step.up) for step in undone] == [(name, False) for name in reversed(REVISIONS)]
    assert await tables(engine) == {VERSION_TABLE}
    assert (await state(engine)).current is None
    assert await downgrade(engine, "base") == []
    assert len(await upgrade(engine)) == len(REVISIONS)
    assert await differences(engine) == []


async def test_tables_and_history_of_the_user_are_not_touched(engine: AsyncEngine) -> None:
    await execute(
        engine,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('theirs')",
        "CREATE TABLE invoices (id INTEGER NOT NULL)",
    )
    await upgrade(engine)
    await downgrade(engine, "base")
    found = await tables(engine)
    assert {name for name in found if not is_framework_table(name)} == {"alembic_version", "invoices"}
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).all() == [("theirs",)]


async def test_table_of_a_revision_that_was_not_written_down_keeps_its_rows(engine: AsyncEngine) -> None:
    """MySQL and MariaDB commit the table by itself; the process may die before the revision is written down."""
    await upgrade(engine)
    await execute(
        engine,
        f"DELETE FROM {VERSION_TABLE}",
        "INSERT INTO kafka_offsets (consumer_group, topic, topic_partition, next_offset, updated_at)"
        " VALUES ('billing', 'orders', 0, 7, '2026-01-02 03:04:05')",
    )
    assert len(await upgrade(engine)) == len(REVISIONS)
    async with engine.connect() as connection:
        assert await connection.scalar(sa.select(kafka_offsets.c.next_offset)) == 7


async def test_foreign_table_of_that_name_is_refused_and_nothing_is_written_down(engine: AsyncEngine) -> None:
    await execute(engine, "CREATE TABLE kafka_offsets (id INTEGER NOT NULL, topic VARCHAR(10))")
    with pytest.raises(DatabaseError, match=r"'kafka_offsets' exists, and lacks the columns consumer_group, "):
        await upgrade(engine)
    assert (await state(engine)).current is None


async def test_database_of_a_newer_version_is_refused(engine: AsyncEngine) -> None:
    await upgrade(engine)
    await execute(engine, f"UPDATE {VERSION_TABLE} SET version_num = 'deimos_9999'")
    for asked in (upgrade(engine), downgrade(engine, "base"), state(engine)):
        with pytest.raises(DatabaseError, match="'deimos_9999', which this version of deimos-async does not know"):
            await asked
    assert "kafka_offsets" in await tables(engine)


async def test_names_that_differ_in_case_are_different(engine: AsyncEngine) -> None:
    await upgrade(engine)
    async with engine.begin() as connection:
        for group, topic in [("billing", "orders"), ("Billing", "orders"), ("billing", "Orders")]:
            await connection.execute(
                kafka_offsets.insert().values(
                    consumer_group=group,
                    topic=topic,
                    topic_partition=0,
                    next_offset=1,
                    updated_at=sa.func.current_timestamp(),
                )
            )
        found = await connection.execute(sa.select(kafka_offsets.c.topic).where(kafka_offsets.c.topic == "Orders"))
        assert found.all() == [("Orders",)]


async def test_two_at_once_both_end_well_and_one_of_them_did_it(engine: AsyncEngine) -> None:
    async with asyncio.timeout(DEADLINE):
        steps = await asyncio.gather(upgrade(engine), upgrade(engine), create_framework_tables(engine), upgrade(engine))
    assert sorted(len(done or []) for done in steps) == [0, 0, 0, len(REVISIONS)]
    assert await differences(engine) == []


async def test_lock_that_is_held_too_long_is_told_and_free_afterwards(engine: AsyncEngine) -> None:
    async with schema_lock(engine):
        with pytest.raises(DatabaseError, match="another process has been changing") as told:
            await upgrade(engine, timeout=0.01)
        assert told.value.retriable
    assert await tables(engine) == set()
    assert len(await upgrade(engine, timeout=0.01)) == len(REVISIONS)


async def test_failure_within_the_lock_frees_it_and_rolls_back_where_the_database_can(engine: AsyncEngine) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        async with schema_lock(engine) as connection:
            await connection.run_sync(metadata.create_all)
            raise RuntimeError("half way")
    assert await tables(engine) == (set(metadata.tables) if engine.dialect.name == "mysql" else set())
    assert len(await upgrade(engine, timeout=0.01)) == len(REVISIONS)


WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE state = 'User lock' AND db = DATABASE()",
}


@pytest.mark.parametrize("engine", [POSTGRESQL, MARIADB], indirect=True)
async def test_migration_cancelled_while_it_waits_leaves_nothing_locked(engine: AsyncEngine) -> None:
    async with asyncio.timeout(DEADLINE):
        async with schema_lock(engine):
            waiting = asyncio.ensure_future(upgrade(engine))
            async with engine.connect() as connection:
                while not await connection.scalar(sa.text(WAITING[engine.dialect.name])):
                    await connection.rollback()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert len(await upgrade(engine)) == len(REVISIONS)


def deimos_tables(dialect: str) -> list[str]:
    """What the migrations that Deimos generates have made, with Rails 7."""
    types = {
        "postgresql": (
            "bigserial PRIMARY KEY", "character varying", "bytea", "bytea", "timestamp(6)", "boolean", "FALSE",
        ),
        "mysql": (
            "bigint NOT NULL AUTO_INCREMENT PRIMARY KEY", "varchar(255)", "mediumblob", "blob", "datetime(6)",
            "tinyint(1)", "0",
        ),
        "sqlite": (
            "integer PRIMARY KEY AUTOINCREMENT NOT NULL", "varchar", "blob(10485760)", "blob", "datetime(6)", "boolean",
            "0",
        ),
    }  # fmt: skip
    key, text, large, small, moment, flag, no = types[dialect]
    name = "`key`" if dialect == "mysql" else '"key"'
    return [
        f"CREATE TABLE kafka_messages (id {key}, topic {text} NOT NULL, message {large}, {name} {small},"
        f" partition_key {text}, created_at {moment} NOT NULL, updated_at {moment} NOT NULL)",
        "CREATE INDEX index_kafka_messages_on_topic_and_id ON kafka_messages (topic, id)",
        f"CREATE TABLE kafka_topic_info (id {key}, topic {text} NOT NULL, locked_by {text}, locked_at {moment},"
        f" error {flag} DEFAULT {no} NOT NULL, retries integer DEFAULT 0 NOT NULL, last_processed_at {moment})",
        "CREATE UNIQUE INDEX index_kafka_topic_info_on_topic ON kafka_topic_info (topic)",
        "CREATE INDEX index_kafka_topic_info_on_locked_by_and_error ON kafka_topic_info (locked_by, error)",
        "CREATE INDEX index_kafka_topic_info_on_locked_at ON kafka_topic_info (locked_at)",
        f"CREATE TABLE deimos_poll_info (id {key}, producer {text} NOT NULL, last_sent {moment}, last_sent_id bigint)",
        "CREATE INDEX index_deimos_poll_info_on_producer ON deimos_poll_info (producer)",
    ]


def deimos_rows(dialect: str) -> list[str]:
    name = "`key`" if dialect == "mysql" else '"key"'
    one, k = ("x'6F6E65'", "x'6B'") if dialect == "sqlite" else ("'one'", "'k'")
    return [
        f"INSERT INTO kafka_messages (topic, message, {name}, partition_key, created_at, updated_at)"
        f" VALUES ('orders', {one}, {k}, 'k', '2026-01-02 03:04:05', '2026-01-02 03:04:05')",
        "INSERT INTO kafka_topic_info (topic, retries) VALUES ('orders', 3)",
        "INSERT INTO deimos_poll_info (producer, last_sent, last_sent_id)"
        " VALUES ('OrderProducer', '2026-01-02 03:04:05', 7)",
    ]


DEIMOS_TABLES = ("kafka_messages", "kafka_topic_info", "deimos_poll_info")


async def shape(engine: AsyncEngine) -> dict[str, Any]:
    """Columns with their types, and indexes, of Deimos's tables."""

    def look(connection: sa.Connection) -> dict[str, Any]:
        inspector = sa.inspect(connection)
        return {
            name: (
                [(column["name"], repr(column["type"]), column["nullable"]) for column in inspector.get_columns(name)],
                sorted((index["name"] or "", index["column_names"]) for index in inspector.get_indexes(name)),
            )
            for name in DEIMOS_TABLES
        }

    async with engine.connect() as connection:
        return await connection.run_sync(look)


async def counts(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return [int(await connection.scalar(sa.text(f"SELECT count(*) FROM {name}")) or 0) for name in DEIMOS_TABLES]


async def test_tables_of_a_deimos_are_taken_over_with_their_rows_and_given_back(engine: AsyncEngine) -> None:
    dialect = engine.dialect.name
    await execute(engine, *deimos_tables(dialect), *deimos_rows(dialect))
    before = await shape(engine)
    await upgrade(engine)
    (row,) = await messages(engine)
    assert (row.topic, row.message, row.key, row.partition_key) == ("orders", b"one", b"k", "k")
    assert (row.shard, row.order_hash, row.headers, row.message_id) == (None, None, None, None)
    wanted = {name: set(metadata.tables[name].columns.keys()) for name in DEIMOS_TABLES}
    assert {name: {column[0] for column in (await shape(engine))[name][0]} for name in DEIMOS_TABLES} == wanted
    # A Deimos that still runs writes as ever, beside us.
    await execute(engine, *deimos_rows(dialect)[:1])
    async with engine.begin() as connection:
        await connection.run_sync(insert_rows, make_rows([OutboundRecord("orders", b"k", b"ours", [("a", b"b")])]))
    assert [(found.message, found.shard is None) for found in await messages(engine)] == [
        (b"one", True),
        (b"one", True),
        (b"ours", False),
    ]
    await execute(engine, "INSERT INTO kafka_topic_info (topic, locked_by) VALUES ('layout', 'x'), ('slot-0', NULL)")
    await downgrade(engine, "deimos_0002")
    assert await shape(engine) == before
    assert await counts(engine) == [3, 1, 1]
    await downgrade(engine, "base")
    await upgrade(engine)
    assert await counts(engine) == [3, 1, 1]


async def messages(engine: AsyncEngine) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(sa.select(kafka_messages).order_by(kafka_messages.c.id)))


async def test_take_over_that_stopped_half_way_goes_on(engine: AsyncEngine) -> None:
    """MySQL and MariaDB commit each statement by itself, so a process may die after any of them."""
    dialect = engine.dialect.name
    await execute(engine, *deimos_tables(dialect), *deimos_rows(dialect))
    await execute(
        engine,
        "ALTER TABLE kafka_messages ADD COLUMN shard SMALLINT",
        "CREATE INDEX index_kafka_messages_on_shard_and_id ON kafka_messages (shard, id)",
        "ALTER TABLE kafka_topic_info ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL",
    )
    await upgrade(engine)
    wanted = await shape(engine)
    await execute(engine, f"UPDATE {VERSION_TABLE} SET version_num = 'deimos_0002'")
    await upgrade(engine)
    assert await shape(engine) == wanted
    assert await counts(engine) == [1, 1, 1]
    if dialect == "mysql":
        await execute(
            engine,
            "DROP INDEX index_kafka_messages_on_shard_and_id ON kafka_messages",
            "ALTER TABLE kafka_messages DROP COLUMN headers",
            "ALTER TABLE deimos_poll_info DROP INDEX index_deimos_poll_info_on_name_and_chunk, DROP COLUMN name",
        )
    await downgrade(engine, "base")
    assert await counts(engine) == [1, 1, 1]


async def test_table_that_lacks_what_deimos_had_is_refused(engine: AsyncEngine) -> None:
    await execute(engine, "CREATE TABLE kafka_messages (id INTEGER NOT NULL, topic VARCHAR(10))")
    with pytest.raises(DatabaseError, match=r"'kafka_messages' exists, and lacks the columns message, key, "):
        await upgrade(engine)


async def test_row_written_by_hand_needs_topic_and_value_only(engine: AsyncEngine) -> None:
    await upgrade(engine)
    await execute(engine, "INSERT INTO kafka_messages (topic, message) VALUES ('orders', 'one')")
    (row,) = await messages(engine)
    assert row.created_at is not None
    async with engine.begin() as connection:
        await connection.execute(kafka_messages.delete())
        await connection.execute(kafka_messages.insert().values(topic="orders"))
    assert (await messages(engine))[0].id > row.id  # ids are never given twice, also when the table was empty

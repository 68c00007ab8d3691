"""Revisions, what runs them, and databases that need none; on SQLite and as SQL."""

from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deimos_async import ConfigurationError, DatabaseError, DatabaseUnavailableError, Deimos, LifecycleError
from deimos_async.database import migrations
from deimos_async.database.migrations import VERSION_TABLE, is_framework_table
from deimos_async.database.migrations.migrator import downgrade, downgrade_sql, state, upgrade, upgrade_sql
from deimos_async.database.schema_lock import schema_lock
from deimos_async.database.tables import metadata

FOLDER = Path(migrations.__file__).parent


@pytest.fixture
async def workers_end() -> AsyncIterator[None]:
    """A connection that failed when it was made is ended without being waited for: its thread answers to our loop."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 30)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    yield made
    await made.dispose()


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda inner: sa.inspect(inner).get_table_names()))


# --- revisions -----------------------------------------------------------------------------------------------------


def test_revisions_are_one_line_with_ids_that_nobody_else_has() -> None:
    scripts = ScriptDirectory(FOLDER)
    found = list(scripts.walk_revisions())
    assert found
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1
    for script in found:
        assert script.revision.startswith("deimos_")
        assert len(script.revision) <= 32, "Alembic's column holds no more"
        assert Path(script.path).stem.startswith(script.revision)
        assert script.doc, "`migrate --list` shows it"


def test_revisions_spell_their_tables_out() -> None:
    """What they import from the code of today would change what they mean."""
    allowed = {"__future__", "sqlalchemy", "alembic", "deimos_async.database.migrations.steps"}
    for path in (FOLDER / "versions").glob("deimos_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed or (node.module or "").startswith("sqlalchemy."), path
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed, path


def test_own_tables_are_told_from_those_of_the_user() -> None:
    assert is_framework_table("kafka_offsets")
    assert is_framework_table(VERSION_TABLE)
    assert not is_framework_table("alembic_version")
    assert not is_framework_table("orders")
    assert not is_framework_table(None)


# --- online --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["nowhere", "+1", "-1", "base:head"])
async def test_revision_that_is_not_there_is_a_mistake_that_names_it(engine: AsyncEngine, to: str) -> None:
    await upgrade(engine)
    with pytest.raises(ConfigurationError) as told:
        await upgrade(engine, to)
    assert str(told.value).startswith(f"revision {to!r}: ")
    with pytest.raises(ConfigurationError, match="revision 'nowhere': "):
        await downgrade(engine, "nowhere")
    assert (await state(engine)).is_head


async def test_steps_by_number_go_up_and_down(engine: AsyncEngine) -> None:
    assert [step.up for step in await upgrade(engine, "+1")] == [True]
    assert (await state(engine)).current == "deimos_0001"
    assert [step.up for step in await downgrade(engine, "-1")] == [False]
    assert (await state(engine)).current is None


async def test_state_of_an_empty_database_is_told_and_makes_nothing(engine: AsyncEngine) -> None:
    found = await state(engine)
    assert found.current is None
    assert not found.is_head
    assert found.revisions[0].id == "deimos_0001"
    assert await tables(engine) == set()


@pytest.mark.usefixtures("workers_end")
async def test_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/missing/test.sqlite3")
    with pytest.raises(DatabaseUnavailableError, match="cannot be reached: OperationalError: unable to open"):
        await upgrade(engine)
    with pytest.raises(DatabaseUnavailableError):
        await state(engine)


@pytest.mark.usefixtures("workers_end")
async def test_file_that_is_no_database_is_told_with_what_the_driver_said(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite3").write_bytes(b"this is no database" * 100)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'text.sqlite3'}")
    with pytest.raises(DatabaseError, match="the database refuses: DatabaseError: file is not a database"):
        await upgrade(engine)
    await engine.dispose()


async def test_engine_that_begins_transactions_by_itself_is_migrated(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    assert await upgrade(engine)
    assert await tables(engine) == {*metadata.tables, VERSION_TABLE}


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_isolation_level_of_the_engine_does_not_matter(tmp_path: Path, level: Any) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}", isolation_level=level)
    await upgrade(engine)
    with pytest.raises(RuntimeError):
        async with schema_lock(engine) as connection:
            await connection.exec_driver_sql("CREATE TABLE half (id INTEGER)")
            raise RuntimeError
    assert await tables(engine) == {*metadata.tables, VERSION_TABLE}
    await engine.dispose()


async def test_connection_goes_back_to_the_pool_as_it_was(engine: AsyncEngine) -> None:
    async def busy_timeout() -> Any:
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one()

    before = await busy_timeout()
    async with schema_lock(engine, timeout=before / 1000 + 7) as connection:
        assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one() == before + 7000
    assert await busy_timeout() == before


async def test_other_database_is_migrated_after_and_not_within_a_migration(engine: AsyncEngine, tmp_path: Path) -> None:
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite3'}")
    refused: list[BaseException] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def meanwhile(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip().startswith("CREATE TABLE kafka_offsets"):
            try:
                upgrade_sql("sqlite")
            except LifecycleError as error:
                refused.append(error)

    await upgrade(engine)
    assert "one after the other" in str(refused[0])
    assert await upgrade(other)
    await other.dispose()


async def test_kind_of_database_that_has_no_such_tables_is_refused(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.sync_engine.dialect, "name", "oracle")
    with pytest.raises(ConfigurationError, match="no tables for oracle; use PostgreSQL, MySQL, MariaDB or SQLite"):
        await upgrade(engine)


# --- SQL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_sql_up_and_down_writes_the_revision_down_in_a_table_of_its_own(dialect: str) -> None:
    up = upgrade_sql(dialect)
    assert "CREATE TABLE kafka_offsets" in up
    assert f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('deimos_0001')" in up
    assert ("COLLATE utf8mb4_bin" in up) == (dialect in ("mysql", "mariadb"))
    down = downgrade_sql(dialect, "base")
    assert "DROP TABLE kafka_offsets" in down
    assert f"DELETE FROM {VERSION_TABLE}" in down


def test_sql_between_revisions_that_are_the_same_is_empty() -> None:
    assert "TABLE" not in upgrade_sql("sqlite", "deimos_0001", start="deimos_0001")
    assert "TABLE" not in downgrade_sql("sqlite", "deimos_0001", start="deimos_0001")


def test_sql_to_an_unknown_revision_is_a_mistake_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match="revision 'base:nowhere': "):
        upgrade_sql("postgresql", "nowhere")


# --- applications --------------------------------------------------------------------------------------------------


async def test_embedded_run_has_the_tables(app: Deimos) -> None:
    async with app.running(), app.session() as session:
        assert (await session.execute(sa.select(*metadata.tables["kafka_offsets"].columns))).all() == []


async def test_embedded_run_makes_none_in_the_users_own_database(make_app: Any, engine: AsyncEngine) -> None:
    async with make_app(engine=engine).running():
        assert await tables(engine) == set()


async def test_database_alone_is_opened_and_closed(tmp_path: Path, make_app: Any) -> None:
    app = make_app({"embedded": False, "database.url": f"sqlite+aiosqlite:///{tmp_path / 'app.sqlite3'}"})
    async with app.database_only() as database:
        await upgrade(database.engine)
        assert "kafka_offsets" in await tables(database.engine)


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"embedded": False}, "there is no database"), ({}, "lasts as long as its run; unset 'embedded'")],
)
async def test_application_without_a_database_that_lasts_has_none_to_open(
    make_app: Any, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        async with make_app(settings).database_only():
            pytest.fail("there is none")

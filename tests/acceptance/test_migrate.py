"""`migrate` by command line, and the project's own Alembic environment."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fresh_database import fresh_database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.database import migrations

from .conftest import Launch, Launched

ROOT = Path(__file__).resolve().parents[2]

REVISIONS = [script.revision for script in ScriptDirectory(migrations.__path__[0]).walk_revisions()][::-1]
HEAD = REVISIONS[-1]

POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))

Migrate = Callable[..., Awaitable[Launched]]
Alembic = Callable[..., Awaitable[str]]


@pytest.fixture(params=["sqlite", POSTGRESQL, MARIADB])
async def database_url(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"
        return
    server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    async with fresh_database(server, unique_name) as url:
        yield url


@pytest.fixture
def migrate(launch: Launch, tmp_path: Path) -> Migrate:
    """`await migrate(url, "--list", status=0)` of an application without a broker."""
    (tmp_path / "shop.py").write_text("from deimos_async import Deimos\n\napp = Deimos()\n")

    async def ended(url: str | None, *options: str, status: int = 0, **environment: str) -> Launched:
        program = await launch(
            *(sys.executable, "-W", "error", "-m", "deimos_async", "migrate", "shop:app", *options),
            folder=tmp_path,
            environment=environment | ({} if url is None else {"DEIMOS_DATABASE__URL": url}),
        )
        assert await program.ends() == status, program.output + program.errors
        assert "Traceback" not in program.errors
        return program

    return ended


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_tables_are_made_listed_and_taken_back(migrate: Migrate, database_url: str) -> None:
    listing = (await migrate(database_url, "--list")).output.splitlines()
    assert [line.split()[:3] for line in listing[:-1]] == [
        [name, "to", "apply," if name == HEAD else "apply"] for name in REVISIONS
    ]
    assert listing[-1] == "the database is at base"
    up = await migrate(database_url)
    assert up.output.startswith("applied deimos_0001  kafka_offsets: ")
    assert up.output.endswith(f"the database is at {HEAD} (head); {len(REVISIONS)} revisions run\n")
    again = await migrate(database_url)
    assert again.output == f"the database is at {HEAD} (head); 0 revisions run\n"
    listing = (await migrate(database_url, "--list")).output.splitlines()
    assert "applied, current, head" in listing[-2]
    down = await migrate(database_url, "--down-to", "base")
    assert down.output.startswith(f"undone {HEAD}  ")
    assert down.output.endswith(f"the database is at base; {len(REVISIONS)} revisions run\n")
    assert (await migrate(database_url, "--to", "deimos_0001")).output.startswith("applied deimos_0001")


async def test_processes_that_migrate_at_once_end_well_and_one_of_them_did_it(
    migrate: Migrate, database_url: str
) -> None:
    ended = await asyncio.gather(*(migrate(database_url) for _ in range(3)))
    assert sorted(program.output.count("applied deimos_0001") for program in ended) == [0, 0, 1]


async def test_sql_that_is_printed_makes_the_tables_and_takes_them_back(migrate: Migrate, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'never.sqlite3'}"
    up = await migrate(url, "--sql")
    down = await migrate(url, "--sql", "--down-to", "base")
    assert not (tmp_path / "never.sqlite3").exists()
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(up.output)
        assert database.execute("SELECT version_num FROM deimos_alembic_version").fetchall() == [(HEAD,)]
        assert database.execute("SELECT count(*) FROM kafka_offsets").fetchone() == (0,)
        database.executescript(down.output)
        assert database.execute("SELECT version_num FROM deimos_alembic_version").fetchall() == []
    assert "kafka_offsets" not in (await migrate(url, "--sql", "--from", HEAD)).output


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (("--to", "head", "--down-to", "base"), {}, "--to and --down-to exclude each other"),
        (("--from", "base"), {}, "--from goes with --sql"),
        (("--list", "--sql"), {}, "--list changes nothing: use it alone"),
        (("--to", "nowhere"), {}, "Can't locate revision identified by 'nowhere'"),
        ((), {"DEIMOS_DATABASE__URL": "sqlite:///shop.sqlite3"}, "which is not async"),
        ((), {"DEIMOS_EMBEDDED": "true"}, "lasts as long as its run"),
    ],
)
async def test_mistake_is_told_in_one_line_and_exits_two(
    migrate: Migrate, options: tuple[str, ...], environment: dict[str, str], text: str
) -> None:
    settings = {"DEIMOS_DATABASE__URL": "sqlite+aiosqlite:///shop.sqlite3"} | environment
    program = await migrate(None, *options, status=2, **settings)
    assert text in program.errors


async def test_application_without_a_database_is_told_so(migrate: Migrate) -> None:
    for options in ((), ("--sql",), ("--list",)):
        program = await migrate(None, *options, status=2)
        assert "there is no database; set 'database.url', or give Deimos(engine=...)" in program.errors


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mysql+aiomysql"])
async def test_server_that_is_away_is_told_without_the_password(migrate: Migrate, scheme: str) -> None:
    program = await migrate(f"{scheme}://shop:hunter2@127.0.0.1:1/shop", status=1)
    assert "Error: the database cannot be reached" in program.errors
    assert "hunter2" not in program.errors


async def test_missing_alembic_is_told_with_the_extra_that_brings_it(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from deimos_async import Deimos\n\napp = Deimos()\n")
    without = "import sys; sys.modules['alembic'] = None; from deimos_async.cli import main; main()"
    program = await launch(
        *(sys.executable, "-c", without, "migrate", "shop:app"),
        folder=tmp_path,
        environment={"DEIMOS_DATABASE__URL": "sqlite+aiosqlite:///shop.sqlite3"},
    )
    assert await program.ends() == 2
    assert "needs Alembic, which is not installed: pip install 'deimos-async[migrations]'" in program.errors


@pytest.fixture
def alembic(launch: Launch, tmp_path: Path) -> Alembic:
    """`await alembic(url, "upgrade", "heads")` in the project's own environment, from another folder."""

    async def ended(url: str, *arguments: str, status: int = 0) -> str:
        program = await launch(
            *(sys.executable, "-W", "error", "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments),
            folder=tmp_path,
            environment={"DEIMOS_DATABASE__URL": url},
        )
        assert await program.ends() == status, program.output + program.errors
        return program.output + program.errors

    return ended


async def test_projects_environment_has_the_examples_tables_and_the_frameworks_in_one_history(
    alembic: Alembic, database_url: str
) -> None:
    await alembic(database_url, "upgrade", "heads")
    assert "No new upgrade operations detected" in await alembic(database_url, "check")
    await alembic(database_url, "downgrade", "base")
    assert "not up to date" in await alembic(database_url, "check", status=255)


async def test_orders_that_are_there_are_kept_up_and_down(alembic: Alembic, database_url: str) -> None:
    await alembic(database_url, "upgrade", "examples_0002")
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO orders (item, total, country, state) VALUES ('lamp', 9.50, 'CA', 'placed')")
        )
    await alembic(database_url, "upgrade", "heads")
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO orders (item, total, country, state, placed_at) "
                "VALUES ('globe', 5, 'CA', 'placed', CURRENT_TIMESTAMP)"
            )
        )
        rows = await connection.execute(text("SELECT id, item FROM orders WHERE placed_at IS NOT NULL ORDER BY id"))
        assert rows.all() == [(1, "lamp"), (2, "globe")]
    await engine.dispose()
    await alembic(database_url, "downgrade", "examples_0002")
    async with engine.connect() as connection:
        rows = (await connection.execute(text("SELECT * FROM orders ORDER BY id"))).mappings().all()
        assert [(row["id"], row["item"]) for row in rows] == [(1, "lamp"), (2, "globe")]
        assert "placed_at" not in rows[0]
    await engine.dispose()


async def test_projects_environment_prints_sql_for_both(alembic: Alembic) -> None:
    sql = await alembic("sqlite+aiosqlite://", "upgrade", "heads", "--sql")
    assert "CREATE TABLE kafka_offsets" in sql
    assert "CREATE TABLE invoices" in sql

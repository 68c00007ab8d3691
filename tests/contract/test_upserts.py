"""Bulk upserts, inserts and deletes do the same on PostgreSQL, MariaDB and SQLite, within the caller's transaction."""

from __future__ import annotations

import asyncio
import enum
import random
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from deimos_async.database.errors import is_away, is_transient, sql_state
from deimos_async.database.upserts import WriteResult, ensure_begun, insert_plan, upsert_plan
from deimos_async.errors import ConfigurationError, LifecycleError

DEADLINE = 30.0
"""Seconds after which a wait has failed."""


class Place:
    """A database, with tables that are dropped at the end."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.metadata = sa.MetaData()

    @property
    def kind(self) -> str:
        return self.engine.dialect.name

    def plan(self, table: sa.Table, *args: Any, **options: Any) -> Any:
        return upsert_plan(table, *args, dialect=self.engine.dialect, **options)

    async def table(self, *parts: Any, name: str | None = None, **options: Any) -> sa.Table:
        table = sa.Table(name or self.name, self.metadata, *parts, **options)
        async with self.engine.begin() as connection:
            await connection.run_sync(self.metadata.create_all)
        return table

    async def write(self, plan: Any, *rows: dict[str, Any]) -> WriteResult:
        async with self.engine.begin() as connection:
            result: WriteResult = await plan.write(connection, rows)
            return result

    async def delete(self, plan: Any, *keys: dict[str, Any], **options: Any) -> WriteResult:
        async with self.engine.begin() as connection:
            result: WriteResult = await plan.delete(connection, keys, **options)
            return result

    async def rows(self, table: sa.Table, *columns: str) -> list[tuple[Any, ...]]:
        """All rows, through SQLAlchemy, in the order of the first column."""
        chosen = [table.columns[name] for name in columns] or list(table.columns)
        async with self.engine.connect() as connection:
            found = await connection.execute(sa.select(*chosen).order_by(chosen[0]))
            return [tuple(row) for row in found]


@asynccontextmanager
async def opened(url: str, name: str, **options: Any) -> AsyncIterator[Place]:
    place = Place(create_async_engine(url, **options), name)
    try:
        yield place
    finally:
        async with place.engine.begin() as connection:
            await connection.run_sync(place.metadata.drop_all)
        await place.engine.dispose()


POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.services("postgres"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.services("mariadb"))
SERVERS = [POSTGRESQL, MARIADB]


@pytest.fixture(params=["sqlite", *SERVERS, pytest.param("asyncmy", marks=pytest.mark.services("mariadb"))])
async def place(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[Place]:
    """One database after the other; a test that names others is parametrized with them."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    if request.param == "asyncmy":  # MariaDB by the other driver
        url = url.replace("+aiomysql", "+asyncmy")
    async with opened(url, unique_name) as place:
        yield place


@pytest.fixture
async def postgres(postgres_url: str, unique_name: str) -> AsyncIterator[Place]:
    async with opened(postgres_url, unique_name) as place:
        yield place


@pytest.fixture
async def mariadb(mariadb_url: str, unique_name: str) -> AsyncIterator[Place]:
    async with opened(mariadb_url, unique_name) as place:
        yield place


def people() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(50)),
        sa.Column("note", sa.String(50)),
    ]


def versioned() -> list[sa.Column[Any]]:
    return [
        *people(),
        sa.Column("version", sa.BigInteger),
        sa.Column("deleted_at", sa.DateTime),
    ]


# --- upserts ---------------------------------------------------------------------------------------------------------


async def test_new_rows_are_inserted_and_stored_ones_overwritten(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    assert await place.write(plan, {"id": 2, "name": "b", "note": "x"}, {"id": 1, "name": "a", "note": None}) == (
        WriteResult(2)
    )
    assert await place.write(plan, {"id": 2, "name": "B", "note": "y"}, {"id": 3, "name": "c", "note": "z"}) == (
        WriteResult(2)
    )
    assert await place.rows(table) == [(1, "a", None), (2, "B", "y"), (3, "c", "z")]


async def test_columns_that_rows_do_not_speak_of_keep_their_values(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, {"id": 1, "name": "a", "note": "kept"}, {"id": 2, "name": "b", "note": "kept"})
    await place.write(plan, {"id": 1, "name": "A"}, {"id": 2, "note": None}, {"id": 3, "name": "c"})
    assert await place.rows(table) == [(1, "A", "kept"), (2, "b", None), (3, "c", None)]


async def test_only_named_columns_are_overwritten(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table, columns=["name"])
    await place.write(plan, {"id": 1, "name": "a", "note": "first"})
    await place.write(plan, {"id": 1, "name": "A", "note": "second"}, {"id": 2, "name": "b", "note": "new"})
    assert await place.rows(table) == [(1, "A", "first"), (2, "b", "new")]


async def test_insert_only_columns_keep_what_the_first_row_said(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table, insert_only=["note"])
    await place.write(plan, {"id": 1, "name": "a", "note": "first"}, {"id": 1, "name": "b", "note": "second"})
    await place.write(plan, {"id": 1, "name": "c", "note": "third"})
    assert await place.rows(table) == [(1, "c", "first")]


async def test_later_row_of_a_key_wins_column_by_column(place: Place) -> None:
    table = await place.table(*people())
    rows = [{"id": 1, "name": "a", "note": "kept"}, {"id": 2, "name": "x"}, {"id": 1, "name": "b"}]
    assert await place.write(place.plan(table), *rows) == WriteResult(2)
    assert await place.rows(table) == [(1, "b", "kept"), (2, "x", None)]


async def test_row_with_nothing_but_its_key_is_inserted_and_changes_nothing(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, {"id": 1, "name": "a"})
    assert await place.write(plan, {"id": 1}, {"id": 2}) == WriteResult(2)
    assert await place.rows(table) == [(1, "a", None), (2, None, None)]


async def test_compound_key_that_is_not_the_primary_key(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("country", sa.String(2), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("name", sa.String(20)),
        sa.UniqueConstraint("country", "number"),
    )
    plan = place.plan(table, ["country", "number"])
    await place.write(plan, {"country": "de", "number": 1, "name": "a"}, {"country": "fr", "number": 1, "name": "b"})
    before = await place.rows(table, "country", "id")
    assert await place.write(
        plan, {"country": "fr", "number": 1, "name": "B"}, {"country": "de", "number": 2, "name": "c"}
    ) == WriteResult(2)
    found = await place.rows(table, "country", "number", "name")
    assert sorted(found) == [("de", 1, "a"), ("de", 2, "c"), ("fr", 1, "B")]
    assert set(before) <= set(await place.rows(table, "country", "id"))
    assert await place.delete(plan, {"country": "de", "number": 1}, {"country": "xx", "number": 1}) == WriteResult(1)
    assert sorted(await place.rows(table, "country", "number")) == [("de", 2), ("fr", 1)]


async def test_rows_without_a_key_are_all_inserted(place: Place) -> None:
    table = await place.table(sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
    plan = place.plan(table)
    await place.write(plan, {"name": "a"}, {"name": "a"}, {"id": None, "name": "b"})
    assert sorted(name for _, name in await place.rows(table)) == ["a", "a", "b"]


async def test_null_in_a_unique_index_equals_nothing(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("code", sa.String(5), unique=True),
        sa.Column("name", sa.String(20)),
    )
    plan = place.plan(table, ["code"])
    rows = [{"code": None, "name": "a"}, {"code": "x", "name": "b"}, {"code": None, "name": "c"}]
    assert await place.write(plan, *rows) == WriteResult(3)
    assert await place.write(plan, *rows) == WriteResult(3)
    assert sorted(name for _, _, name in await place.rows(table)) == ["a", "a", "b", "c", "c"]
    assert await place.delete(plan, {"code": None}) == WriteResult(0)


async def test_plain_insert_keeps_every_row(place: Place) -> None:
    table = await place.table(sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
    plan = insert_plan(table, dialect=place.engine.dialect)
    assert await place.write(plan, *[{"name": "same"}] * 1500) == WriteResult(1500)
    assert [name for _, name in await place.rows(table)] == ["same"] * 1500
    with pytest.raises(ConfigurationError, match="without a key"):
        await place.delete(plan, {"id": 1})


async def test_plain_insert_of_a_stored_key_is_an_integrity_error(place: Place) -> None:
    table = await place.table(*people())
    plan = insert_plan(table, dialect=place.engine.dialect)
    await place.write(plan, {"id": 1, "name": "a"})
    with pytest.raises(exc.IntegrityError):
        await place.write(plan, {"id": 2, "name": "b"}, {"id": 1, "name": "c"})
    assert await place.rows(table) == [(1, "a", None)]


async def test_nothing_to_write_needs_no_transaction(place: Place) -> None:
    table = await place.table(*people())
    async with place.engine.connect() as connection:
        assert await place.plan(table).write(connection, []) == WriteResult(0)
        assert await place.plan(table).delete(connection, []) == WriteResult(0)


# --- names, defaults, generated columns ------------------------------------------------------------------------------


async def test_names_that_need_quotes(place: Place) -> None:
    table = await place.table(
        sa.Column("Order", sa.Integer, primary_key=True, autoincrement=False, key="number"),
        sa.Column("50% off", sa.String(20), key="off"),
        sa.Column("select", sa.String(20)),
        name=f"{place.name} Select%",
    )
    plan = place.plan(table, version_column=None)
    await place.write(plan, {"number": 1, "off": "50% or %s or :x", "select": 'it\'s "q" \\ ` ? $1'})
    await place.write(plan, {"number": 1, "select": "%(a)s"}, {"number": 2, "off": "€ 🎉", "select": "\\'"})
    assert await place.rows(table) == [(1, "50% or %s or :x", "%(a)s"), (2, "€ 🎉", "\\'")]
    assert await place.delete(plan, {"number": 1}) == WriteResult(1)


async def test_defaults_of_columns_that_are_not_given(place: Place) -> None:
    counted = iter(range(100, 200))
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("scalar", sa.String(20), default="plain"),
        sa.Column("callable", sa.Integer, default=lambda: next(counted)),
        sa.Column("from_row", sa.String(40), default=lambda context: context.get_current_parameters()["name"] + "!"),
        sa.Column("sql", sa.String(20), default=sa.func.lower("SQL%")),
        sa.Column("server", sa.String(20), server_default="served"),
    )
    plan = place.plan(table)
    await place.write(plan, {"id": 1, "name": "a"}, {"id": 2, "name": "b"})
    await place.write(plan, {"id": 1, "name": "A", "scalar": "given"}, {"id": 2, "name": "B", "scalar": None})
    assert await place.rows(table) == [
        (1, "A", "given", 100, "a!", "sql%", "served"),
        (2, "B", None, 101, "b!", "sql%", "served"),
    ]


async def test_onupdate_of_columns_that_are_not_given(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("changed", sa.String(20), default="new", onupdate=lambda: "changed's"),
        sa.Column("by_sql", sa.String(20), onupdate=sa.func.lower("SQL")),
        sa.Column("kept", sa.String(20), default="first", onupdate="second"),
    )
    plan = place.plan(table, insert_only=["kept"])
    await place.write(plan, {"id": 1, "name": "a"}, {"id": 2, "name": "b"})
    await place.write(plan, {"id": 2, "name": "B"}, {"id": 3, "name": "c"})
    await place.write(plan, {"id": 3, "name": "C", "changed": "given"})
    assert await place.rows(table) == [
        (1, "a", "new", None, "first"),
        (2, "B", "changed's", "sql", "first"),
        (3, "C", "given", "sql", "first"),
    ]


async def test_computed_columns_are_left_to_the_database(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("price", sa.Integer),
        sa.Column("twice", sa.Integer, sa.Computed("price * 2", persisted=True)),
    )
    plan = place.plan(table)
    await place.write(plan, {"id": 1, "price": 2})
    await place.write(plan, {"id": 1, "price": 3})
    assert await place.rows(table) == [(1, 3, 6)]
    with pytest.raises(ConfigurationError, match="twice"):
        await place.write(plan, {"id": 1, "twice": 3})


async def test_column_that_the_table_does_not_have_is_refused(place: Place) -> None:
    table = await place.table(*people())
    with pytest.raises(ConfigurationError, match="nope"):
        await place.write(place.plan(table), {"id": 1, "nope": 3})


# --- values ----------------------------------------------------------------------------------------------------------


class Mood(enum.Enum):
    GOOD = "good one"
    BAD = "bad's one"


class Doubled(sa.TypeDecorator[int]):
    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> int | None:
        return None if value is None else value * 2


class Lowered(sa.TypeDecorator[str]):
    """Applies a function of the database."""

    impl = sa.String(20)
    cache_ok = True

    def bind_expression(self, bindvalue: Any) -> Any:
        return sa.func.lower(bindvalue)


KINDS: list[tuple[str, Any, list[Any]]] = [
    ("big", sa.BigInteger, [2**62, -1, 0]),
    ("small", sa.SmallInteger, [-32768, 1, 2]),
    ("flag", sa.Boolean, [True, False, True]),
    ("exact", sa.Numeric(20, 4), [Decimal("12345678.4567"), Decimal("-0.0001"), Decimal(3)]),
    ("real", sa.Double, [0.1, -1e300, 5e-300]),
    ("text", sa.Text, ["", "x" * 60_000, "tab\t, \\N, line\nend\r, \x1a, 'quote'"]),
    ("chars", sa.CHAR(5), ["ab cd", "abcde", "äöüßé"]),
    ("mood", sa.Enum(Mood, name="mood"), [Mood.GOOD, Mood.BAD, Mood.GOOD]),
    ("plain_mood", sa.Enum(Mood, native_enum=False, length=20), [Mood.GOOD, Mood.BAD, Mood.GOOD]),
    ("raw", sa.LargeBinary, [b"", bytes(range(256)), b"\\'%s"]),
    ("identity", sa.Uuid, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID(int=7)]),
    ("data", sa.JSON, [{"a": [1, None, "€'\\"], "b": {"c": 1.5}}, [], "text"]),
    ("day", sa.Date, [date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 31)]),
    ("hour", sa.Time, [time(0, 0), time(23, 59, 59), time(12, 30)]),
    ("moment", sa.DateTime, [datetime(2024, 1, 2, 3, 4, 5), datetime(1970, 1, 1), datetime(2038, 1, 19)]),  # noqa: DTZ001
    ("doubled", Doubled, [1, 2, 3]),
]


@pytest.mark.parametrize("count", [3, 1200])
async def test_values_of_all_types_come_back(place: Place, count: int) -> None:
    mood = sa.Enum(Mood, name=f"{place.name}_mood")
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *[sa.Column(name, mood if name == "mood" else type_) for name, type_, _ in KINDS],
    )
    plan = place.plan(table)
    rows = [{"id": n, **{name: values[n % 3] for name, _, values in KINDS if name != "text"}} for n in range(count)]
    rows = [{**row, "text": KINDS[5][2][row["id"] % 3] if row["id"] < 3 else "t"} for row in rows]
    empty = {"id": count, **{name: sa.null() if name == "data" else None for name, _, _ in KINDS}}
    assert await place.write(plan, *rows, empty) == WriteResult(count + 1)
    expected = [
        tuple(value * 2 if name == "doubled" else value for name, value in row.items())
        for row in ({key: row[key] for key in [column.key for column in table.columns]} for row in rows)
    ]
    *found, last = await place.rows(table)
    assert found == expected
    assert last == (count, *[None] * len(KINDS))
    assert await place.write(plan, *rows, empty) == WriteResult(count + 1)
    assert (await place.rows(table))[:-1] == expected


async def test_type_with_a_function_of_the_database(place: Place) -> None:
    table = await place.table(
        sa.Column("code", Lowered, primary_key=True),
        sa.Column("name", Lowered, onupdate="AGAIN%"),
        sa.Column("number", sa.Integer),
    )
    plan = place.plan(table)
    await place.write(plan, {"code": "A", "name": "X%s", "number": 1}, {"code": "B", "name": None, "number": 2})
    await place.write(plan, {"code": "A", "number": 3})
    assert await place.rows(table) == [("a", "again%", 3), ("b", None, 2)]
    assert await place.delete(plan, {"code": "B"}) == WriteResult(1)


class Secret:
    def __repr__(self) -> str:
        return "secret"


async def test_value_that_the_type_refuses_is_a_statement_error_without_the_value(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("mood", sa.Enum(Mood, native_enum=False, length=20)),
    )
    with pytest.raises(exc.StatementError, match=r"mood: a value does not fit") as caught:
        await place.write(place.plan(table), {"id": 1, "mood": Secret()})
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.orig, LookupError)


async def test_value_that_the_driver_or_server_refuses_is_no_fault_of_the_database(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("number", sa.Integer)
    )
    plan = place.plan(table)
    with pytest.raises(exc.DBAPIError) as caught:
        await place.write(plan, {"id": 1, "number": {"no": "number"}})
    assert not is_away(caught.value)
    assert not is_transient(caught.value)
    with pytest.raises(exc.DBAPIError) as caught:
        await place.write(plan, {"id": 1, "number": 2**70})
    assert not is_away(caught.value)
    assert await place.rows(table) == []


async def test_text_that_is_too_long_is_refused_not_cut(postgres: Place) -> None:
    table = await postgres.table(*people(), sa.Column("tags", postgresql.ARRAY(sa.String(3))))
    for count in (1, 1200):
        rows = [{"id": number, "name": "n" * 51} for number in range(count)]
        with pytest.raises(exc.DataError) as caught:
            await postgres.write(postgres.plan(table), *rows)
        assert sql_state(caught.value) == "22001"
    with pytest.raises(exc.DataError):
        await postgres.write(postgres.plan(table), {"id": 1, "tags": ["long"]})
    assert await postgres.rows(table) == []


async def test_too_long_text_is_refused_by_mariadb(mariadb: Place) -> None:
    table = await mariadb.table(*people())
    with pytest.raises(exc.DataError) as caught:
        await mariadb.write(mariadb.plan(table), {"id": 1, "name": "n" * 51})
    assert sql_state(caught.value) == "1406"


@pytest.mark.parametrize("count", [4, 1200])
async def test_types_of_postgresql_come_back(postgres: Place, count: int) -> None:
    mood = postgresql.ENUM(Mood, name=f"{postgres.name}_Mood", metadata=postgres.metadata)
    table = await postgres.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("numbers", postgresql.ARRAY(sa.Integer)),
        sa.Column("grid", postgresql.ARRAY(sa.Text, dimensions=2)),
        sa.Column("moods", postgresql.ARRAY(mood)),
        sa.Column("data", postgresql.JSONB),
        sa.Column("zoned", sa.DateTime(timezone=True)),
        sa.Column("span", sa.Interval),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid)),
    )
    one = {
        "numbers": [1, None, 3],
        "grid": [["a", "b"], ["c", '"{},']],
        "moods": [Mood.BAD, Mood.GOOD],
        "data": {"x": ["€", None]},
        "zoned": datetime(2024, 1, 1, 12, tzinfo=UTC),
        "span": timedelta(days=3, microseconds=5),
        "ids": [uuid.UUID(int=5)],
    }
    two = {**dict.fromkeys(one, None), "numbers": [], "data": [1]}
    rows = [{"id": number, **(two if number % 2 else one)} for number in range(count)]
    plan = postgres.plan(table)
    for _ in range(2):
        assert await postgres.write(plan, *rows) == WriteResult(count)
        assert await postgres.rows(table) == [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("count", [3, 1200])
async def test_types_without_arrays_or_binary_form_come_back(postgres: Place, count: int) -> None:
    table = await postgres.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("address", postgresql.INET),
        sa.Column("during", postgresql.INT4RANGE),
        sa.Column("stamp", sa.Text, onupdate="again"),
        sa.Column("version", sa.Integer),
    )
    rows = [
        {"id": number, "address": "10.0.0.1", "during": postgresql.Range(1, 5), "version": number}
        for number in range(count)
    ]
    plan = postgres.plan(table, version_column="version")
    assert await postgres.write(plan, *rows) == WriteResult(count)
    rows[0]["version"] = 5
    rows[1]["version"] = 0
    assert await postgres.write(plan, *rows) == WriteResult(count - 1, stale=1)
    found = await postgres.rows(table)
    assert [str(row[1]) for row in found] == ["10.0.0.1"] * count
    assert [row[2] for row in found] == [postgresql.Range(1, 5)] * count
    assert [row[3] for row in found[:3]] == ["again", None, "again"]


async def test_key_that_ignores_case_is_found_in_any_case(postgres: Place) -> None:
    async with postgres.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS citext")
    table = await postgres.table(
        sa.Column("code", postgresql.CITEXT, primary_key=True), sa.Column("number", sa.Integer)
    )
    plan = postgres.plan(table)
    await postgres.write(plan, *[{"code": f"Code {number}", "number": 1} for number in range(1200)])
    await postgres.write(plan, {"code": "CODE 1", "number": 2})
    assert ("Code 1", 2) in await postgres.rows(table)
    assert await postgres.delete(plan, {"code": "code 1"}) == WriteResult(1)
    await postgres.write(plan, {"code": "a", "number": 1}, {"code": "A", "number": 2})
    assert ("a", 2) in await postgres.rows(table)


def spelled_freely(place: Place) -> Any:
    """A type of keys that are the same in any case."""
    return sa.String(20, collation="NOCASE") if place.kind == "sqlite" else sa.String(20)


@pytest.mark.parametrize("place", ["sqlite", MARIADB, pytest.param("asyncmy", marks=MARIADB.marks)], indirect=True)
@pytest.mark.parametrize("count", [1, 600])
async def test_of_two_spellings_of_one_key_the_later_row_wins(place: Place, count: int) -> None:
    table = await place.table(
        sa.Column("code", spelled_freely(place), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20)),
        sa.Column("note", sa.String(20)),
    )
    rows: list[dict[str, Any]] = []
    for number in range(count):
        # Neither order of the alphabet is that of the rows.
        first, second = "aA" if number % 2 else "Aa"
        rows += [
            {"code": first, "number": number, "name": "1", "note": "1"},
            {"code": second, "number": number, "name": "2"},
            {"code": first, "number": number, "name": "3"},
            {"code": second, "number": number, "name": "4"},
        ]
    await place.write(place.plan(table), *rows)
    found = await place.rows(table, "number", "code", "name", "note")
    assert found == [(number, "a" if number % 2 else "A", "4", "1") for number in range(count)]


async def test_spellings_that_are_different_keys_stay_apart(place: Place) -> None:
    kind = sa.String(20, collation="utf8mb4_bin") if place.kind == "mysql" else sa.String(20)
    table = await place.table(sa.Column("code", kind, primary_key=True), sa.Column("number", sa.Integer))
    codes = ["A", "a", "\u00e4", "a\u0308", "\U0001f600", "\U0001f601", "ss", "\u00df", "ROSE", "rose"]
    written = await place.write(place.plan(table), *({"code": code, "number": n} for n, code in enumerate(codes)))
    assert written == WriteResult(len(codes))
    assert sorted(await place.rows(table)) == sorted((code, n) for n, code in enumerate(codes))


async def test_spaces_at_the_end_of_a_char_are_no_other_key(postgres: Place) -> None:
    table = await postgres.table(sa.Column("code", sa.CHAR(5), primary_key=True), sa.Column("number", sa.Integer))
    await postgres.write(postgres.plan(table), {"code": "a ", "number": 1}, {"code": "a", "number": 2})
    assert await postgres.rows(table, "number") == [(2,)]


@pytest.mark.parametrize("place", [MARIADB, pytest.param("asyncmy", marks=MARIADB.marks)], indirect=True)
@pytest.mark.parametrize(("first", "second"), [("a ", "a"), ("\u00e4", "a"), ("\u00e4", "A\u0308"), ("\uff21", "A")])
async def test_server_says_which_spellings_are_one_key(place: Place, first: str, second: str) -> None:
    table = await place.table(
        sa.Column("code", sa.String(20, collation="utf8mb4_unicode_ci"), primary_key=True),
        sa.Column("number", sa.Integer),
    )
    for rows in ([first, second], [second, first]):
        await place.write(place.plan(table), *({"code": code, "number": n} for n, code in enumerate(rows)))
        assert [number for _, number in await place.rows(table)] == [1]


async def test_zero_is_a_number_like_others_where_the_database_counts(place: Place) -> None:
    table = await place.table(sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(5)))
    plan = place.plan(table)

    async def mode(connection: AsyncConnection) -> Any:
        if place.kind != "mysql":
            return None
        return (await connection.exec_driver_sql("SELECT @@SESSION.sql_mode")).scalar_one()

    async with place.engine.connect() as connection:
        before = await mode(connection)
        await connection.rollback()
        for name in ("a", "b"):
            async with connection.begin():
                await plan.write(connection, [{"id": 7, "name": name}, {"id": 0, "name": name}])
        assert await mode(connection) == before
        await connection.rollback()
        async with connection.begin():
            savepoint = await connection.begin_nested()
            with pytest.raises(exc.StatementError):
                await plan.write(connection, [{"id": 0, "name": {"no": "text"}}])
            await savepoint.rollback()
            assert await mode(connection) == before
            await plan.delete(connection, [{"id": 7}])
    assert await place.rows(table) == [(0, "b")]


async def test_number_that_is_not_finite_fails_its_row_alone(mariadb: Place) -> None:
    table = await mariadb.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("number", sa.Double)
    )
    for number in (float("nan"), float("inf")):
        with pytest.raises(exc.DataError):
            await mariadb.write(mariadb.plan(table), {"id": 1, "number": number})
    assert await mariadb.rows(table) == []


async def test_number_that_the_database_makes_overwrites_no_row(postgres: Place) -> None:
    table = await postgres.table(sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
    plan = postgres.plan(table)
    await postgres.write(plan, {"id": 1, "name": "given"})
    with pytest.raises(exc.IntegrityError):
        await postgres.write(plan, {"name": "made"})
    await postgres.write(plan, {"name": "made"})
    assert await postgres.rows(table) == [(1, "given"), (2, "made")]


async def test_stored_identity_that_the_database_always_makes_is_kept(postgres: Place) -> None:
    table = await postgres.table(
        sa.Column("id", sa.Integer, sa.Identity(always=True), primary_key=True),
        sa.Column("code", sa.Text, unique=True),
        sa.Column("name", sa.Text),
    )
    plan = postgres.plan(table, ["code"])
    await postgres.write(plan, {"id": 40, "code": "a", "name": "old"}, {"code": "b", "name": "old"})
    await postgres.write(plan, *({"id": 41, "code": code, "name": "new"} for code in "ab"))
    assert await postgres.rows(table) == [(1, "b", "new"), (40, "a", "new")]


async def test_identity_that_the_database_always_makes_may_be_given(postgres: Place) -> None:
    table = await postgres.table(
        sa.Column("id", sa.Integer, sa.Identity(always=True), primary_key=True), sa.Column("name", sa.Text)
    )
    plan = postgres.plan(table)
    await postgres.write(plan, {"id": 40, "name": "given"}, {"name": "made"})
    await postgres.write(plan, *[{"id": 100 + number, "name": "given"} for number in range(1200)])
    assert (await postgres.rows(table))[:2] == [(1, "made"), (40, "given")]


async def test_schema_and_sequence_are_named_in_full(postgres: Place) -> None:
    schema = f'{postgres.name}_S"q'[-60:]
    async with postgres.engine.begin() as connection:
        await connection.execute(sa.schema.CreateSchema(schema))
    try:
        numbers = sa.Sequence("Numbers", schema=schema, start=7, metadata=postgres.metadata)
        table = await postgres.table(
            sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("number", sa.Integer, numbers),
            sa.Column("mood", sa.Enum(Mood, name="Mood", schema=schema)),
            schema=schema,
        )
        plan = postgres.plan(table)
        await postgres.write(plan, {"id": 1, "mood": Mood.GOOD}, {"id": 2, "mood": Mood.BAD})
        assert await postgres.rows(table) == [(1, 7, Mood.GOOD), (2, 8, Mood.BAD)]
        async with postgres.engine.connect() as connection:
            await connection.execution_options(schema_translate_map={schema: "public"})
            async with connection.begin():
                with pytest.raises(ConfigurationError, match="schema_translate_map"):
                    await plan.write(connection, [{"id": 1}])
    finally:
        async with postgres.engine.begin() as connection:
            await connection.run_sync(postgres.metadata.drop_all)
            await connection.execute(sa.schema.DropSchema(schema))


# --- many rows -------------------------------------------------------------------------------------------------------


async def test_many_rows_and_few_give_the_same_table(place: Place) -> None:
    big = await place.table(*versioned())
    small = await place.table(*versioned(), name=f"{place.name}_2")
    moment = datetime(2024, 5, 6)  # noqa: DTZ001
    generator = random.Random(5)
    rows = [
        {
            "id": generator.randrange(3000),
            "name": f"name {number}",
            "note": None if number % 3 else "ä" * 20,
            "version": generator.randrange(10),
            "deleted_at": moment,
        }
        for number in range(5000)
    ]
    options = {"version_column": "version", "insert_only": ["deleted_at"]}
    written = await place.write(place.plan(big, **options), *rows[:200])
    written = await place.write(place.plan(big, **options), *rows[200:])
    one_by_one = place.plan(small, **options)
    counts = [await place.write(one_by_one, *rows[:200])]
    async with place.engine.begin() as connection:
        counts += [await one_by_one.write(connection, rows[first : first + 10]) for first in range(200, 5000, 10)]
    assert await place.rows(big) == await place.rows(small)
    assert written.written <= 3000
    assert written.stale > 0
    assert len(await place.rows(big)) == len({row["id"] for row in rows})


async def test_two_large_writes_of_one_transaction_and_of_two_shapes(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    async with place.engine.begin() as connection:
        await plan.write(connection, [{"id": number, "name": "a"} for number in range(1500)])
        await plan.write(connection, [{"id": number, "name": "b"} for number in range(1000, 2500)])
        await plan.write(connection, [{"id": number, "note": "c"} for number in range(2000, 3500)])
    rows = await place.rows(table)
    assert len(rows) == 3500
    assert rows[999:1001] == [(999, "a", None), (1000, "b", None)]
    assert rows[2499:2501] == [(2499, "b", "c"), (2500, None, "c")]


async def test_role_that_may_make_no_temporary_tables_writes_all_the_same(
    postgres: Place, postgres_url: str, unique_name: str
) -> None:
    table = await postgres.table(*people())
    role, database = f"{unique_name}_r"[-60:], f"{unique_name}_d"[-60:]
    rows = [{"id": number, "name": "a"} for number in range(1500)]
    async with postgres.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        await connection.exec_driver_sql(f"CREATE DATABASE {database}")
        await connection.exec_driver_sql(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
        try:
            owner = create_async_engine(sa.make_url(postgres_url).set(database=database))
            async with owner.begin() as other:
                await other.run_sync(postgres.metadata.create_all)
                await other.exec_driver_sql(f"GRANT ALL ON {table.name} TO {role}")
            await owner.dispose()
            limited = create_async_engine(sa.make_url(postgres_url).set(database=database, username=role, password="x"))
            plan = upsert_plan(table, dialect=limited.dialect)
            async with limited.begin() as other:
                assert await plan.write(other, rows) == WriteResult(1500)
                found = await other.execute(sa.select(sa.func.count()).select_from(table))
                assert found.scalar_one() == 1500
            await limited.dispose()
        finally:
            await connection.exec_driver_sql(f"DROP DATABASE {database} WITH (FORCE)")
            await connection.exec_driver_sql(f"DROP ROLE {role}")


async def test_temporary_table_does_not_outlive_the_transaction(postgres: Place) -> None:
    table = await postgres.table(*people())
    async with postgres.engine.connect() as connection:
        async with connection.begin():
            await postgres.plan(table).write(connection, [{"id": number} for number in range(1500)])
            query = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relname LIKE 'deimos%'"
            assert (await connection.exec_driver_sql(query)).scalar_one() == 1
        assert (await connection.exec_driver_sql(query)).scalar_one() == 0


async def test_statement_larger_than_a_packet_is_cut_and_a_row_larger_than_one_is_refused(mariadb: Place) -> None:
    table = await mariadb.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), sa.Column("text", mysql.LONGTEXT())
    )
    plan = mariadb.plan(table)
    async with mariadb.engine.connect() as connection:
        packet = int((await connection.exec_driver_sql("SELECT @@max_allowed_packet")).scalar_one())
    part = "ä" * (packet // 9)
    assert await mariadb.write(plan, *[{"id": number, "text": part} for number in range(12)]) == WriteResult(12)
    assert [len(text) for _, text in await mariadb.rows(table)] == [len(part)] * 12
    async with mariadb.engine.begin() as connection:
        with pytest.raises(exc.DataError) as caught:
            async with connection.begin_nested():
                await plan.write(connection, [{"id": 1, "text": "small"}, {"id": 20, "text": "x" * packet}])
        assert sql_state(caught.value) == "1153"
        assert not is_away(caught.value)
        await plan.write(connection, [{"id": 1, "text": "after"}])
    assert (await mariadb.rows(table))[1] == (1, "after")


# --- versions and tombstones -----------------------------------------------------------------------------------------


async def test_older_version_never_overwrites_and_equal_one_does(place: Place) -> None:
    table = await place.table(*versioned())
    plan = place.plan(table, version_column="version")
    await place.write(plan, {"id": 1, "name": "five", "version": 5}, {"id": 2, "name": "five", "version": 5})
    result = await place.write(
        plan,
        {"id": 1, "name": "four", "note": "no", "version": 4},
        {"id": 2, "name": "five again", "version": 5},
        {"id": 3, "name": "new", "version": 1},
    )
    assert result == WriteResult(2, stale=1)
    assert await place.rows(table, "id", "name", "note", "version") == [
        (1, "five", None, 5),
        (2, "five again", None, 5),
        (3, "new", None, 1),
    ]
    # The same batch once more, as after a crash: nothing but the stale row is refused.
    assert await place.write(plan, {"id": 1, "name": "x", "version": 4}, {"id": 3, "name": "new", "version": 1}) == (
        WriteResult(1, stale=1)
    )


async def test_newest_version_within_one_batch_wins(place: Place) -> None:
    table = await place.table(*versioned())
    plan = place.plan(table, version_column="version")
    result = await place.write(
        plan,
        {"id": 1, "name": "two", "version": 2},
        {"id": 1, "name": "three", "version": 3},
        {"id": 1, "name": "one", "version": 1},
        {"id": 1, "name": "three again", "version": 3},
    )
    assert result == WriteResult(1, stale=1)
    assert await place.rows(table, "id", "name", "version") == [(1, "three again", 3)]


async def test_stored_row_without_version_is_overwritten(place: Place) -> None:
    table = await place.table(*versioned())
    await place.write(place.plan(table), {"id": 1, "name": "old"})
    result = await place.write(place.plan(table, version_column="version"), {"id": 1, "name": "new", "version": 0})
    assert result == WriteResult(1)
    assert await place.rows(table, "id", "name", "version") == [(1, "new", 0)]


async def test_version_may_be_a_time_and_stale_rows_are_counted_once(place: Place) -> None:
    table = await place.table(*people(), sa.Column("version", sa.DateTime), sa.Column("v", sa.String(5), onupdate="u"))
    plan = place.plan(table, version_column="version")
    start = datetime(2024, 1, 1)  # noqa: DTZ001
    rows = [{"id": n, "name": "a", "version": start + timedelta(days=1)} for n in range(1200)]
    await place.write(plan, *rows)
    older = [{**row, "name": "b", "version": start + timedelta(days=row["id"] % 3)} for row in rows]
    assert await place.write(plan, *older) == WriteResult(800, stale=400)
    assert [name for _, name in await place.rows(table, "id", "name")][:4] == ["a", "b", "b", "a"]
    assert [v for _, v in await place.rows(table, "id", "v")][:4] == [None, "u", "u", None]


async def test_row_without_version_is_refused(place: Place) -> None:
    table = await place.table(*versioned())
    plan = place.plan(table, version_column="version")
    for row in ({"id": 1, "name": "x"}, {"id": 1, "version": None}):
        with pytest.raises(exc.StatementError, match="which is its version"):
            await place.write(plan, row)


async def test_older_message_does_not_revive_a_deleted_row(place: Place) -> None:
    table = await place.table(*versioned())
    plan = place.plan(table, version_column="version", deleted_column="deleted_at")
    assert plan.keeps_tombstones
    await place.write(
        plan, {"id": 1, "name": "a", "note": "private", "version": 1}, {"id": 2, "name": "b", "version": 9}
    )
    moment = datetime(2024, 1, 1)  # noqa: DTZ001
    result = await place.delete(
        plan, {"id": 1}, {"id": 2}, {"id": 3}, {"id": None}, versions=[5, 5, 5, 5], values={"deleted_at": moment}
    )
    assert result == WriteResult(2, stale=1)
    expected = [(1, None, None, 5, moment), (2, "b", None, 9, None), (3, None, None, 5, moment)]
    assert await place.rows(table) == expected
    late = [{"id": 1, "name": "late", "version": 4}, {"id": 3, "name": "late", "version": 4}]
    assert await place.write(plan, *late) == WriteResult(0, stale=2)
    assert await place.rows(table) == expected
    assert await place.write(plan, {"id": 1, "name": "newer", "version": 6}) == WriteResult(1)
    assert (await place.rows(table))[0] == (1, "newer", None, 6, None)


async def test_marked_row_gets_defaults_and_values_where_null_is_not_allowed(place: Place) -> None:
    table = await place.table(
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("state", sa.String(20), nullable=False, default="new"),
        sa.Column("kind", sa.String(20), nullable=False, default=lambda: "made"),
        sa.Column("data", sa.JSON),
        sa.Column("created_at", sa.String(20), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    options: dict[str, Any] = {
        "version_column": "version",
        "deleted_column": "deleted",
        "insert_only": ["created_at"],
        "columns": ["name"],
    }
    plan = place.plan(table, **options)
    with pytest.raises(ConfigurationError, match=r"name, created_at may not be NULL"):
        await place.delete(plan, {"id": 1}, versions=[1])
    plan = place.plan(table, **options, tombstone_values={"name": ""})
    row = {"id": 1, "name": "a", "state": "s", "kind": "k", "data": [1], "created_at": "first", "version": 1}
    await place.write(plan, row)
    assert (await place.rows(table, "id", "deleted")) == [(1, False)]
    await place.delete(plan, {"id": 1}, {"id": 2}, versions=[2, 2], values={"created_at": "then"})
    assert await place.rows(table) == [
        (1, "", "new", "made", None, "first", 2, True),
        (2, "", "new", "made", None, "then", 2, True),
    ]
    async with place.engine.connect() as connection:
        missing = await connection.execute(sa.select(table.c.id).where(table.c.data.is_(sa.null())))
        assert len(missing.all()) == 2
    await place.write(plan, {"id": 1, "name": "back", "created_at": "x", "version": 3})
    assert (await place.rows(table, "id", "name", "deleted"))[0] == (1, "back", False)


async def test_deletes_say_what_they_need(place: Place) -> None:
    table = await place.table(*versioned())
    with pytest.raises(ConfigurationError, match="need deleted_column"):
        await place.delete(place.plan(table, version_column="version"), {"id": 1}, versions=[1])
    with pytest.raises(ConfigurationError, match="need versions"):
        await place.delete(place.plan(table, version_column="version"), {"id": 1})
    with pytest.raises(ConfigurationError, match="must have id"):
        await place.delete(place.plan(table), {"id": 1}, {"name": "a"})
    with pytest.raises(ConfigurationError, match="need version_column"):
        await place.delete(place.plan(table), {"id": 1}, versions=[1])


@pytest.mark.parametrize("count", [3, 1300])
async def test_rows_are_deleted_by_key_and_missing_ones_are_no_error(place: Place, count: int) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, *[{"id": number, "name": "a"} for number in range(count)])
    keys = [{"id": number} for number in range(1, count + 10)]
    assert await place.delete(plan, *keys, {"id": 1}, {"id": None}) == WriteResult(count - 1)
    assert await place.rows(table) == [(0, "a", None)]


# --- transactions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 1300])
async def test_rollback_leaves_nothing(place: Place, count: int) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    async with place.engine.connect() as connection:
        transaction = await connection.begin()
        await plan.write(connection, [{"id": number, "name": "a"} for number in range(count)])
        await plan.delete(connection, [{"id": 1}])
        await transaction.rollback()
    assert await place.rows(table) == []


async def test_write_belongs_to_the_session_s_transaction(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    async with AsyncSession(place.engine) as session:
        async with session.begin():
            await plan.write(await session.connection(), [{"id": 1, "name": "a"}])
        async with session.begin():
            await plan.write(await session.connection(), [{"id": 2, "name": "b"}])
            await session.rollback()
    assert await place.rows(table) == [(1, "a", None)]


@pytest.mark.parametrize("count", [2, 1300])
async def test_failure_within_a_savepoint_leaves_the_connection_usable(place: Place, count: int) -> None:
    table = await place.table(*people(), sa.Column("code", sa.Integer, unique=True))
    plan = place.plan(table)
    good = [{"id": number, "name": "a", "code": number} for number in range(count)]
    bad = [*({**row, "name": "b"} for row in good), {"id": count, "name": "b", "code": 0}]
    async with place.engine.begin() as connection:
        await ensure_begun(connection)
        async with connection.begin_nested():
            await plan.write(connection, good)
        with pytest.raises(exc.IntegrityError):
            async with connection.begin_nested():
                await plan.write(connection, bad)
        async with connection.begin_nested():
            await plan.write(connection, [{"id": 0, "name": "c"}])
        with pytest.raises(exc.StatementError):
            async with connection.begin_nested():
                await plan.write(connection, [{"id": object(), "name": "d"}])
        await connection.execute(sa.insert(table).values(id=count + 5, name="e"))
    rows = await place.rows(table, "id", "name")
    assert len(rows) == count + 1
    assert [rows[0], rows[1], rows[-1]] == [(0, "c"), (1, "a"), (count + 5, "e")]


async def test_everything_is_rolled_back_with_the_transaction_around_savepoints(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    async with place.engine.connect() as connection:
        transaction = await connection.begin()
        await ensure_begun(connection)
        async with connection.begin_nested():
            await plan.write(connection, [{"id": 1, "name": "a"}])
        await transaction.rollback()
    assert await place.rows(table) == []


async def test_value_of_another_row_in_another_unique_index_is_an_error_and_overwrites_nothing(place: Place) -> None:
    table = await place.table(*people(), sa.Column("email", sa.String(20), unique=True), sa.Column("v", sa.Integer))
    for options in ({}, {"version_column": "v"}):
        plan = place.plan(table, **options)
        await place.write(plan, {"id": 1, "email": "a@x", "name": "one", "v": 1})
        with pytest.raises(exc.IntegrityError) as caught:
            await place.write(
                plan,
                {"id": 2, "email": "a@x", "name": "two", "v": 2},
                {"id": 3, "email": "c@x", "name": "three", "v": 2},
            )
        assert sql_state(caught.value) in ("23505", "1062", "SQLITE_CONSTRAINT_UNIQUE")
        assert await place.rows(table, "id", "email", "name") == [(1, "a@x", "one")]
        async with place.engine.connect() as connection, connection.begin() as transaction:
            with pytest.raises(exc.IntegrityError):
                await plan.write(connection, [{"id": 2, "email": "a@x", "name": "two", "v": 2}])
            await transaction.rollback()


async def test_write_outside_of_a_transaction_is_refused(place: Place) -> None:
    table = await place.table(*people())
    async with place.engine.connect() as connection:
        with pytest.raises(LifecycleError, match="transaction"):
            await place.plan(table).write(connection, [{"id": 1}])


@pytest.mark.parametrize("place", SERVERS, indirect=True)
async def test_connection_that_commits_by_itself_is_refused(place: Place) -> None:
    table = await place.table(*people())
    engine = place.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection, connection.begin():
        with pytest.raises(LifecycleError, match="AUTOCOMMIT"):
            await place.plan(table).write(connection, [{"id": 1}])


@pytest.mark.parametrize("count", [1, 1300])
async def test_isolation_level_of_the_connection_is_that_of_the_write(postgres: Place, count: int) -> None:
    table = await postgres.table(*people())
    async with postgres.engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE")
        async with connection.begin():
            await postgres.plan(table).write(connection, [{"id": number} for number in range(count)])
            level = await connection.exec_driver_sql("SHOW transaction_isolation")
            assert level.scalar_one() == "serializable"


# --- concurrency and failures ----------------------------------------------------------------------------------------


async def both(*attempts: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        for attempt in attempts:
            group.create_task(attempt)


@pytest.mark.parametrize("count", [300, 1500])
@pytest.mark.parametrize("place", SERVERS, indirect=True)
async def test_writers_of_the_same_rows_in_opposite_orders_do_not_deadlock(place: Place, count: int) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    rows = [{"id": number, "name": "start"} for number in range(count)]
    await place.write(plan, *rows)

    async def write(name: str, given: Sequence[dict[str, Any]]) -> None:
        for _ in range(10):
            await place.write(plan, *[{**row, "name": name} for row in given])

    await both(write("forth", rows), write("back", rows[::-1]))
    assert len({name for _, name, _ in await place.rows(table)}) == 1


async def cross(place: Place, plan: Any, ids: tuple[int, int], here: asyncio.Event, there: asyncio.Event) -> None:
    """Write two rows, the second one when the other writer has its first."""
    async with place.engine.begin() as connection:
        await plan.write(connection, [{"id": ids[0], "name": "a"}])
        here.set()
        await there.wait()
        await plan.write(connection, [{"id": ids[1], "name": "b"}])


@pytest.mark.parametrize(
    ("place", "state"),
    [
        pytest.param("postgresql", "40P01", marks=pytest.mark.services("postgres")),
        pytest.param("mariadb", "1213", marks=pytest.mark.services("mariadb")),
    ],
    indirect=["place"],
)
async def test_deadlock_is_told_as_transient(place: Place, state: str) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, {"id": 1}, {"id": 2})
    one, two = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(DEADLINE):
        results = await asyncio.gather(
            cross(place, plan, (1, 2), one, two), cross(place, plan, (2, 1), two, one), return_exceptions=True
        )
    (error,) = [result for result in results if result is not None]
    assert isinstance(error, exc.OperationalError)
    assert sql_state(error) == state
    assert is_transient(error)
    assert not is_away(error)


@pytest.mark.parametrize(
    ("place", "limit", "state"),
    [
        pytest.param("postgresql", "SET lock_timeout = '50ms'", "55P03", marks=pytest.mark.services("postgres")),
        pytest.param("mariadb", "SET innodb_lock_wait_timeout = 1", "1205", marks=pytest.mark.services("mariadb")),
    ],
    indirect=["place"],
)
async def test_lock_timeout_is_told_as_transient(place: Place, limit: str, state: str) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, {"id": 1})
    async with place.engine.begin() as holder, place.engine.begin() as waiter:
        await plan.write(holder, [{"id": 1, "name": "held"}])
        await waiter.exec_driver_sql(limit)
        with pytest.raises(exc.OperationalError) as caught:
            async with waiter.begin_nested():
                await plan.write(waiter, [{"id": 1, "name": "waits"}])
        assert sql_state(caught.value) == state
        assert is_transient(caught.value)
        await plan.write(waiter, [{"id": 2, "name": "after"}])
    assert await place.rows(table, "id", "name") == [(1, "held"), (2, "after")]


async def test_serialization_failure_is_told_as_transient(postgres: Place) -> None:
    table = await postgres.table(*people())
    plan = postgres.plan(table)
    await postgres.write(plan, {"id": 1})
    async with postgres.engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(exc.OperationalError) as caught:
            async with connection.begin():
                await connection.execute(sa.select(table))
                await postgres.write(plan, {"id": 1, "name": "other"})
                await plan.write(connection, [{"id": 1, "name": "own"}])
    assert sql_state(caught.value) == "40001"
    assert is_transient(caught.value)


async def test_busy_sqlite_is_told_as_transient(unique_name: str, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'busy.sqlite3'}"
    async with opened(url, unique_name, connect_args={"timeout": 0}) as place:
        table = await place.table(*people())
        plan = place.plan(table)
        async with place.engine.begin() as holder:
            await plan.write(holder, [{"id": 1, "name": "held"}])
            with pytest.raises(exc.OperationalError) as caught:
                await place.write(plan, {"id": 2, "name": "other"})
    assert (sql_state(caught.value) or "").startswith("SQLITE_BUSY")
    assert is_transient(caught.value)
    assert not is_away(caught.value)


async def test_error_of_a_statement_of_sqlalchemy_s_own_has_the_same_state(place: Place) -> None:
    table = await place.table(*people())
    plan = insert_plan(table, dialect=place.engine.dialect)
    await place.write(plan, {"id": 1})
    with pytest.raises(exc.IntegrityError) as ours:
        await place.write(plan, {"id": 1})
    with pytest.raises(exc.IntegrityError) as theirs:
        async with place.engine.begin() as connection:
            await connection.execute(sa.insert(table).values(id=1))
    assert sql_state(ours.value) == sql_state(theirs.value) is not None
    assert not is_transient(ours.value)
    assert not is_away(ours.value)


async def test_database_that_cannot_be_reached_is_told_as_away(place: Place, tmp_path: Path) -> None:
    nowhere = (
        sa.make_url(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'directory'}")
        if place.kind == "sqlite"
        else place.engine.url.set(host="127.0.0.1", port=1)
    )
    engine = create_async_engine(nowhere)
    with pytest.raises((exc.DBAPIError, OSError)) as caught:
        async with engine.connect():
            pass
    await engine.dispose()
    assert is_away(caught.value)
    assert not is_transient(caught.value)


async def test_pool_without_a_free_connection_is_told_as_away(unique_name: str, tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'pool.sqlite3'}"
    options = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    async with opened(url, unique_name, **options) as place, place.engine.connect():
        with pytest.raises(exc.TimeoutError) as caught:
            await place.engine.connect()
    assert is_away(caught.value)


async def postgres_kill(connection: AsyncConnection) -> str:
    return f"SELECT pg_terminate_backend({(await connection.exec_driver_sql('SELECT pg_backend_pid()')).scalar_one()})"


async def mariadb_kill(connection: AsyncConnection) -> str:
    return f"KILL {(await connection.exec_driver_sql('SELECT CONNECTION_ID()')).scalar_one()}"


@pytest.mark.parametrize("count", [1, 1300])
@pytest.mark.parametrize("place", SERVERS, indirect=True)
async def test_lost_connection_is_told_as_away_and_is_not_used_again(place: Place, count: int) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    kill = postgres_kill if place.kind == "postgresql" else mariadb_kill
    async with place.engine.connect() as connection:
        with pytest.raises(exc.DBAPIError) as caught:
            async with connection.begin():
                await plan.write(connection, [{"id": 1, "name": "before"}])
                statement = await kill(connection)
                async with place.engine.connect() as other:
                    await other.exec_driver_sql(statement)
                await plan.write(connection, [{"id": number, "name": "after"} for number in range(count)])
        assert is_away(caught.value)
        assert not is_transient(caught.value)
        async with connection.begin():
            await plan.write(connection, [{"id": 7, "name": "again"}])
    assert await place.rows(table) == [(7, "again", None)]


@pytest.mark.parametrize("place", SERVERS, indirect=True)
async def test_write_that_is_cancelled_leaves_nothing(place: Place) -> None:
    table = await place.table(*people())
    plan = place.plan(table)
    await place.write(plan, {"id": 1, "name": "start"})
    async with place.engine.begin() as holder:
        await plan.write(holder, [{"id": 1, "name": "held"}])
        waiter = asyncio.create_task(place.write(plan, {"id": 0, "name": "waits"}, {"id": 1, "name": "waits"}))
        await blocked(place)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert await place.rows(table, "id", "name") == [(1, "held")]


async def blocked(place: Place) -> None:
    """Return once a server works on this test's statement, which waits for a lock."""
    query = (
        f"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{place.name}%'"
        if place.kind == "postgresql"
        else f"SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'INSERT%%{place.name}%%'"
    )
    async with asyncio.timeout(DEADLINE):
        while True:
            async with place.engine.connect() as connection:
                if (await connection.exec_driver_sql(query)).scalar_one():
                    return

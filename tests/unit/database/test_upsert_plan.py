"""What a plan refuses, and the statements that it makes where no server of that kind runs in the tests."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.mysql.aiomysql import MySQLDialect_aiomysql
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine import Dialect

from deimos_async.database.upserts import insert_plan, upsert_plan
from deimos_async.database.upserts.mysql import MysqlWriter
from deimos_async.database.upserts.postgresql import PostgresqlWriter
from deimos_async.database.upserts.shapes import shape_of
from deimos_async.errors import ConfigurationError

SQLITE = SQLiteDialect_aiosqlite()
POSTGRESQL = PGDialect_asyncpg(dbapi=PGDialect_asyncpg.import_dbapi())


def table(*columns: Any) -> sa.Table:
    return sa.Table(
        "things",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(10)),
        sa.Column("code", sa.String(10), unique=True),
        sa.Column("version", sa.Integer),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("twice", sa.Integer, sa.Computed("version * 2")),
        *columns,
    )


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"key_columns": ["nope"]}, ["key_columns names 'nope', and there is no such column"]),
        ({"columns": ["no", "name"], "insert_only": ["nor"]}, ["columns names 'no'", "insert_only names 'nor'"]),
        ({"key_columns": ["name"]}, ["no unique index is declared on name"]),
        ({"key_columns": ["id", "name"]}, ["no unique index is declared on id, name"]),
        ({"columns": ["twice"]}, ["columns names 'twice', which the database computes"]),
        ({"key_columns": (), "version_column": "version"}, ["version_column needs key_columns"]),
        ({"version_column": "id"}, ["version_column 'id' cannot be part of the key"]),
        ({"version_column": "version", "insert_only": ["version"]}, ["cannot be part of the key or of insert_only"]),
        ({"deleted_column": "deleted"}, ["deleted_column needs version_column"]),
        ({"tombstone_values": {"name": ""}}, ["tombstone_values needs deleted_column"]),
        ({"version_column": "version", "deleted_column": "version"}, ["deleted_column 'version' cannot be"]),
        ({"version_column": "version", "deleted_column": "state"}, ["deleted_column 'state' must be a boolean"]),
    ],
)
def test_plan_that_cannot_work_is_refused(arguments: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        upsert_plan(table(), dialect=SQLITE, **arguments)
    assert len(caught.value.problems) == len(problems)
    for told, expected in zip(caught.value.problems, problems, strict=True):
        assert told.startswith("table 'things': ")
        assert expected in told


def test_driver_without_bulk_writes_is_refused_with_those_that_have_them() -> None:
    with pytest.raises(ConfigurationError, match=r"postgresql\+psycopg2; use one of postgresql\+asyncpg"):
        insert_plan(table(), dialect=PGDialect_psycopg2())


@pytest.mark.parametrize(
    "index",
    [
        sa.Index("one", "name", unique=True, postgresql_where=sa.text("version > 1")),
        sa.Index("two", "name", unique=True, sqlite_where=sa.text("version > 1")),
        sa.Index("three", sa.text("lower(name)"), unique=True),
        sa.Index("four", "name"),
        sa.Index("five", "name", "version", unique=True),
    ],
    ids=lambda index: index.name,
)
def test_index_that_does_not_make_the_key_unique_is_not_enough(index: sa.Index) -> None:
    with pytest.raises(ConfigurationError, match="no unique index"):
        upsert_plan(table(index), ["name"], dialect=SQLITE)


@pytest.mark.parametrize(
    "constraint",
    [sa.Index("one", "name", "version", unique=True), sa.UniqueConstraint("version", "name")],
    ids=["index", "constraint"],
)
def test_key_may_be_any_declared_unique_set_in_any_order(constraint: Any) -> None:
    assert upsert_plan(table(constraint), ["version", "name"], dialect=SQLITE).key_columns == ("version", "name")


def test_key_whose_values_do_not_compare_is_refused() -> None:
    things = sa.Table("things", sa.MetaData(), sa.Column("tags", postgresql.ARRAY(sa.Text), primary_key=True))
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        upsert_plan(things, dialect=POSTGRESQL)


# --- statements ------------------------------------------------------------------------------------------------------


def flavour(*, is_mariadb: bool, version: tuple[int, ...]) -> Dialect:
    dialect: Any = MySQLDialect_aiomysql(is_mariadb=is_mariadb)
    dialect.server_version_info = version
    return dialect  # type: ignore[no-any-return]


def shape(dialect: Dialect, things: sa.Table, *given: str, version: str | None = "version") -> Any:
    return shape_of(things, dialect, given, keys=["id"], overwritten=given, kept=(), version=version)


@pytest.mark.parametrize(
    ("is_mariadb", "version", "value", "alias"),
    [
        (False, (8, 0, 19), "deimos_row.{}", " AS deimos_row ON DUPLICATE"),
        (False, (9, 1, 0), "deimos_row.{}", " AS deimos_row ON DUPLICATE"),
        (False, (8, 0, 18), "VALUES({})", " ON DUPLICATE"),
        (False, (5, 7, 44), "VALUES({})", " ON DUPLICATE"),
        (True, (11, 4, 2), "VALUES({})", " ON DUPLICATE"),
    ],
)
def test_new_row_is_named_as_the_server_understands(
    is_mariadb: bool, version: tuple[int, ...], value: str, alias: str
) -> None:
    dialect = flavour(is_mariadb=is_mariadb, version=version)
    statement = MysqlWriter(dialect).prepare(shape(dialect, table(), "id", "name", "version"))
    clause, last = statement.tail
    assert clause.startswith(f"{alias} KEY UPDATE name = IF(things.id <=> {value.format('id')} AND ")
    assert f", {value.format('name')}, things.name), " in clause
    # MySQL assigns from left to right: what decides is written last.
    assert last.startswith(f"version = IF(things.id <=> {value.format('id')}, IF(")
    assert "version =" not in clause.replace("things.version", "")


@pytest.mark.parametrize(
    ("type_", "in_array", "staged", "travels_as"),
    [
        (sa.Float(), True, True, "FLOAT"),
        (sa.Double(), True, True, "FLOAT"),
        (sa.Numeric(10, 2), True, True, "NUMERIC"),
        (sa.String(10), True, True, "TEXT"),
        (sa.String(10, collation="C"), True, True, "TEXT"),
        (sa.CHAR(3), True, True, "BPCHAR"),
        (sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), True, True, "JSONB"),
        (sa.Enum("a", "b", name="Kind", schema="other"), True, True, 'other."Kind"'),
        (sa.Enum("a", "b", native_enum=False), True, True, "TEXT"),
        (sa.Interval(), True, True, "INTERVAL"),
        (sa.Uuid(), True, True, "UUID"),
        (sa.DateTime(timezone=True), True, True, "TIMESTAMP WITH TIME ZONE"),
        (postgresql.ARRAY(sa.String(3), dimensions=2), False, True, "TEXT[]"),
        (postgresql.INET(), False, False, "INET"),
        (postgresql.BIT(4), False, False, "BIT VARYING"),
        (postgresql.INT4MULTIRANGE(), False, False, "INT4MULTIRANGE"),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, sa.types.TypeEngine) else None,
)
def test_way_of_a_type_into_postgresql(type_: Any, in_array: bool, staged: bool, travels_as: str) -> None:
    statements = PostgresqlWriter(POSTGRESQL, copy_from=1000).prepare(
        shape(POSTGRESQL, table(sa.Column("x", type_)), "id", "x", version=None)
    )
    assert (statements.unnest is not None) is in_array
    assert (statements.staging is not None) is staged
    assert f"$2::{travels_as})" in statements.single
    assert f"c1 {travels_as})" in statements.create


def test_staging_table_is_named_after_its_columns() -> None:
    writer = PostgresqlWriter(POSTGRESQL, copy_from=1000)
    one = writer.prepare(shape(POSTGRESQL, table(), "id", "name", version=None))
    other = writer.prepare(shape(POSTGRESQL, table(), "id", "version", version=None))
    again = writer.prepare(shape(POSTGRESQL, table(), "id", "name", version=None))
    assert one.staging == again.staging != other.staging
    assert len(one.staging or "") < 63  # PostgreSQL cuts longer names


@pytest.mark.parametrize("dialect", [mysql.dialect(), sqlite.dialect()], ids=["doubles", "leaves"])
def test_percent_signs_are_single_for_the_driver(dialect: Any) -> None:
    key, other = sa.Column("%d", sa.Integer, primary_key=True), sa.Column("x", sa.Text, default=sa.text("'%'"))
    things = sa.Table("50%", sa.MetaData(), key, other)
    found = shape_of(things, dialect, ["%d"], keys=["%d"], overwritten=(), kept=(), version=None)
    assert (found.table.strip('"`'), found.keys[0].strip('"`')) == ("50%", "%d")
    assert found.expressions == (("x", "('%')"),)

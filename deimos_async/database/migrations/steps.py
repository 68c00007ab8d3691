"""What revisions are made of. As they must not change, these must go on meaning what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles

from deimos_async.errors import DatabaseError

__all__ = [
    "Columns",
    "any_bytes",
    "any_text",
    "create_index",
    "create_table",
    "drop_index",
    "drop_table",
    "exact_text",
    "has_column",
    "has_index",
    "moment",
    "plain_moment",
    "remove_columns",
    "row_number",
    "utc_now",
]

Columns = list[sa.Column[Any]]


def create_table(name: str, *parts: sa.schema.SchemaItem, added: Sequence[sa.Column[Any]] = (), **options: Any) -> None:
    """Make a table unless it exists. Offline SQL always makes it, and fails where it exists.

    Args:
        added: Further columns, which a table that exists is given where it lacks them.
        options: Of the dialects, for a table that is made.

    Raises:
        DatabaseError: It exists and lacks other columns, so it is somebody else's.
    """
    if not _exists(name, offline=False):
        op.create_table(name, *parts, *added, **options)
        return
    there = _columns(name)
    wanted = [part.name for part in parts if isinstance(part, sa.Column)]
    if missing := [column for column in wanted if column not in there]:
        raise DatabaseError(
            f"table {name!r} exists, and lacks the columns {', '.join(missing)}: it is not the framework's; "
            "rename it, or give the framework another database or search path"
        )
    for column in added:
        if column.name not in there:
            op.add_column(name, column)


def has_column(table: str, column: str) -> bool:
    """Whether a table has a column. Not offline."""
    return column in _columns(table)


def remove_columns(name: str, *columns: str) -> None:
    """Drop those columns of a table that it has. Not offline."""
    there = _columns(name)
    for column in columns:
        if column in there:
            op.drop_column(name, column)


def create_index(name: str, table: str, columns: Sequence[str], *, unique: bool = False) -> None:
    """Make an index unless the table has one on these columns, by whatever name. Offline SQL always makes it."""
    if not has_index(table, columns):
        op.create_index(name, table, list(columns), unique=unique)


def drop_index(name: str, table: str) -> None:
    """Drop an index if it exists. Not offline: an index goes with its table."""
    if any(index["name"] == name for index in sa.inspect(op.get_bind()).get_indexes(table)):
        op.drop_index(name, table)


def has_index(table: str, columns: Sequence[str]) -> bool:
    """Whether a table has an index on just these columns. Offline: no."""
    if context.is_offline_mode() or not _exists(table, offline=False):
        return False
    return any(index["column_names"] == list(columns) for index in sa.inspect(op.get_bind()).get_indexes(table))


def drop_table(name: str) -> None:
    """Drop a table, with its rows, if it exists. Offline SQL always drops it."""
    if _exists(name, offline=True):
        op.drop_table(name)


def exact_text(length: int) -> sa.types.TypeEngine[str]:
    """VARCHAR whose case counts: the usual collations of MySQL and MariaDB take `A` for `a`."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return sa.String(length).with_variant(binary, "mysql", "mariadb")


def any_bytes() -> sa.types.TypeEngine[bytes]:
    """Bytes of any length; on MySQL and MariaDB LONGBLOB."""
    return sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def moment() -> sa.types.TypeEngine[datetime]:
    """A time to the microsecond; with its zone where the database has such a type."""
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def any_text() -> sa.types.TypeEngine[str]:
    """Text of any length that is used; on MySQL and MariaDB MEDIUMTEXT."""
    long = mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin")
    return sa.Text().with_variant(long, "mysql", "mariadb")


def plain_moment() -> sa.types.TypeEngine[datetime]:
    """A time to the microsecond that does not say its zone, as Deimos's tables have it."""
    return sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def row_number() -> sa.types.TypeEngine[int]:
    """The type of a key by which the database numbers its rows: 64 bits."""
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


class utc_now(sa.ColumnElement[datetime]):  # noqa: N801 - a function of SQL
    """The database's time in UTC, as the default of a `plain_moment`."""

    inherit_cache = True


@compiles(utc_now, "postgresql")
def _utc_now_postgresql(element: object, compiler: object, **options: object) -> str:
    return "(CURRENT_TIMESTAMP AT TIME ZONE 'UTC')"


@compiles(utc_now, "mysql", "mariadb")
def _utc_now_mysql(element: object, compiler: object, **options: object) -> str:
    return "(UTC_TIMESTAMP(6))"  # its CURRENT_TIMESTAMP is in the session's zone


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(element: object, compiler: object, **options: object) -> str:
    return "CURRENT_TIMESTAMP"


def _columns(table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def _exists(name: str, *, offline: bool) -> bool:
    # Not by IF NOT EXISTS, which MySQL and MariaDB answer with a warning, and drivers pass that on as Python's.
    return offline if context.is_offline_mode() else sa.inspect(op.get_bind()).has_table(name)

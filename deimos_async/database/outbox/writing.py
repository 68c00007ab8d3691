"""Rows into the table `kafka_messages`, on a connection that is within somebody's transaction.

One statement for as many rows as fit, given to the driver as it is: PostgreSQL takes each column as an array, MySQL and
MariaDB a list of rows, SQLite one prepared statement for all rows. Drivers that are not known get SQLAlchemy's own.

Nothing here waits by itself: with an async engine it is called within SQLAlchemy's greenlet.
"""

# ruff: noqa: S608 - the text is of fixed names; values are parameters

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, insert, inspect, select, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import StaticPool

from deimos_async.database.connecting import commits_by_itself, connected
from deimos_async.database.errors import sql_state
from deimos_async.database.outbox.protocol import NewRow, RowValues
from deimos_async.database.tables import kafka_messages, kafka_topic_info
from deimos_async.errors import ConfigurationError

__all__ = ["LAYOUT_ROW", "check_tables", "insert_rows"]

LAYOUT_ROW = "layout"
"""`topic` of the row of `kafka_topic_info` that says, in `locked_by`, how rows are spread over shards."""

_MOST_ROWS = 2000
_MOST_BYTES = 4 << 20
"""Of one statement. More gains nothing, and is held in memory by the driver and the server as well."""
_MOST_BYTES_MYSQL = 400 << 10
"""For MySQL and MariaDB. Escaped it is twice as much at most, which is less than the smallest limit that is usual."""
_ESCAPED = b"\0\n\r\x1a\"'\\"
"""Bytes that become two in MySQL's statements."""
_MYSQL_DRIVERS = ("aiomysql", "asyncmy", "pymysql")
_ROW_TEXT = 200
"""Bytes of a row beside key, payload and headers, usually."""
_ROW_OVERHEAD = 1024
"""At most, with the statement around it."""
_PACKET_TOO_LARGE = 1153

_COLUMNS = NewRow._fields
_DIFFERENT = ("message", "key", "shard", "order_hash", "message_id", "size")
_size: Callable[[RowValues], int] = itemgetter(_COLUMNS.index("size"))
_NAMES = ", ".join((*_COLUMNS, "created_at", "updated_at"))
_ARRAYS = ("TEXT", "BYTEA", "BYTEA", "TEXT", "INT2", "INT4", "BYTEA", "TEXT", "INT4", "INT8", "TEXT", "INT4")
_OFTEN_ALIKE = tuple(name not in _DIFFERENT for name in _COLUMNS)
_POSTGRESQL_NOW = "statement_timestamp() AT TIME ZONE 'UTC'"
_MYSQL_HEAD = f"INSERT INTO kafka_messages ({_NAMES.replace(', key,', ', `key`,')}) VALUES "
_is_plain = re.compile(r"[A-Za-z0-9._-]+").fullmatch
"""Text that means the same within quotes whatever the server's mode is: topics and message ids."""
_MISSING = frozenset({"42P01", "42703", "1146", "1054"})
"""No such table, no such column."""


def insert_rows(connection: Connection, rows: Sequence[RowValues]) -> None:
    """Insert rows, in order: their ids ascend.

    Args:
        connection: Any of SQLAlchemy's; what is written is part of its transaction.

    Raises:
        ConfigurationError: The table is missing, or older than this version.
        sqlalchemy.exc.DBAPIError: As the driver does, without the values.
    """
    dialect = connection.dialect
    insert_part, most_bytes = _insert_by_sqlalchemy, _MOST_BYTES
    if dialect.name == "postgresql" and dialect.driver == "asyncpg":
        insert_part = _insert_postgresql
    elif dialect.name in ("mysql", "mariadb") and dialect.driver in _MYSQL_DRIVERS:
        insert_part, most_bytes = _insert_mysql, _MOST_BYTES_MYSQL
    elif dialect.name == "sqlite":
        insert_part = _insert_sqlite
    try:
        for part in _parts(rows, most_bytes):
            insert_part(connection, part)
    except DBAPIError as error:
        error.hide_parameters = True
        if _is_missing(error, connection):
            raise _told_missing() from error
        raise


def _insert_postgresql(connection: Connection, rows: Sequence[RowValues]) -> None:
    parameters: list[object] = []
    alike = []
    for column, may_be_alike in zip(zip(*rows, strict=True), _OFTEN_ALIKE, strict=True):
        is_alike = may_be_alike and column.count(column[0]) == len(column)
        alike.append(is_alike)
        parameters.append(column[0] if is_alike else list(column))
    connection.exec_driver_sql(_postgresql_statement(tuple(alike)), tuple(parameters))


@lru_cache(maxsize=128)
def _postgresql_statement(alike: tuple[bool, ...]) -> str:
    """Values that all rows have in common travel once, others in an array for each column."""
    values, arrays, names = [], [], []
    for number, (kind, is_alike) in enumerate(zip(_ARRAYS, alike, strict=True), 1):
        values.append(f"${number}::{kind}" if is_alike else f"given.c{number}")
        if not is_alike:
            arrays.append(f"${number}::{kind}[]")
            names.append(f"c{number}")
    return (
        f"INSERT INTO kafka_messages ({_NAMES}) SELECT {', '.join(values)}, {_POSTGRESQL_NOW}, {_POSTGRESQL_NOW} "
        f"FROM unnest({', '.join(arrays)}) AS given ({', '.join(names)})"
    )


def _insert_mysql(connection: Connection, rows: Sequence[RowValues]) -> None:
    """What needs no escaping is in the text, as drivers take long for each parameter."""
    if len(rows) == 1 and _size(rows[0]) > _MOST_BYTES_MYSQL:
        _check_packet(connection, NewRow(*rows[0]))
    parameters: list[str] = []
    texts = []

    def text_of(value: str | None) -> str:
        if value is None:
            return "NULL"
        if _is_plain(value) is not None:
            return f"'{value}'"
        parameters.append(value)
        return "%s"

    def bytes_of(value: bytes | None) -> str:
        # aiomysql 0.3.2 cannot send bytes as such with PyMySQL from 1.2 on. What is no ASCII becomes surrogates here,
        # and bytes again when the driver encodes its statement.
        if value is None:
            return "NULL"
        parameters.append(value.decode("ascii", "surrogateescape"))
        return "_binary %s"

    def number_of(value: int | None) -> str:
        return "NULL" if value is None else f"{value:d}"

    for row in rows:
        topic, message, key, partition_key, shard, order, order_key, headers, partition, timestamp, id_, size = row
        texts.append(
            f"({text_of(topic)},{bytes_of(message)},{bytes_of(key)},{text_of(partition_key)},{shard:d},{order:d},"
            f"{bytes_of(order_key)},{text_of(headers)},{number_of(partition)},{number_of(timestamp)},{text_of(id_)},"
            f"{size:d},UTC_TIMESTAMP(6),UTC_TIMESTAMP(6))"
        )
    connection.exec_driver_sql(_MYSQL_HEAD + ",".join(texts), tuple(parameters))


def _insert_sqlite(connection: Connection, rows: Sequence[RowValues]) -> None:
    # The database is in this process, so it has no other clock.
    now = f"'{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}'"
    statement = f"INSERT INTO kafka_messages ({_NAMES}) VALUES ({', '.join('?' * len(_COLUMNS))}, {now}, {now})"
    connection.exec_driver_sql(statement, list(rows))


def _insert_by_sqlalchemy(connection: Connection, rows: Sequence[RowValues]) -> None:
    statement = insert(kafka_messages)
    if connection.dialect.name == "postgresql":
        statement = statement.values(created_at=text(_POSTGRESQL_NOW), updated_at=text(_POSTGRESQL_NOW))
    connection.execute(statement, [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


def _check_packet(connection: Connection, row: NewRow) -> None:
    """Raises DataError for a row that the server would close the connection on, which looks as if it were away."""
    room = int(connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one())
    parts = [part for part in (row.message, row.key, row.order_key) if part is not None]
    length = _ROW_OVERHEAD + sum(2 * len(part) - len(part.translate(None, _ESCAPED)) for part in parts)
    if length + 2 * len(row.headers or "") > room:
        dialect: Any = connection.dialect
        problem = f"a message of {row.size} bytes is larger than the server takes (max_allowed_packet is {room})"
        raise DataError(_MYSQL_HEAD, None, dialect.loaded_dbapi.DataError(_PACKET_TOO_LARGE, problem))


def _parts(rows: Sequence[RowValues], most_bytes: int) -> Iterator[Sequence[RowValues]]:
    """Rows in order, in parts that fit into a statement; a row that does not fit is a part of its own."""
    if not rows:
        return
    if len(rows) <= _MOST_ROWS and sum(map(_size, rows)) + _ROW_TEXT * len(rows) <= most_bytes:
        yield rows
        return
    first = size = 0
    for index, row in enumerate(rows):
        size += _size(row) + _ROW_TEXT
        if index > first and (size > most_bytes or index - first == _MOST_ROWS):
            yield rows[first:index]
            first, size = index, _size(row) + _ROW_TEXT
    yield rows[first:]


def _is_missing(error: DBAPIError, connection: Connection) -> bool:
    if connection.dialect.name != "sqlite":
        return sql_state(error) in _MISSING
    # It has no code for that, but also no transaction that is broken by it.
    return not isinstance(error, IntegrityError) and not _has_tables(connection)


def _has_tables(connection: Connection) -> bool:
    inspector = inspect(connection)
    if not (inspector.has_table(kafka_messages.name) and inspector.has_table(kafka_topic_info.name)):
        return False
    return {column["name"] for column in inspector.get_columns(kafka_messages.name)} >= set(_COLUMNS)


def _told_missing() -> ConfigurationError:
    return ConfigurationError(
        "the database has no table 'kafka_messages', or an older one: the backend 'outbox' needs it; "
        "make it with: python -m deimos_async migrate APP"
    )


async def check_tables(engine: AsyncEngine, *, layout: str) -> None:
    """Whether the database is fit for an outbox, whose rows are spread over shards by these rules.

    Args:
        layout: Is written down by who comes first.

    Raises:
        ConfigurationError: Tables are missing, another layout is written down, or the engine has no transactions.
        DatabaseUnavailableError: The database cannot be reached.
    """
    if isinstance(engine.sync_engine.pool, StaticPool):
        raise ConfigurationError(
            "the outbox needs transactions that are separate, but all sessions of this engine share one connection, as "
            "with a SQLite database in memory; use a file"
        )
    async with connected(engine, "the outbox cannot be looked at") as connection:
        if await connection.run_sync(commits_by_itself):
            raise ConfigurationError(
                "the outbox needs transactions, but the engine was made with isolation_level='AUTOCOMMIT'; "
                "make it without"
            )
        if not await connection.run_sync(_has_tables):
            raise _told_missing()
        topic, owner = kafka_topic_info.c.topic, kafka_topic_info.c.locked_by
        query = select(owner).where(topic == LAYOUT_ROW)
        found = await connection.scalar(query)
        if found is None:
            await connection.rollback()
            try:
                await connection.execute(insert(kafka_topic_info).values(topic=LAYOUT_ROW, locked_by=layout))
                await connection.commit()
            except IntegrityError:
                await connection.rollback()  # somebody else was quicker
            found = await connection.scalar(query)
        if found != layout:
            raise ConfigurationError(
                f"the outbox of this database is laid out as {found!r}, this version wants {layout!r}; "
                "all processes must use versions with the same layout"
            )

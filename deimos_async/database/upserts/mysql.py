"""MySQL and MariaDB through aiomysql or asyncmy: statements of many rows, cut to what the server takes.

ON DUPLICATE KEY UPDATE has no conflict target: it fires on any unique index, and would write one row's values into
another row that only shares, say, an e-mail address. So every assignment looks whether the stored row has the new
row's key. Rows that do not are left as they are, counted in a variable of the session, and make the write fail as a
duplicate does elsewhere. Assignments run from left to right and see each other's results, so the version comes last.

Warnings are not fetched: that a value is cut silently is excluded by the server's strict mode, its default.
"""

# ruff: noqa: S608 - the text is of quoted names and SQLAlchemy's own SQL; values are parameters, or escaped by the driver

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.database.upserts.driver import DriverConnection
from deimos_async.database.upserts.shapes import Field, Shape

__all__ = ["MysqlStatement", "MysqlWriter", "zero_as_value"]

_CHUNK_BYTES = 1 << 20
"""Most bytes of one statement: more gains nothing, and the server parses a statement in one piece."""

_CHUNK_KEYS = 500
"""Most keys of one DELETE: MariaDB turns lists of a thousand into a join, which locks rows in another order."""

_DUPLICATE_ENTRY = 1062
_PACKET_TOO_LARGE = 1153

_ROW_ALIAS_SINCE = (8, 0, 19)
_ROW = "deimos_row"


@dataclass(frozen=True, slots=True)
class MysqlStatement:
    """A statement around its rows.

    Attributes:
        head: What stands before the rows.
        tail: The update clause, with a gap for the values of `shape.updates`; empty without a key.
        wins: SQL that is true where the new row is written over the stored one.
    """

    head: str
    tail: tuple[str, str]
    wins: str


class MysqlWriter:
    """`INSERT ... VALUES (...), (...) ON DUPLICATE KEY UPDATE`, and `DELETE` by lists of keys."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect: Any = dialect
        self._max_packet: int | None = None

    def prepare(self, shape: Shape) -> MysqlStatement:
        """The statement of a shape. It depends on the server's flavour, which is known from the first connection on."""
        head = f"INSERT INTO {shape.table} ({', '.join(shape.inserted)}) VALUES "
        if not shape.keys:
            return MysqlStatement(head, ("", ""), "")
        alias = self._has_row_alias()

        def given(name: str) -> str:
            return f"{_ROW}.{name}" if alias else f"VALUES({name})"

        def stored(name: str) -> str:
            return f"{shape.table}.{name}"

        def counting(variable: str, name: str) -> str:
            return f"IF({variable} := {variable} + 1, {stored(name)}, {stored(name)})"

        same = " AND ".join(f"{stored(name)} <=> {given(name)}" for name in shape.keys)
        if shape.version is None:
            wins = same
            # A column is needed that stays as it is.
            key = shape.keys[0]
            last = f"{key} = IF({same}, {stored(key)}, {counting('@deimos_other', key)})"
        else:
            version = shape.version
            newer = f"({stored(version)} IS NULL OR {stored(version)} <= {given(version)})"
            wins = f"{same} AND {newer}"
            last = (
                f"{version} = IF({same}, IF({newer}, {given(version)}, {counting('@deimos_stale', version)}),"
                f" {counting('@deimos_other', version)})"
            )
        changes = [(name, given(name)) for name in shape.overwritten if name != shape.version]
        changes += shape.update_expressions
        first = "".join(f"{name} = IF({wins}, {sql}, {stored(name)}), " for name, sql in changes)
        clause = f"{f' AS {_ROW}' if alias else ''} ON DUPLICATE KEY UPDATE {first}"
        return MysqlStatement(head, (clause, last), wins)

    def _has_row_alias(self) -> bool:
        """MySQL has deprecated VALUES() for it; MariaDB does not know it."""
        return not self._dialect.is_mariadb and self._dialect.server_version_info >= _ROW_ALIAS_SINCE

    async def write(
        self, link: DriverConnection, statement: MysqlStatement, shape: Shape, columns: Sequence[list[Any]], count: int
    ) -> int:
        """Write `count` rows, given as columns; returns how many were refused as older than what is there.

        Raises:
            IntegrityError: A row met another row in a unique index that is not the key's.
        """
        del count
        room = await self._packet(link)
        if shape.keys:
            await link.connection.exec_driver_sql("SET @deimos_stale = 0, @deimos_other = 0")
        gives_zero = any(
            field.column.table.autoincrement_column is field.column and 0 in column
            for column, field in zip(columns, shape.fields, strict=True)
        )
        async with zero_as_value(link.connection) if gives_zero else nullcontext():
            await self._insert(link, statement, shape, columns, room)
        return await self._judge(link, statement, shape) if shape.keys else 0

    async def _insert(
        self,
        link: DriverConnection,
        statement: MysqlStatement,
        shape: Shape,
        columns: Sequence[list[Any]],
        room: int,
    ) -> None:
        async with link.translating(statement.head):
            escape = link.driver.escape
            tail = self._tail(statement, shape, escape)
            values: list[Iterable[str]] = [
                _literals(column, field, escape) for column, field in zip(columns, shape.fields, strict=True)
            ]
            values += [repeat(sql) for _, sql in shape.expressions]
            rows = (f"({','.join(row)})" for row in zip(*values, strict=False))
            for chunk in self._chunks(rows, room - _size(statement.head) - _size(tail)):
                await link.driver.query(f"{statement.head}{chunk}{tail}")

    def _tail(self, statement: MysqlStatement, shape: Shape, escape: Callable[[Any], str]) -> str:
        before, last = statement.tail
        own = [
            f"{field.name} = IF({statement.wins}, {_literals([value], field, escape)[0]}, {shape.table}.{field.name}), "
            for field, value in zip(shape.updates, shape.update_values(), strict=True)
        ]
        return "".join([before, *own, last])

    async def _judge(self, link: DriverConnection, statement: MysqlStatement, shape: Shape) -> int:
        result = await link.connection.exec_driver_sql("SELECT @deimos_stale, @deimos_other")
        stale, other = map(int, result.one())
        if other:
            text = (
                f"{other} rows have values of other rows in a unique index of {shape.table} "
                f"that is not the one of {', '.join(shape.keys)}"
            )
            raise self._error(IntegrityError, _DUPLICATE_ENTRY, text, statement.head)
        return stale

    async def delete(
        self, link: DriverConnection, table: str, fields: Sequence[Field], keys: Sequence[tuple[Any, ...]]
    ) -> int:
        """Delete rows by key; returns how many there were."""
        room = await self._packet(link)
        deleted = 0
        single = len(fields) == 1
        head = f"DELETE FROM {table} WHERE " + (f"{fields[0].name} IN (" if single else "")
        tail, separator = (")", ",") if single else ("", " OR ")
        async with link.translating(head):
            escape = link.driver.escape
            columns = zip(*keys, strict=True)
            values = [_literals(column, field, escape) for column, field in zip(columns, fields, strict=True)]
            rows = (
                row[0]
                if single
                else f"({' AND '.join(f'{field.name} = {value}' for field, value in zip(fields, row, strict=True))})"
                for row in zip(*values, strict=True)
            )
            for chunk in self._chunks(rows, room - _size(head) - 1, separator, _CHUNK_KEYS):
                deleted += await link.driver.query(f"{head}{chunk}{tail}")
        return deleted

    async def _packet(self, link: DriverConnection) -> int:
        """Most bytes of a statement."""
        if self._max_packet is None:
            result = await link.connection.exec_driver_sql("SELECT @@max_allowed_packet")
            self._max_packet = int(result.scalar_one())
        # The packet has a byte for the command; the rest is for whatever a proxy adds.
        return self._max_packet - 64

    def _chunks(self, rows: Iterator[str], room: int, separator: str = ",", most: int | None = None) -> Iterator[str]:
        """Rows joined to pieces of at most `room` bytes, and not much more than is useful.

        Raises:
            DataError: A single row is larger. The server would close the connection on it, which looks as if it were
                away.
        """
        chunk: list[str] = []
        size = 0
        for row in rows:
            length = _size(row) + len(separator)
            if length > room:
                text = f"a row of {length} bytes is larger than the server takes (max_allowed_packet)"
                raise self._error(DataError, _PACKET_TOO_LARGE, text, None)
            if chunk and (size + length > min(room, _CHUNK_BYTES) or len(chunk) == most):
                yield separator.join(chunk)
                chunk, size = [], 0
            chunk.append(row)
            size += length
        if chunk:
            yield separator.join(chunk)

    def _error(self, family: type[DBAPIError], number: int, text: str, statement: str | None) -> DBAPIError:
        driver_family = getattr(self._dialect.loaded_dbapi, family.__name__)
        return family(statement, None, driver_family(number, text), hide_parameters=True)


@asynccontextmanager
async def zero_as_value(connection: AsyncConnection) -> AsyncIterator[None]:
    """Have MySQL and MariaDB store a 0 in an AUTO_INCREMENT column, for which they make a new number otherwise.

    A row of key 0 would become one more row, with another key, each time that it is written.
    """
    mode = (await connection.exec_driver_sql("SELECT @@SESSION.sql_mode")).scalar_one()
    wanted = ",".join(filter(None, (mode, "NO_AUTO_VALUE_ON_ZERO")))
    await connection.exec_driver_sql("SET SESSION sql_mode = %s", (wanted,))
    try:
        yield
    finally:
        # The mode is the connection's, and outlives the transaction.
        if not connection.invalidated:
            await connection.exec_driver_sql("SET SESSION sql_mode = %s", (mode,))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _literals(values: Iterable[Any], field: Field, escape: Callable[[Any], str]) -> list[str]:
    """SQL of the values of one column."""
    literals = [_literal(value, escape) for value in values]
    return [field.sql(literal) for literal in literals] if any(field.wrap) else literals


def _literal(value: Any, escape: Callable[[Any], str]) -> str:
    if value is None:
        return "NULL"
    if type(value) is int:
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        # Digits, so that the statement stays text whatever the bytes are.
        return f"x'{value.hex()}'"
    if isinstance(value, float) and not math.isfinite(value):
        # The driver calls that a mistake in the statement, and it is one row's.
        raise ValueError("MySQL has no numbers that are not finite")
    return escape(value)

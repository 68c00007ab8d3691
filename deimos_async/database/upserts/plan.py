"""A plan: everything about writing to one table that does not depend on the rows, resolved once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Column, Table, types
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.database.upserts.driver import DRIVERS, DriverConnection, driver_connection
from deimos_async.database.upserts.mysql import MysqlWriter
from deimos_async.database.upserts.options import UpsertOptions, has_default, problems
from deimos_async.database.upserts.postgresql import PostgresqlWriter
from deimos_async.database.upserts.rows import Folded, Row, alike, fold, in_order, rounds
from deimos_async.database.upserts.shapes import (
    Field,
    Shape,
    driver_type,
    field_of,
    ignores_spelling,
    made_here,
    shape_of,
    table_name,
)
from deimos_async.database.upserts.sqlite import SqliteWriter
from deimos_async.errors import ConfigurationError

__all__ = ["UpsertPlan", "WriteResult", "Writer", "insert_plan", "upsert_plan"]

_MOST_SHAPES = 256
"""Shapes that a plan remembers. A topic has a few; payloads with free combinations of fields must not fill memory."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of the rows.

    Attributes:
        written: Rows of the table that are now as given; rows that a delete removed or marked.
        stale: Rows that were given and refused, because a newer version of their key is stored or was given too.
    """

    written: int
    stale: int = 0


class Writer(Protocol):
    """The statements of one database. What a writer prepares, only it understands."""

    def prepare(self, shape: Shape) -> Any:
        """The statements of a shape."""

    async def write(
        self, link: DriverConnection, statement: Any, shape: Shape, columns: Sequence[list[Any]], count: int
    ) -> int:
        """Write `count` rows, given as one list of the driver's values for each of the shape's fields, in order.

        Returns how many were refused as older than the stored row; 0 for shapes without a version. Raises
        SQLAlchemy's errors; the transaction is then to be rolled back, to a savepoint before it at least.
        """

    async def delete(
        self, link: DriverConnection, table: str, fields: Sequence[Field], keys: Sequence[tuple[Any, ...]]
    ) -> int:
        """Delete rows by key, in order; returns how many there were."""


def upsert_plan(
    table: Table,
    key_columns: Sequence[str] | None = None,
    columns: Collection[str] | None = None,
    *,
    dialect: Dialect,
    insert_only: Collection[str] = (),
    version_column: str | None = None,
    deleted_column: str | None = None,
    tombstone_values: Mapping[str, Any] | None = None,
    copy_from: int | None = 1000,
) -> UpsertPlan:
    """Plan to keep `table`: rows are inserted, or written over the stored row of the same key.

    All columns are named by their keys in `table.columns`.

    Args:
        key_columns: Columns by which a stored row is found: the primary key (None) or any other unique constraint or
            unique index that the table declares. Empty: every row is inserted.
        columns: Columns that a stored row gets from the new one, as far as the row has them. None: all. Others that a
            row has are written when it is inserted.
        dialect: The engine's.
        insert_only: Columns that a stored row keeps, whatever the row has and whatever their `onupdate` says
            (`created_at`).
        version_column: Column of a version, which every row must give: a stored row is kept if its version is higher.
            Equal versions are written: what comes later in the topic is newer. A stored NULL is lower than all.
        deleted_column: Column that marks a deleted row (a boolean, a timestamp, or any that may be NULL), needed for
            deletes with versions: the row stays, emptied, with its version, so that an older message which comes
            later cannot bring it back. It is reset when a newer one does.
        tombstone_values: Values that such a row gets in columns that may not be NULL and have no default.
        copy_from: PostgreSQL: from how many rows on COPY is used; None: never.

    Raises:
        ConfigurationError: A column is unknown or cannot be used so, no unique index is declared on the key's columns,
            or there are no bulk writes for the dialect's driver. All mistakes at once.
    """
    options = UpsertOptions(
        table,
        tuple(column.key for column in table.primary_key.columns) if key_columns is None else tuple(key_columns),
        None if columns is None else frozenset(columns),
        insert_only=frozenset(insert_only),
        version_column=version_column,
        deleted_column=deleted_column,
        tombstone_values={} if tombstone_values is None else dict(tombstone_values),
    )
    found = list(problems(options, dialect))
    if found:
        raise ConfigurationError(*(f"table {table.fullname!r}: {problem}" for problem in found))
    return UpsertPlan(options, dialect, _writer(dialect, copy_from))


def insert_plan(table: Table, *, dialect: Dialect, copy_from: int | None = 1000) -> UpsertPlan:
    """Plan for a table to which rows are only added, as from a topic without keys."""
    return upsert_plan(table, (), dialect=dialect, copy_from=copy_from)


class UpsertPlan:
    """Writes and deletes rows of one table, in bulk. Made by `upsert_plan` and `insert_plan`; may be shared by tasks.

    All of it happens in the transaction of the connection that is given. After any error that transaction must be
    rolled back, at least to a savepoint (`connection.begin_nested()`) taken before the call; then the connection is
    usable again. Cancelled: likewise.
    """

    def __init__(self, options: UpsertOptions, dialect: Dialect, writer: Writer) -> None:
        self.table = options.table
        self.key_columns = options.key_columns
        self._options = options
        self._dialect = dialect
        self._writer = writer
        columns, version = self.table.columns, options.version_column
        self._keys = [field_of(columns[name], dialect) for name in self.key_columns]
        self._loose_keys = [ignores_spelling(field.column.type, dialect) for field in self._keys]
        self._version = None if version is None else field_of(columns[version], dialect)
        self._made_by_database = frozenset(name for name in self.key_columns if has_default(columns[name]))
        self._not_made_here = [name for name in self._made_by_database if made_here(columns[name].default) is None]
        self._shapes: dict[tuple[frozenset[str], bool], tuple[Shape, Any]] = {}

    @property
    def keeps_tombstones(self) -> bool:
        """Whether deletes leave a marked row; if not, rows are really deleted."""
        return self._options.deleted_column is not None

    async def write(self, connection: AsyncConnection, rows: Sequence[Row]) -> WriteResult:
        """Insert rows, or write them over stored rows of the same key.

        The result is that of writing the rows one after the other: rows of one key become one, in which later ones
        win, column by column. Keys that differ only in spelling, and may be one to the database (by a collation that
        ignores case, say), are written in several statements, so that it decides; if they are one, each row counts as
        written. A row without a key (a column of it is NULL, or is left to the database) is always inserted: NULL
        equals nothing in a unique index. Columns that a row does not speak of keep their stored values; in new rows
        they get their defaults. A column that may not be NULL and has no default must be in every row, stored already
        or not: databases check that before they look for the stored row. PostgreSQL keeps the stored value of a column
        that is GENERATED ALWAYS AS IDENTITY.

        Rows are written in order of their keys, so that concurrent writers wait for each other instead of
        deadlocking. Rows that speak of different columns go in several statements, each in that order.

        Args:
            connection: In a transaction.
            rows: By keys of columns; values as SQLAlchemy takes them, but no SQL expressions.

        Raises:
            StatementError: A row cannot be written; `DBAPIError` (a kind of it) if the database says so, see
                `database.errors`. Messages hold no values of rows; the driver's (`orig`) may.
            ConfigurationError: A row has a column that the table does not have, or that the database computes.
            LifecycleError: The connection is in no transaction.
        """
        if not rows:
            return WriteResult(0)
        link = await driver_connection(connection)
        if self._options.deleted_column is not None:
            alive = {self._options.deleted_column: self._alive()}
            rows = [{**alive, **row} for row in rows]
        return await self._write(link, rows, is_tombstone=False)

    def identities(self, rows: Sequence[Row]) -> list[Hashable | None]:
        """What tells rows apart: with different ones they are different rows to the database, with the same ones they
        may be the same row. None: the row has no key.

        Raises:
            StatementError: The type of a key's column refuses a value.
        """
        return self._identities_of(self._keys_of(rows)) if self.key_columns else [None] * len(rows)

    async def delete(
        self,
        connection: AsyncConnection,
        keys: Sequence[Row],
        *,
        versions: Sequence[Any] | None = None,
        values: Row | None = None,
    ) -> WriteResult:
        """Delete rows by their keys, which may be missing; with versions only rows that are not newer.

        With `deleted_column` the rows stay, marked: all columns but the key, the version, the mark and `insert_only`
        are emptied (NULL, else `tombstone_values`, else the column's default), and a key that is not there gets such a
        row. Nothing of what the row said is kept.

        Args:
            connection: In a transaction.
            keys: The key's columns with their values. One with a NULL matches nothing.
            versions: One for each key; needed exactly if the plan has a version column.
            values: Columns of the marked rows (`updated_at`, or another mark for `deleted_column`, which is true or
                the time in UTC otherwise).

        Raises:
            ConfigurationError: The plan has no key, or keys lack a column of it; versions are missing, or given to a
                plan without a version column or without `deleted_column`; a marked row has no value for a column that
                may not be NULL.
            StatementError, LifecycleError: As `write`.
        """
        if not self.key_columns:
            raise self._misuse("rows of a plan without a key cannot be deleted by key")
        if (versions is None) is not (self._options.version_column is None):
            raise self._misuse(
                "deletes need versions, because it has a version column"
                if versions is None
                else "deletes with versions need version_column="
            )
        if versions is not None and self._options.deleted_column is None:
            raise self._misuse(
                "deletes with versions need deleted_column=: a row that is gone leaves no trace of its version, "
                "and an older message could bring it back"
            )
        if any(name not in key for key in keys for name in self.key_columns):
            raise self._misuse(f"keys to delete must have {', '.join(self.key_columns)}")
        if not keys:
            return WriteResult(0)
        link = await driver_connection(connection)
        if versions is None:
            return await self._delete(link, keys)
        rest = self._tombstone({} if values is None else values)
        rows = [
            {**rest, **{name: key[name] for name in self.key_columns}, self._options.version_column: version}
            for key, version in zip(keys, versions, strict=True)
            if all(key[name] is not None for name in self.key_columns)
        ]
        return await self._write(link, rows, is_tombstone=True)

    async def _delete(self, link: DriverConnection, keys: Sequence[Row]) -> WriteResult:
        try:
            ordered = in_order({key for key in self._keys_of(keys) if key is not None})
        except TypeError as error:
            raise self._unusable("a key cannot be compared", error) from error
        if not ordered:
            return WriteResult(0)
        parts = [(key,) for key in ordered] if len(self._keys) == 1 else ordered
        return WriteResult(await self._writer.delete(link, table_name(self.table, self._dialect), self._keys, parts))

    async def _write(self, link: DriverConnection, rows: Sequence[Row], *, is_tombstone: bool) -> WriteResult:
        stale = refused = written = 0
        for part, older in self._folded(rows) if self.key_columns else [(rows, 0)]:
            stale += older
            written += len(part)
            for given, group in _grouped(part, self._made_by_database):
                shape, statement = self._shape(given, is_tombstone)
                columns = [field.values(group) for field in shape.fields]
                refused += await self._writer.write(link, statement, shape, columns, len(group))
        return WriteResult(written - refused, stale + refused)

    def _folded(self, rows: Sequence[Row]) -> list[Folded]:
        """Rows as they are written, in rounds of which each has a row of the table once."""
        keys, versions = self._keys_of(rows), self._versions_of(rows)
        try:
            if any(self._loose_keys):
                identities = self._identities_of(keys)
                if len(set(identities)) < len(set(keys)):
                    return [
                        self._fold(
                            [rows[position] for position in chosen],
                            [keys[position] for position in chosen],
                            None if versions is None else [versions[position] for position in chosen],
                        )
                        for chosen in rounds(keys, identities)
                    ]
            return [self._fold(rows, keys, versions)]
        except TypeError as error:
            raise self._unusable("a key or version cannot be compared", error) from error

    def _fold(self, rows: Sequence[Row], keys: Sequence[Hashable | None], versions: Sequence[Any] | None) -> Folded:
        return fold(rows, keys, versions=versions, keep_first=self._options.insert_only)

    def _keys_of(self, rows: Sequence[Row]) -> list[Hashable | None]:
        """The driver's values of the key: one value, or a tuple of several; None where a part is missing."""
        parts = []
        for field in self._keys:
            given = [row.get(field.column.key) for row in rows]
            parts.append(
                [
                    None if value is None else processed
                    for value, processed in zip(given, field.processed(given), strict=True)
                ]
            )
        if len(parts) == 1:
            return list(parts[0])
        return [None if None in key else key for key in zip(*parts, strict=True)]

    def _identities_of(self, keys: Sequence[Any]) -> list[Hashable | None]:
        if not any(self._loose_keys):
            return list(keys)
        if len(self._loose_keys) == 1:
            return list(map(alike, keys))
        return [
            None
            if key is None
            else tuple(alike(part) if loose else part for part, loose in zip(key, self._loose_keys, strict=True))
            for key in keys
        ]

    def _versions_of(self, rows: Sequence[Row]) -> list[Any] | None:
        if self._version is None:
            return None
        versions = [row.get(self._version.column.key) for row in rows]
        if None in versions:
            raise self._unusable(f"a row has no {self._version.column.key}, which is its version", ValueError())
        return self._version.processed(versions)

    def _shape(self, given: frozenset[str], is_tombstone: bool) -> tuple[Shape, Any]:
        known = self._shapes.get((given, is_tombstone))
        if known is not None:
            return known
        names = self.table.columns
        wrong = sorted(name for name in given if name not in names or names[name].computed is not None)
        if wrong:
            raise self._misuse(f"rows have columns that it does not have, or computes itself: {', '.join(wrong)}")
        overwritten: Collection[str | None] = given
        if self._options.columns is not None and not is_tombstone:
            overwritten = {*self._options.columns, self._options.deleted_column}
        shape = shape_of(
            self.table,
            self._dialect,
            given,
            # A number that the database makes may be one that a row was given: no reason to overwrite that row.
            keys=self.key_columns if given.issuperset(self._not_made_here) else (),
            overwritten=overwritten,
            kept=self._options.insert_only,
            version=self._options.version_column,
            emptied=self._emptied(given) if is_tombstone else (),
        )
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
        made = self._shapes[given, is_tombstone] = (shape, self._writer.prepare(shape))
        return made

    def _emptied(self, given: frozenset[str]) -> list[str]:
        return [column.key for column in self._ordinary_columns() if column.nullable and column.key not in given]

    def _ordinary_columns(self) -> list[Column[Any]]:
        own = {
            *self.key_columns,
            *self._options.insert_only,
            self._options.version_column,
            self._options.deleted_column,
        }
        return [
            column
            for column in self.table.columns
            if column.key not in own and column.computed is None and column.identity is None
        ]

    def _tombstone(self, values: Row) -> Row:
        """What a marked row has besides its key, its version and NULLs."""
        row = {**self._options.tombstone_values, **values}
        assert self._options.deleted_column is not None
        if self._options.deleted_column not in row:
            row[self._options.deleted_column] = self._mark(self.table.columns[self._options.deleted_column])
        for column in self._ordinary_columns():
            if not column.nullable and column.key not in row:
                make = made_here(column.default)
                if make is not None:
                    row[column.key] = make(row)
        missing = [
            column.key
            for column in self.table.columns
            if not column.nullable and column.key not in {*row, *self.key_columns, self._options.version_column}
            if not has_default(column) and column.computed is None
        ]
        if missing:
            raise self._misuse(
                f"a deleted row stays, without its values, but {', '.join(missing)} may not be NULL: "
                "give tombstone_values="
            )
        return row

    def _mark(self, column: Column[Any]) -> Any:
        kind = driver_type(column.type, self._dialect)
        if isinstance(kind, types.Boolean):
            return True
        if isinstance(kind, types.DateTime):
            now = datetime.now(UTC)
            return now if kind.timezone else now.replace(tzinfo=None)
        raise self._misuse(f"{column.key} is no boolean and no timestamp: give its value in values=")

    def _alive(self) -> Any:
        assert self._options.deleted_column is not None
        return None if self.table.columns[self._options.deleted_column].nullable else False

    def _misuse(self, text: str) -> ConfigurationError:
        return ConfigurationError(f"table {self.table.fullname!r}: {text}")

    def _unusable(self, text: str, error: Exception) -> StatementError:
        return StatementError(f"table {self.table.fullname!r}: {text}", None, None, error, hide_parameters=True)


def _grouped(rows: Sequence[Row], made_by_database: Collection[str]) -> list[tuple[frozenset[str], list[Row]]]:
    """Rows by the columns that they have, each group in the order of the rows.

    A key's column that is None and that the database fills counts as not given.
    """
    groups: dict[frozenset[str], list[Row]] = {}
    last: Collection[str] = ()
    group: list[Row] = []
    for row in rows:
        if any(name in row and row[name] is None for name in made_by_database):
            row = {name: value for name, value in row.items() if value is not None or name not in made_by_database}
        if row.keys() != last:
            last = row.keys()
            group = groups.setdefault(frozenset(last), [])
        group.append(row)
    # The order of groups, too, must be the same in all processes.
    return sorted(groups.items(), key=lambda item: sorted(item[0]))


def _writer(dialect: Dialect, copy_from: int | None) -> Writer:
    match DRIVERS[dialect.name, dialect.driver]:
        case "postgresql":
            return PostgresqlWriter(dialect, copy_from=copy_from)
        case "mysql":
            return MysqlWriter(dialect)
        case _:
            return SqliteWriter()

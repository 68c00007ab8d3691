"""PostgreSQL through asyncpg, three ways to the same result.

- `unnest`: one statement whose parameters are one array for each column. Cheapest for some hundreds of rows.
- COPY: into a temporary table, and from there one INSERT ... SELECT. Cheapest from about a thousand rows. The table
  lives no longer than the transaction: one that stays would hold on to the types of its columns, and no migration
  could drop an enum while consumers run.
- Row by row, pipelined: for columns whose values are lists, tuples and the like, which an array of them would flatten
  or take for something else, as long as the batch is small (or COPY has no binary form for the type).
"""

# ruff: noqa: S608 - the text is of quoted names and SQLAlchemy's own SQL; values are parameters, or escaped by the driver

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from deimos_async.database.upserts.driver import DriverConnection
from deimos_async.database.upserts.shapes import Field, Shape, driver_type

__all__ = ["PostgresqlStatements", "PostgresqlWriter"]

_SCALARS = (
    types.Boolean, types.Date, types.DateTime, types.Float, types.Integer, types.Interval, types.JSON,
    types.LargeBinary, types.Numeric, types.String, types.Time, types.Uuid, postgresql.INTERVAL,
)  # fmt: skip
"""Types whose values are never lists or tuples, and which asyncpg sends in binary form."""


@dataclass(frozen=True, slots=True)
class PostgresqlStatements:
    """The statements of one shape.

    Attributes:
        unnest: Takes arrays; None where a column's values cannot be elements of one.
        single: Takes one row, and returns a row if it was written.
        staging: Name of the temporary table; None where a column has no binary form.
        create: Makes it.
        merge: Takes it from there.
        columns: The temporary table's columns.
    """

    unnest: str | None
    single: str
    staging: str | None
    create: str
    merge: str
    columns: tuple[str, ...]


class PostgresqlWriter:
    """Upserts and deletes on asyncpg's connection."""

    def __init__(self, dialect: Dialect, *, copy_from: int | None) -> None:
        self._dialect = dialect
        self._copy_from = copy_from
        self._may_stage: bool | None = None

    def prepare(self, shape: Shape) -> PostgresqlStatements:
        """The statements of a shape."""
        dialect, fields = self._dialect, shape.fields
        casts = [_transfer(field.column.type, dialect) for field in fields]
        columns = tuple(f"c{number}" for number in range(len(fields)))
        fixed = [sql for _, sql in shape.expressions]
        selected = ", ".join([field.sql(f"given.{name}") for field, name in zip(fields, columns, strict=True)] + fixed)
        single = ", ".join([field.sql(f"${n}::{cast}") for n, (field, cast) in _numbered(fields, casts)] + fixed)
        overriding = " OVERRIDING SYSTEM VALUE" if shape.overrides_identity else ""
        insert = f"INSERT INTO {shape.table} AS stored ({', '.join(shape.inserted)}){overriding}"
        arrays = ", ".join(f"${n}::{cast}[]" for n, (_, cast) in _numbered(fields, casts))
        kinds = [driver_type(field.column.type, dialect) for field in fields]
        definition = ", ".join(f"{name} {cast}" for name, cast in zip(columns, casts, strict=True))
        # Named after its columns: asyncpg keeps what it knows of a statement by the statement's text.
        staging = "deimos_" + hashlib.blake2s(f"{shape.table} {definition}".encode(), digest_size=12).hexdigest()
        return PostgresqlStatements(
            unnest=f"{insert} SELECT {selected} FROM unnest({arrays}) AS given ({', '.join(columns)})"
            f"{self._on_conflict(shape, len(fields))}"
            if all(isinstance(kind, _SCALARS) for kind in kinds)
            else None,
            single=f"{insert} VALUES ({single}){self._on_conflict(shape, len(fields))} RETURNING 1",
            staging=staging if all(_has_binary_form(kind) for kind in kinds) else None,
            # A second write of the transaction finds the first one's.
            create=f"DROP TABLE IF EXISTS pg_temp.{staging};"
            f" CREATE TEMPORARY TABLE {staging} ({definition}) ON COMMIT DROP",
            # A scan of a temporary table returns rows as they were copied: in order of keys.
            merge=f"{insert} SELECT {selected} FROM pg_temp.{staging} AS given{self._on_conflict(shape, 0)}",
            columns=columns,
        )

    def _on_conflict(self, shape: Shape, parameters: int) -> str:
        """The clause; values of `shape.updates` are the parameters after the first `parameters` ones."""
        if not shape.keys:
            return ""
        target = f" ON CONFLICT ({', '.join(shape.keys)}) DO"
        if not shape.overwrites:
            return f"{target} NOTHING"
        changes = [f"{name} = excluded.{name}" for name in shape.overwritten]
        for number, field in enumerate(shape.updates, parameters + 1):
            value = f"${number}::{_transfer(field.column.type, self._dialect)}"
            changes.append(f"{field.name} = {field.sql(value)}")
        changes += [f"{name} = {sql}" for name, sql in shape.update_expressions]
        update = f"{target} UPDATE SET {', '.join(changes)}"
        if shape.version is None:
            return update
        return f"{update} WHERE stored.{shape.version} IS NULL OR stored.{shape.version} <= excluded.{shape.version}"

    async def write(
        self,
        link: DriverConnection,
        statements: PostgresqlStatements,
        shape: Shape,
        columns: Sequence[list[Any]],
        count: int,
    ) -> int:
        """Write `count` rows, given as columns; returns how many were refused as older than what is there."""
        extra = shape.update_values()
        if await self._stages(link, statements, count):
            affected = await self._copy_and_merge(link, statements, columns, extra)
        elif statements.unnest is not None:
            async with link.translating(statements.unnest):
                affected = _affected(await link.driver.execute(statements.unnest, *columns, *extra))
        else:
            rows = zip(*columns, *(repeat(value, count) for value in extra), strict=True)
            async with link.translating(statements.single):
                affected = len(await link.driver.fetchmany(statements.single, rows))
        return count - affected if shape.version is not None else 0

    async def _stages(self, link: DriverConnection, statements: PostgresqlStatements, count: int) -> bool:
        if self._copy_from is None or count < self._copy_from or statements.staging is None:
            return False
        if self._may_stage is None:
            query = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
            self._may_stage = bool((await link.connection.exec_driver_sql(query)).scalar_one())
        return self._may_stage

    async def _copy_and_merge(
        self,
        link: DriverConnection,
        statements: PostgresqlStatements,
        columns: Sequence[list[Any]],
        extra: Sequence[Any],
    ) -> int:
        async with link.translating(statements.create):
            await link.driver.execute(statements.create)
        async with link.translating(f"COPY pg_temp.{statements.staging}"):
            await link.driver.copy_records_to_table(
                statements.staging,
                schema_name="pg_temp",
                columns=statements.columns,
                records=zip(*columns, strict=True),
            )
        async with link.translating(statements.merge):
            return _affected(await link.driver.execute(statements.merge, *extra))

    async def delete(
        self, link: DriverConnection, table: str, fields: Sequence[Field], keys: Sequence[tuple[Any, ...]]
    ) -> int:
        """Delete rows by key; returns how many there were. One after the other: so they are locked in order."""
        # Two of type text compare by other rules than two of type citext.
        casts = [
            "CITEXT"
            if isinstance(driver_type(field.column.type, self._dialect), postgresql.CITEXT)
            else _transfer(field.column.type, self._dialect)
            for field in fields
        ]
        condition = " AND ".join(
            f"{field.name} = {field.sql(f'${n}::{cast}')}" for n, (field, cast) in _numbered(fields, casts)
        )
        statement = f"DELETE FROM {table} WHERE {condition} RETURNING 1"
        async with link.translating(statement):
            return len(await link.driver.fetchmany(statement, keys))


def _numbered(fields: Sequence[Field], casts: Sequence[str]) -> list[tuple[int, tuple[Field, str]]]:
    return list(enumerate(zip(fields, casts, strict=True), 1))


def _transfer(type_: TypeEngine[Any], dialect: Dialect) -> str:
    """SQL of the type in which values travel.

    Without lengths and precisions: a cast to `varchar(10)` cuts a longer text silently, where an assignment to such a
    column refuses it.
    """
    kind = driver_type(type_, dialect)
    if isinstance(kind, types.ARRAY):
        return f"{_transfer(kind.item_type, dialect)}[]"
    if isinstance(kind, types.String) and not isinstance(kind, postgresql.ENUM):
        return "BPCHAR" if isinstance(kind, types.CHAR) else "TEXT"
    if isinstance(kind, postgresql.BIT):
        return "BIT VARYING"
    if isinstance(kind, types.Numeric) and not isinstance(kind, types.Float):
        return "NUMERIC"
    return kind.compile(dialect=dialect)


def _has_binary_form(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind.item_type if isinstance(kind, types.ARRAY) else kind, _SCALARS)


def _affected(status: str) -> int:
    """Rows that a command wrote, from its tag (`INSERT 0 5`)."""
    return int(status.rpartition(" ")[2])

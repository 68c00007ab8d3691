"""SQLite through aiosqlite: one prepared statement, run for each row within one call to the driver's thread."""

# ruff: noqa: S608 - the text is of quoted names and SQLAlchemy's own SQL; values are parameters, or escaped by the driver

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from deimos_async.database.upserts.driver import DriverConnection
from deimos_async.database.upserts.shapes import Field, Shape

__all__ = ["SqliteWriter"]


class SqliteWriter:
    """`INSERT ... ON CONFLICT DO UPDATE` and `DELETE` by `executemany`."""

    def prepare(self, shape: Shape) -> str:
        """The statement of a shape."""
        values = [field.sql("?") for field in shape.fields] + [sql for _, sql in shape.expressions]
        statement = f"INSERT INTO {shape.table} AS stored ({', '.join(shape.inserted)}) VALUES ({', '.join(values)})"
        if not shape.keys:
            return statement
        target = f"{statement} ON CONFLICT ({', '.join(shape.keys)}) DO"
        if not shape.overwrites:
            return f"{target} NOTHING"
        changes = [f"{name} = excluded.{name}" for name in shape.overwritten]
        changes += [f"{field.name} = {field.sql('?')}" for field in shape.updates]
        changes += [f"{name} = {sql}" for name, sql in shape.update_expressions]
        update = f"{target} UPDATE SET {', '.join(changes)}"
        if shape.version is None:
            return update
        return f"{update} WHERE stored.{shape.version} IS NULL OR stored.{shape.version} <= excluded.{shape.version}"

    async def write(
        self, link: DriverConnection, statement: str, shape: Shape, columns: Sequence[list[Any]], count: int
    ) -> int:
        """Write `count` rows, given as columns; returns how many were refused as older than what is there."""
        extra = [repeat(value, count) for value in shape.update_values()]
        affected = await self._run(link, statement, list(zip(*columns, *extra, strict=True)))
        return count - affected if shape.version is not None else 0

    async def delete(
        self, link: DriverConnection, table: str, fields: Sequence[Field], keys: Sequence[tuple[Any, ...]]
    ) -> int:
        """Delete rows by key; returns how many there were."""
        condition = " AND ".join(f"{field.name} = {field.sql('?')}" for field in fields)
        return await self._run(link, f"DELETE FROM {table} WHERE {condition}", keys)

    async def _run(self, link: DriverConnection, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        async with link.translating(statement):
            cursor = await link.driver.executemany(statement, rows)
            try:
                return int(cursor.rowcount)
            finally:
                await cursor.close()

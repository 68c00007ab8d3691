"""What is asked of a plan, and whether the table can give it. Pure: no connection is needed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Index, PrimaryKeyConstraint, Table, UniqueConstraint, types
from sqlalchemy.engine import Dialect

from deimos_async.database.upserts.driver import DRIVERS, unsupported
from deimos_async.database.upserts.shapes import driver_type

__all__ = ["UpsertOptions", "has_default", "problems", "unique_sets"]


@dataclass(frozen=True, slots=True)
class UpsertOptions:
    """As `upsert_plan` takes them; all columns by their keys in `table.columns`."""

    table: Table
    key_columns: tuple[str, ...]
    columns: frozenset[str] | None
    insert_only: frozenset[str]
    version_column: str | None
    deleted_column: str | None
    tombstone_values: Mapping[str, Any]


def has_default(column: Column[Any]) -> bool:
    """Whether a row that does not give the column gets a value other than NULL."""
    return (
        column.default is not None
        or column.server_default is not None
        or column.identity is not None
        or column.table.autoincrement_column is column
    )


def problems(plan: UpsertOptions, dialect: Dialect) -> Iterator[str]:
    """Every mistake in what was asked for, one sentence each."""
    table, columns = plan.table, plan.table.columns
    if (dialect.name, dialect.driver) not in DRIVERS:
        yield unsupported(dialect.name, dialect.driver)
    uses: dict[str, Collection[str]] = {
        "key_columns": plan.key_columns,
        "columns": plan.columns or (),
        "insert_only": plan.insert_only,
        "version_column": () if plan.version_column is None else (plan.version_column,),
        "deleted_column": () if plan.deleted_column is None else (plan.deleted_column,),
        "tombstone_values": plan.tombstone_values,
    }
    unknown = {f"{option} names {name!r}" for option, names in uses.items() for name in names if name not in columns}
    if unknown:
        yield from (f"{what}, and there is no such column" for what in sorted(unknown))
        return
    for option, names in uses.items():
        for name in sorted(names):
            if columns[name].computed is not None:
                yield f"{option} names {name!r}, which the database computes"
    own = {*plan.key_columns, *plan.insert_only}
    if plan.key_columns and frozenset(plan.key_columns) not in unique_sets(table):
        yield (
            f"no unique index is declared on {', '.join(plan.key_columns)}: without one, rows of the same key would be "
            "stored twice; add a UniqueConstraint or a unique Index on just these columns"
        )
    for name in plan.key_columns:
        if isinstance(driver_type(columns[name].type, dialect), types.ARRAY | types.JSON):
            yield f"key_columns names {name!r}, whose values cannot be compared"
    if plan.version_column is not None and not plan.key_columns:
        yield "version_column needs key_columns"
    if plan.version_column in own:
        yield f"version_column {plan.version_column!r} cannot be part of the key or of insert_only"
    if plan.deleted_column is None:
        if plan.tombstone_values:
            yield "tombstone_values needs deleted_column"
        return
    if plan.version_column is None:
        yield "deleted_column needs version_column"
    if plan.deleted_column in own or plan.deleted_column == plan.version_column:
        yield f"deleted_column {plan.deleted_column!r} cannot be part of the key or of insert_only, or the version"
    column = columns[plan.deleted_column]
    if not column.nullable and not isinstance(driver_type(column.type, dialect), types.Boolean):
        yield f"deleted_column {plan.deleted_column!r} must be a boolean, or NULL while the row is not deleted"


def unique_sets(table: Table) -> set[frozenset[str]]:
    """Sets of columns, by key, of which no two rows can have the same values."""
    found = [
        constraint.columns
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint)
    ]
    found += [index.columns for index in table.indexes if index.unique and _is_plain(index)]
    return {frozenset(column.key for column in columns) for columns in found}


def _is_plain(index: Index) -> bool:
    """Whether it holds all rows, by their columns as they are."""
    partial = any(index.dialect_options[dialect].get("where") is not None for dialect in ("postgresql", "sqlite"))
    return not partial and all(isinstance(expression, Column) for expression in index.expressions)

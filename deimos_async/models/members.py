"""Models whose rows one consumer writes: its own, and those that relationships lead to."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from deimos_async.database.upserts import UpsertPlan, upsert_plan
from deimos_async.database.upserts.driver import DRIVERS
from deimos_async.database.upserts.options import has_default, unique_sets
from deimos_async.database.upserts.shapes import made_here
from deimos_async.errors import ConfigurationError
from deimos_async.models.mapping import CREATED_AT, ModelTable, Row

__all__ = ["ImportIds", "Member", "Plan", "random_import_id", "write_rows"]

Plan = Callable[[tuple[str, ...], bool, tuple[str, ...]], UpsertPlan]
"""From key columns, whether rows say when they were created, and the foreign key that is filled in."""


def random_import_id() -> str:
    """A random UUID (version 4) as text."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class ImportIds:
    """Values that say by which write a row was stored last.

    Attributes:
        name: Of the column; tables may lack it. None: they are not used.
        generate: Makes a new one.
    """

    name: str | None
    generate: Callable[[], Any]

    def column(self, table: ModelTable) -> str | None:
        """Key of the column in a table; None: it has none."""
        return None if self.name is None else table.names.get(self.name)

    def differ(self) -> bool:
        """Whether they tell writes apart: a generator may always give the same."""
        return bool(self.generate() != self.generate())


async def write_rows(
    connection: AsyncConnection,
    table: ModelTable,
    plan: Callable[[bool], UpsertPlan],
    rows: Sequence[Row],
    now: Mapping[str, datetime],
) -> int:
    """Write stamped rows; returns how many were refused as older than what is there.

    Args:
        plan: The one to take, by whether rows say when they were created.
        now: What `created_at` is in rows that do not.
    """
    if not table.timestamps_from_payload or CREATED_AT not in table.managed:
        return (await plan(False).write(connection, rows)).stale
    made_now = now[CREATED_AT]
    stale = 0
    for mirrors_creation in (True, False):
        part = [row for row in rows if (row[CREATED_AT] is not made_now) is mirrors_creation]
        stale += (await plan(mirrors_creation).write(connection, part)).stale
    return stale


class Member:
    """One of the models.

    A stored row is found by the key columns that the consumer says for the model. If it says none: by the primary key
    where a row has it; else, where the primary key is made by the database or by a default, by the one unique index
    that has the foreign key's columns, or by the only one that there is; else it is not found, and stored anew.

    Args:
        key_columns, columns: What the consumer's hooks say; None: nothing.
        import_column: Key of the column for import ids; None: the table has none.
        plan: How rows are written; None: by plans made here.
    """

    def __init__(
        self,
        table: ModelTable,
        dialect: Dialect,
        *,
        key_columns: tuple[str, ...] | None = None,
        columns: tuple[str, ...] | None = None,
        import_column: str | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.table = table
        self.import_column = import_column
        self.primary_key: tuple[str, ...] = tuple(column.key for column in table.table.primary_key.columns)
        self._dialect = dialect
        self._key_columns = key_columns
        for names in unique_sets(table.table) if key_columns is None else (key_columns,):
            table.keep_whole(names)
        self._columns = columns
        self._plan = plan or self._own_plan
        self._plans: dict[tuple[tuple[str, ...], bool, tuple[str, ...]], UpsertPlan] = {}
        self._other_keys: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._makers = {
            name: make
            for name in self.primary_key
            if (make := made_here(table.table.columns[name].default)) is not None
        }

    def columns_of(self, record: Mapping[str, Any]) -> Row:
        """A copy of a row without what lies in it under names of relationships."""
        return {name: value for name, value in record.items() if name not in self.table.relations}

    # --- keys --------------------------------------------------------------------------------------------------

    def key_of(self, row: Mapping[str, Any], foreign_key: tuple[str, ...]) -> tuple[str, ...]:
        """Columns by which the row's stored one is found; the row may lack values of them.

        Raises:
            ConfigurationError: Several unique indexes could be meant.
        """
        if self._key_columns is not None:
            return self._key_columns
        if self.primary_key and None not in [row.get(name) for name in self.primary_key]:
            return self.primary_key
        return self._other_key(foreign_key)

    def has_key(self, row: Mapping[str, Any], foreign_key: tuple[str, ...]) -> bool:
        """Whether the row says which stored row it is."""
        key = self.key_of(row, foreign_key)
        return bool(key) and None not in [row.get(name) for name in key]

    def complete(self, rows: Sequence[Row], foreign_key: tuple[str, ...]) -> None:
        """Give new rows the primary key that its columns' defaults make here, so that it is known without reading."""
        if not self._makers:
            return
        for row in rows:
            key = self.key_of(row, foreign_key)
            for name, make in self._makers.items():
                if name in key and row.get(name) is None:
                    row[name] = make(row)

    def _other_key(self, foreign_key: tuple[str, ...]) -> tuple[str, ...]:
        found = self._other_keys.get(foreign_key)
        if found is None:
            found = self._other_keys[foreign_key] = self._choose_key(foreign_key)
        return found

    def _choose_key(self, foreign_key: tuple[str, ...]) -> tuple[str, ...]:
        table = self.table.table
        if not any(has_default(table.columns[name]) for name in self.primary_key):
            return self.primary_key
        others = [
            names
            for names in unique_sets(table)
            if names != frozenset(self.primary_key) and self.import_column not in names
        ]
        candidates = [names for names in others if foreign_key and names.issuperset(foreign_key)] or others
        if len(candidates) > 1:
            told = "; ".join(sorted(", ".join(sorted(names)) for names in candidates))
            raise ConfigurationError(
                f"table {table.fullname!r}: rows of {self.table.model.__name__} could be found by any of several "
                f"unique indexes ({told}); say by which in key_columns(self, model)"
            )
        chosen: Collection[str] = candidates[0] if candidates else self.primary_key
        return tuple(column.key for column in table.columns if column.key in chosen)

    # --- writing -----------------------------------------------------------------------------------------------

    async def write(
        self,
        connection: AsyncConnection,
        rows: Sequence[Row],
        now: Mapping[str, datetime],
        foreign_key: tuple[str, ...],
    ) -> int:
        """Write stamped rows; returns how many were refused as older than what is there.

        Args:
            foreign_key: Columns that were filled in from the rows above these.
        """
        by_key: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            by_key.setdefault(self.key_of(row, foreign_key), []).append(row)
        stale = 0
        # Always in the same order, so that writers wait for each other instead of deadlocking.
        for key, part in sorted(by_key.items(), key=lambda item: item[0]):

            def plan(mirrors_creation: bool, key: tuple[str, ...] = key) -> UpsertPlan:
                return self._plan(key, mirrors_creation, foreign_key)

            stale += await write_rows(connection, self.table, plan, part, now)
        return stale

    def check(self) -> None:
        """Raise ConfigurationError for key columns that cannot be used as such."""
        if self._key_columns is not None and (self._dialect.name, self._dialect.driver) in DRIVERS:
            self._own_plan(self._key_columns, False, ())

    def _own_plan(self, key: tuple[str, ...], mirrors_creation: bool, foreign_key: tuple[str, ...]) -> UpsertPlan:
        wanted = (key, mirrors_creation, foreign_key)
        found = self._plans.get(wanted)
        if found is None:
            found = self._plans[wanted] = self._make_plan(*wanted)
        return found

    def _make_plan(self, key: tuple[str, ...], mirrors_creation: bool, foreign_key: tuple[str, ...]) -> UpsertPlan:
        table = self.table
        keeps_creation = CREATED_AT in table.managed and not mirrors_creation
        own = () if self.import_column is None else (self.import_column,)
        return upsert_plan(
            table.table,
            key,
            None if self._columns is None else {*self._columns, *table.managed, *own, *foreign_key},
            dialect=self._dialect,
            insert_only=(CREATED_AT,) if keeps_creation and CREATED_AT not in key else (),
        )

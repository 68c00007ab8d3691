"""What a poller reads of its table, as conditions and columns for a select of the model, and how it marks rows.

A row's time goes through Python only as the driver gives it, to the microsecond. SQLite has no times, only what was
written: `CURRENT_TIMESTAMP` without digits, SQLAlchemy with six. Texts of both kinds are in order, but a value that was
read as a time and is written back is another text. So there the text itself is the cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    Select,
    String,
    Table,
    TypeDecorator,
    and_,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapper

__all__ = ["PolledTable", "is_time"]

_MOST_MARKED = 500
"""Rows of one UPDATE."""


def is_time(column: Column[Any]) -> bool:
    """Whether a column holds dates with times."""
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    return isinstance(kind, DateTime)


class PolledTable:
    """The table of a model, for one poller.

    Args:
        time: Attribute of the timestamp.
        key: Attributes of the primary key, in its order.
    """

    def __init__(self, mapper: Mapper[Any], dialect: Dialect, *, time: str, key: Sequence[str]) -> None:
        table = mapper.local_table
        assert isinstance(table, Table)  # checked at start
        self.table = table
        self.model = mapper.class_
        self._dialect = dialect.name
        self._time_column: Column[Any] = mapper.column_attrs[time].columns[0]  # type: ignore[assignment]
        self._key_columns = [mapper.column_attrs[name].columns[0] for name in key]
        kind = self._time_column.type
        # Past a decorator, which may insist on times of its own kind.
        self._kind = kind.impl_instance if isinstance(kind, TypeDecorator) else kind
        self._is_aware = bool(getattr(self._kind, "timezone", False)) and dialect.name == "postgresql"
        self.time_name = self._time_column.name
        lock: Any = mapper.version_id_col
        self.version: ColumnElement[Any]
        if lock is not None:
            self.version = lock
        elif dialect.name == "postgresql":
            name = dialect.identifier_preparer.format_table(table)
            self.version = literal_column(f"{name}.xmin::text", String)
        else:
            self.version = self.time

    @property
    def time(self) -> ColumnElement[Any]:
        """The timestamp as it is compared: on SQLite as text."""
        return type_coerce(self._time_column, String() if self._dialect == "sqlite" else self._kind)

    def select(self) -> Select[Any]:
        """All rows of the model."""
        return select(self.model)

    def page(
        self,
        query: Select[Any],
        *,
        limit: int,
        attributes: Sequence[str] | None = None,
        version: bool = False,
        by_key: bool = False,
    ) -> Select[Any]:
        """The rows in order, at most so many; the last column is the time, or with `version` the version after it.

        Args:
            attributes: Those to be read instead of objects; None: objects.
            by_key: In the order of keys alone.
        """
        added = [self.time.label("polled_time")]
        if version:
            added.append(self.version.label("polled_version"))
        if attributes is not None:
            columns = [getattr(self.model, name) for name in attributes]
            query = query.with_only_columns(*columns, maintain_column_froms=True)
        order = self._key_columns if by_key else [self._time_column, *self._key_columns]
        ordered = query.add_columns(*added).order_by(None).order_by(*order)
        return ordered.limit(limit)

    def after(self, time: str, key: Sequence[Any] | None) -> ColumnElement[bool]:
        """Rows behind a position; without a key all rows of that time are, too."""
        at: Any = self._value(time)
        stamp: Any = self.time
        if key is None:
            found: ColumnElement[bool] = stamp >= at
            return found
        keys = [literal(value, column.type) for value, column in zip(key, self._key_columns, strict=True)]
        if self._dialect in ("mysql", "mariadb"):
            # They find no range in an index by comparing rows of values.
            return and_(stamp >= at, or_(stamp > at, _greater(self._key_columns, keys)))
        return tuple_(stamp, *self._key_columns) > tuple_(at, *keys)

    def beyond(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Rows whose primary keys are greater."""
        keys = [literal(value, column.type) for value, column in zip(key, self._key_columns, strict=True)]
        if self._dialect in ("mysql", "mariadb"):
            return and_(self._key_columns[0] >= keys[0], _greater(self._key_columns, keys))
        return tuple_(*self._key_columns) > tuple_(*keys)

    def up_to(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Rows whose primary keys are not greater."""
        return not_(self.beyond(key))

    def key_after(self, key: Sequence[Any] | None, rows: int) -> Select[Any]:
        """The primary key so many rows behind another one; none where the table ends before."""
        query = select(*self._key_columns).order_by(*self._key_columns).offset(rows - 1).limit(1)
        return query if key is None else query.where(self.beyond(key))

    def before(self, end: datetime) -> ColumnElement[bool]:
        """Rows whose time is before a moment, aware."""
        at = self.value(end)
        if self._dialect == "sqlite":
            # Whole seconds: whatever digits a row has in the text, it is not before its own second.
            at = literal(end.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"), String)
        found: ColumnElement[bool] = self.time < at
        return found

    def having(self, keys: Sequence[Sequence[Any]]) -> ColumnElement[bool]:
        """Rows with these primary keys."""
        if len(self._key_columns) == 1:
            return self._key_columns[0].in_([key[0] for key in keys])
        return tuple_(*self._key_columns).in_([tuple(key) for key in keys])

    def text(self, time: Any) -> str:
        """The text of a time that a page has given."""
        return time if isinstance(time, str) else time.isoformat(" ")

    def value(self, time: datetime) -> Any:
        """An aware time as the column takes it: naive ones are in UTC."""
        found = time.astimezone(UTC) if self._is_aware else time.astimezone(UTC).replace(tzinfo=None)
        return literal(found, self._kind)

    def _value(self, text: str) -> Any:
        if self._dialect == "sqlite":
            return literal(text, String)
        found = datetime.fromisoformat(text)
        return self.value(found.replace(tzinfo=UTC) if found.tzinfo is None else found)

    async def mark(self, engine: AsyncEngine, rows: Sequence[tuple[Sequence[Any], Any]], values: dict[str, Any]) -> int:
        """Set columns of rows that are still as they were read; no hooks, no events. Returns how many were.

        Args:
            rows: Primary key and version of each.
            values: By the columns' keys.
        """
        marked = 0
        async with engine.begin() as connection:
            for first in range(0, len(rows), _MOST_MARKED):
                some = rows[first : first + _MOST_MARKED]
                same = tuple_(*self._key_columns, self.version).in_([(*key, version) for key, version in some])
                # The keys alone as well: by them rows are found in the index.
                statement = update(self.table).where(self.having([key for key, _ in some]), same).values(values)
                marked += (await connection.execute(statement)).rowcount
        return marked

    def unfinished(self, column: Column[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Rows whose state is none of these."""
        return or_(column.is_(None), column.not_in(list(values)))

    def any_of(self, query: Select[Any]) -> Select[Any]:
        """1 if a query has rows, else 0."""
        return select(func.count()).select_from(query.with_only_columns(*self._key_columns).limit(1).subquery())


def _greater(columns: Sequence[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """(a, b) > (x, y) written out."""
    found: ColumnElement[bool] = columns[-1] > values[-1]
    for column, value in reversed(list(zip(columns[:-1], values[:-1], strict=True))):
        found = or_(column > value, and_(column == value, found))
    return found

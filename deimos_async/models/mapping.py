"""A model's table as a consumer sees it: names, keys, and rows with values that the columns take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Delete, Table, delete, inspect, tuple_, types
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper

from deimos_async.models.relations import relations_of
from deimos_async.models.values import REFUSALS, Conversion, EpochUnit, conversion, unfit
from deimos_async.schemas.coercion import as_mapping

__all__ = ["CREATED_AT", "UPDATED_AT", "ModelTable", "Row", "mapped"]

Row = dict[str, Any]
Refuse = Callable[[int, Exception], None]
"""Told the position of a row that cannot be written, and why."""

CREATED_AT, UPDATED_AT = "created_at", "updated_at"

_SINGLE = frozenset({int, str, bytes})

_MOST_SHAPES = 256
"""Sets of names that are remembered. A topic has a few; payloads of free form must not fill memory."""


def mapped(model: Any) -> Mapper[Any] | None:
    """The mapper of a class that SQLAlchemy maps; None for anything else."""
    found = inspect(model, raiseerr=False) if isinstance(model, type) else None
    return found if isinstance(found, Mapper) else None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What rows that have the same names need.

    Attributes:
        dropped: Names of columns that have a later name in the row; empty for most models.
        renamed: Names that are not those of columns' keys, with the keys; empty for most models.
        conversions: Columns whose values may have to be converted.
        problem: Why such rows cannot be written; None: they can.
    """

    dropped: Sequence[str]
    renamed: Mapping[str, str]
    conversions: Sequence[tuple[str, Conversion]]
    problem: str | None


class ModelTable:
    """The table of a mapped class, for one consumer and database.

    Columns are named by their keys in `table.columns`; hooks may name them by the model's attributes as well.

    Attributes:
        key_columns: Columns by which rows are found.
        managed: Those of `created_at` and `updated_at` that the consumer sets itself.
        relations: Relationships under whose names rows of other tables may lie.
        unusable: Other relationships, and why they cannot be used so.
    """

    def __init__(
        self,
        mapper: Mapper[Any],
        dialect: Dialect,
        *,
        epoch_unit: EpochUnit,
        truncate: bool,
        timestamps_from_payload: bool,
    ) -> None:
        table = mapper.local_table
        assert isinstance(table, Table)  # checked at start
        self.table = table
        self.mapper = mapper
        self.model = mapper.class_
        attributes = {
            attribute.key: attribute.columns[0].key
            for attribute in mapper.column_attrs
            if attribute.columns[0].key in table.columns and attribute.columns[0].table is table
        }
        self.names: dict[str, str] = {**{column.key: column.key for column in table.columns}, **attributes}
        """Every name of a column, with the column's key."""
        self.attributes = {key: attribute for attribute, key in attributes.items()}
        self.key_columns: tuple[str, ...] = tuple(column.key for column in table.primary_key.columns)
        self.managed = frozenset(
            name
            for name in (CREATED_AT, UPDATED_AT)
            if name in table.columns and isinstance(table.columns[name].type.dialect_impl(dialect), types.DateTime)
        )
        self._zoned = frozenset(name for name in self.managed if getattr(self.column(name).type, "timezone", False))
        self.timestamps_from_payload = timestamps_from_payload
        self.relations, self.unusable = relations_of(mapper)
        self.constants: Row = {}
        """What every row has: the class's own name, where one table has several classes."""
        if mapper.polymorphic_on is not None and mapper.polymorphic_on.key in table.columns:
            self.constants[mapper.polymorphic_on.key] = mapper.polymorphic_identity
        self._conversions = {
            column.key: found
            for column in table.columns
            if (found := conversion(column.type, dialect, epoch_unit=epoch_unit, truncate=truncate)) is not None
        }
        self._uncut: dict[str, Conversion] = {}
        if truncate:
            for column in table.columns:
                found = conversion(column.type, dialect, epoch_unit=epoch_unit)
                if found is not None:
                    self._uncut[column.key] = found
            self.keep_whole(column.key for column in table.columns if column.primary_key or column.foreign_keys)
        self._picks: dict[tuple[Any, ...], tuple[str, ...] | None] = {}
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._key_field: str | None = None

    def identify(self, key_columns: Sequence[str], *, key_field: str | None, others: Collection[str | None]) -> None:
        """Say what the columns are for.

        Args:
            key_columns: Keys of the columns by which rows are found.
            key_field: The field that a message's key is the value of; None: it has no name.
            others: Columns with a use of their own, which are not managed whatever they are called.
        """
        self.key_columns = tuple(key_columns)
        self.keep_whole(key_columns)
        self._key_field = None if key_field is None else self.names.get(key_field)
        self.managed -= {*key_columns, *others}

    def keep_whole(self, names: Iterable[str]) -> None:
        """Never cut texts of these columns, by which rows are found: of two long keys each would be the other's row."""
        for name in names:
            if name in self._uncut:
                self._conversions[name] = self._uncut[name]

    def column(self, name: str) -> Column[Any]:
        """The column of that key."""
        found: Column[Any] = self.table.columns[name]
        return found

    # --- from messages to values -------------------------------------------------------------------------------

    def pick(self, payload: Any) -> Mapping[str, Any]:
        """The payload's fields that are columns: by names of attributes or columns, values as they are.

        Columns that the database computes are left out, and so are `created_at` and `updated_at` unless they are
        taken from payloads. May return the payload itself.

        Raises:
            TypeError: The payload has no fields.
        """
        fields = payload if type(payload) is dict else as_mapping(payload)
        if fields is None:
            raise TypeError(
                f"a payload of type {type(payload).__name__} has no fields to take columns from; "
                "override record_attributes"
            )
        names = tuple(fields)
        try:
            chosen = self._picks[names]
        except KeyError:
            chosen = self._choose(names)
        return fields if chosen is None else {name: fields[name] for name in chosen}

    def _choose(self, names: tuple[Any, ...]) -> tuple[str, ...] | None:
        left_out = frozenset() if self.timestamps_from_payload else self.managed
        chosen = tuple(
            name
            for name in names
            if name in self.names
            and self.names[name] not in left_out
            and self.column(self.names[name]).computed is None
        )
        if len(self._picks) >= _MOST_SHAPES:
            self._picks.clear()
        found = self._picks[names] = None if chosen == names else chosen
        return found

    def key_values(self, key: Any) -> Mapping[str, Any]:
        """A message's key as columns.

        Fields of a mapping go to the columns of their names. A single value, and that of a mapping whose one field is
        no column, is the value of the topic's key field if the table has that column, else of the only key column.
        """
        fields = None if type(key) in _SINGLE else as_mapping(key)
        if fields is not None:
            named = {name: value for name, value in fields.items() if name in self.names}
            if named or len(fields) != 1:
                return named
            key = next(iter(fields.values()))
        if self._key_field is not None:
            return {self._key_field: key}
        return {self.key_columns[0]: key} if len(self.key_columns) == 1 else {}

    # --- rows --------------------------------------------------------------------------------------------------

    def fit(self, rows: Sequence[Row], refuse: Refuse) -> None:
        """Make rows what the table takes, in place: keys of columns, converted values.

        Args:
            rows: By names of attributes or columns; of two names of a column the last one counts.
            refuse: Told of each row that cannot be, which is then to be left out; a row may be told twice.
        """
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, names in enumerate(map(tuple, rows)):
            group = groups.get(names)
            if group is None:
                groups[names] = [index]
            else:
                group.append(index)
        for names, indexes in groups.items():
            shape = self._shape(names)
            if shape.problem is not None:
                for index in indexes:
                    refuse(index, ValueError(shape.problem))
                continue
            group_rows = rows if len(groups) == 1 else [rows[index] for index in indexes]
            for name in shape.dropped:
                for row in group_rows:
                    del row[name]
            for name, key in shape.renamed.items():
                for row in group_rows:
                    row[key] = row.pop(name)
            for key, rule in shape.conversions:
                values = [row[key] for row in group_rows]
                if not rule.passes.issuperset(map(type, values)):
                    self._convert(key, rule, values, group_rows, indexes, refuse)

    def _convert(
        self,
        key: str,
        rule: Conversion,
        values: Sequence[Any],
        rows: Sequence[Row],
        indexes: Sequence[int],
        refuse: Refuse,
    ) -> None:
        passes, convert = rule.passes, rule.convert
        for value, row, index in zip(values, rows, indexes, strict=True):
            if type(value) in passes:
                continue
            try:
                row[key] = convert(value)
            except REFUSALS as error:
                refused = unfit(self.column(key), value)
                refused.__cause__ = error
                refuse(index, refused)

    def fit_one(self, row: Mapping[str, Any] | None) -> Row:
        """A new row, as `fit` makes it; None is one without columns. Raises ValueError if it cannot be written."""
        found = {} if row is None else dict(row)

        def refuse(index: int, error: Exception) -> None:
            raise error

        self.fit([found], refuse)
        return found

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        found = self._shapes.get(names)
        if found is None:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            found = self._shapes[names] = self._make_shape(names)
        return found

    def _make_shape(self, names: tuple[str, ...]) -> _Shape:
        problem = self.problem(names)
        if problem is not None:
            return _Shape((), {}, (), problem)
        of_columns = [name for name in names if name in self.names]
        chosen = {self.names[name]: name for name in of_columns}
        return _Shape(
            tuple(name for name in of_columns if chosen[self.names[name]] != name),
            {name: key for key, name in chosen.items() if name != key},
            tuple((key, self._conversions[key]) for key in chosen if key in self._conversions),
            None,
        )

    def problem(self, names: Collection[str]) -> str | None:
        """Why a row cannot have these names; None: it can."""
        unknown = [name for name in names if name not in self.names and name not in self.relations]
        if not unknown:
            return None
        refused = [self.unusable[name] for name in unknown if name in self.unusable]
        if refused:
            return "; ".join(refused)
        return f"table {self.table.fullname!r} has no column {', '.join(map(repr, unknown))}"

    def without_key(self, row: Mapping[str, Any]) -> list[str]:
        """Key columns for which a row has no value."""
        return [name for name in self.key_columns if row.get(name) is None]

    def stamps(self, row: Mapping[str, Any], now: Mapping[str, datetime]) -> dict[str, datetime]:
        """What `created_at` and `updated_at` become in a row: `now` of each, or what the row says where that counts."""
        found = dict(now)
        if CREATED_AT in found and row.get(CREATED_AT) is not None:
            del found[CREATED_AT]
        if self.timestamps_from_payload and UPDATED_AT in found and row.get(UPDATED_AT) is not None:
            del found[UPDATED_AT]
        return found

    def now(self) -> dict[str, datetime]:
        """The time, for each managed column."""
        moment = datetime.now(UTC)
        return {name: moment if name in self._zoned else moment.replace(tzinfo=None) for name in self.managed}

    def split(self, values: Mapping[str, Any] | None) -> tuple[Row, dict[str, Any], dict[str, Any]]:
        """Values of an object: those of columns as a row that fits, those of other attributes of its class, and those
        under names of relationships as they are.

        Raises:
            ValueError: A value does not fit its column, or there is no such attribute.
        """
        columns: Row = {}
        others: dict[str, Any] = {}
        related: dict[str, Any] = {}
        for name, value in (values or {}).items():
            if name in self.names:
                columns[name] = value
            elif name in self.relations:
                related[name] = value
            elif name in self.unusable or not hasattr(self.model, name):
                raise ValueError(self.problem((name,)))
            else:
                others[name] = value
        return self.fit_one(columns), others, related

    def assign(self, record: Any, columns: Row, others: Mapping[str, Any]) -> None:
        """Set attributes of an object to what `split` gave."""
        for key, value in columns.items():
            setattr(record, self.attributes.get(key, key), value)
        for name, value in others.items():
            setattr(record, name, value)

    # --- statements --------------------------------------------------------------------------------------------

    def of_class(self) -> ColumnElement[bool] | None:
        """What is true of the rows of the model's class, where one table has several classes; None: of all."""
        mapper = self.mapper
        if not mapper.single or mapper.polymorphic_on is None:
            return None
        identities = [inner.polymorphic_identity for inner in mapper.self_and_descendants]
        return self.column(str(mapper.polymorphic_on.key)).in_(identities)

    def delete_statement(self, keys: Sequence[Mapping[str, Any]]) -> Delete:
        """Delete the rows of these keys; each has all key columns."""
        columns = [self.table.columns[name] for name in self.key_columns]
        if len(columns) == 1:
            return delete(self.table).where(columns[0].in_([key[columns[0].key] for key in keys]))
        values = [tuple(key[name] for name in self.key_columns) for key in keys]
        return delete(self.table).where(tuple_(*columns).in_(values))

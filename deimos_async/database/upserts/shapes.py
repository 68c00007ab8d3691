"""What a statement writes, for rows that speak of the same columns: which columns, where each value comes from, and
what becomes of a row that is there already.

SQLAlchemy's own rules apply: values go through the column type's bind processor, columns that are not given get the
column's `default` (or are left to the server), and on conflict its `onupdate`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Table, literal_column, types
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import StatementError
from sqlalchemy.types import TypeDecorator, TypeEngine

from deimos_async.database.upserts.rows import Row
from deimos_async.errors import ConfigurationError

__all__ = [
    "Field",
    "Shape",
    "driver_type",
    "field_of",
    "ignores_spelling",
    "made_here",
    "quoted",
    "shape_of",
    "table_name",
]

_TOKEN = "deimos_bound_value"  # noqa: S105


class Field:
    """A column whose values are sent.

    Attributes:
        column: The column.
        name: Its name, quoted.
        default: Makes the value from a row that does not give it, before `process`; None if rows give it.
        wrap: SQL around the value, as (before, after); both are empty for all but types with a `bind_expression`.
    """

    __slots__ = ("_process", "column", "default", "name", "wrap")

    def __init__(self, column: Column[Any], dialect: Dialect, default: Callable[[Row], Any] | None) -> None:
        self.column = column
        self.name = quoted(column, dialect)
        self.default = default
        implementation = column.type.dialect_impl(dialect)
        self._process = implementation.bind_processor(dialect)
        # The type applies its own SQL function to a value: render it around a name that is cut out again.
        expression = implementation.bind_expression(literal_column(_TOKEN, type_=column.type))  # type: ignore[arg-type]
        before, _, after = ("", "", "") if expression is None else _sql(expression, dialect).partition(_TOKEN)
        self.wrap = (before, after)

    def values(self, rows: Sequence[Row]) -> list[Any]:
        """The driver's values, one for each row.

        Raises:
            StatementError: The column's type refuses a value.
        """
        name = self.column.key
        if self.default is None:
            return self.processed([row[name] for row in rows])
        return self.processed(list(map(self.default, rows)))

    def processed(self, values: list[Any]) -> list[Any]:
        """As `values`, from the values themselves."""
        process = self._process
        if process is None:
            return values
        try:
            return [process(value) for value in values]
        except Exception as error:
            what = f"{self.column}: a value does not fit the column's type ({type(error).__name__})"
            raise StatementError(what, None, None, error, hide_parameters=True) from error

    def sql(self, value: str) -> str:
        """`value` (SQL that stands for it) with what its type puts around it."""
        before, after = self.wrap
        return f"{before}{value}{after}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Names are quoted, SQL is of the dialect, percent signs are single.

    Attributes:
        table: Full name of the table.
        fields: Columns whose values are sent.
        expressions: Columns that get SQL, with it.
        keys: Names of the key's columns, in its order; empty: no conflict is expected.
        overwritten: Names of the columns that a row which is there already gets from the new one, the version's too.
        updates: Columns that such a row gets besides, with a value of their own for the whole statement.
        update_expressions: Columns that it gets besides from SQL, with it.
        version: Name of the version's column; None: the new row always wins.
        overrides_identity: Whether values are sent for a column that is GENERATED ALWAYS AS IDENTITY.
    """

    table: str
    fields: tuple[Field, ...]
    expressions: tuple[tuple[str, str], ...]
    keys: tuple[str, ...]
    overwritten: tuple[str, ...]
    updates: tuple[Field, ...]
    update_expressions: tuple[tuple[str, str], ...]
    version: str | None
    overrides_identity: bool

    @property
    def inserted(self) -> list[str]:
        """Names of all columns that an INSERT names: the fields', then the expressions'."""
        return [field.name for field in self.fields] + [name for name, _ in self.expressions]

    def update_values(self) -> list[Any]:
        """The driver's values for `updates`, made anew: `onupdate` may tell the time."""
        return [field.values([{}])[0] for field in self.updates]

    @property
    def overwrites(self) -> bool:
        """Whether a row that is there already is changed at all."""
        return bool(self.overwritten)


def shape_of(
    table: Table,
    dialect: Dialect,
    given: Collection[str],
    *,
    keys: Sequence[str],
    overwritten: Collection[str | None],
    kept: Collection[str],
    version: str | None,
    emptied: Collection[str] = (),
) -> Shape:
    """The shape of rows that speak of the columns `given`.

    Args:
        given: Keys of columns that each row has.
        keys: Keys of the columns by which a row is found that is there already.
        overwritten: Keys of columns which such a row gets from the new one, if they are given.
        kept: Keys of columns which such a row keeps, whatever else is said; `onupdate` too.
        version: Key of the version's column.
        emptied: Keys of columns that become NULL in SQL (not in JSON), in a row that is there already as well.
    """
    fields: list[Field] = []
    expressions: list[tuple[str, str]] = []
    updates: list[Field] = []
    update_expressions: list[tuple[str, str]] = []
    own = {*keys, *kept}
    for column in table.columns:
        name = quoted(column, dialect)
        if column.key in given:
            fields.append(Field(column, dialect, None))
        elif column.key in emptied:
            expressions.append((name, "NULL"))
        else:
            _add_default(column, column.default, dialect, fields, expressions)
            if column.key not in own and keys:
                _add_default(column, column.onupdate, dialect, updates, update_expressions)
    changed = [
        quoted(column, dialect)
        for column in table.columns
        if column.key not in own
        and ((column.key in given and column.key in overwritten) or column.key in emptied or column.key == version)
        # PostgreSQL lets nobody change it in a stored row.
        and not (dialect.name == "postgresql" and _is_always_made(column))
    ]
    if not fields:
        raise ConfigurationError(f"table {table.fullname!r}: a row that speaks of no column cannot be written in bulk")
    return Shape(
        table=table_name(table, dialect),
        fields=tuple(fields),
        expressions=tuple(expressions),
        keys=tuple(quoted(table.columns[key], dialect) for key in keys),
        overwritten=tuple(changed) if keys else (),
        updates=tuple(updates) if changed else (),
        update_expressions=tuple(update_expressions) if changed else (),
        version=None if version is None else quoted(table.columns[version], dialect),
        overrides_identity=any(_is_always_made(field.column) for field in fields),
    )


def _is_always_made(column: Column[Any]) -> bool:
    return column.identity is not None and bool(column.identity.always)


def field_of(column: Column[Any], dialect: Dialect) -> Field:
    """A column whose values rows give."""
    return Field(column, dialect, None)


class _Context:
    """What a default that takes a context may ask of it."""

    def __init__(self, row: Row) -> None:
        self.current_parameters = row

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> Row:
        """The row, by keys of columns."""
        return self.current_parameters


def made_here(default: Any) -> Callable[[Row], Any] | None:
    """What makes the value of a column's `default` or `onupdate` from its row; None if there is none, or the database
    makes it.
    """
    if default is None:
        return None
    if default.is_scalar:
        value = default.arg
        return lambda row: value
    if default.is_callable:
        make = default.arg
        return lambda row: make(_Context(row))
    return None


def _add_default(
    column: Column[Any],
    default: Any,
    dialect: Dialect,
    fields: list[Field],
    expressions: list[tuple[str, str]],
) -> None:
    if default is None or column.computed is not None:
        return
    make = made_here(default)
    if make is not None:
        fields.append(Field(column, dialect, make))
    elif default.is_clause_element:
        expressions.append((quoted(column, dialect), f"({_sql(default.arg, dialect)})"))
    elif default.is_sequence and dialect.supports_sequences and not (default.optional and dialect.sequences_optional):
        expressions.append((quoted(column, dialect), _sql(default.next_value(), dialect)))


def _sql(expression: Any, dialect: Dialect) -> str:
    return _single_percents(str(expression.compile(dialect=dialect, compile_kwargs={"literal_binds": True})), dialect)


def quoted(column: Column[Any], dialect: Dialect) -> str:
    """The column's name as SQL."""
    return _single_percents(dialect.identifier_preparer.format_column(column), dialect)


def table_name(table: Table, dialect: Dialect) -> str:
    """The table's name as SQL, with its schema."""
    return _single_percents(dialect.identifier_preparer.format_table(table), dialect)


def _single_percents(sql: str, dialect: Dialect) -> str:
    # SQLAlchemy doubles them for drivers that put parameters in by `%`; ours get the text as it is.
    return sql.replace("%%", "%") if dialect.paramstyle in ("format", "pyformat") else sql


def driver_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The dialect's type under variants and decorators."""
    implementation = type_.dialect_impl(dialect)
    while isinstance(implementation, TypeDecorator):
        implementation = implementation.type_engine(dialect).dialect_impl(dialect)
    return implementation


def ignores_spelling(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether the database may take different texts of a column for the same.

    MySQL and MariaDB do by default, others where the column's collation or type says so.
    """
    kind = driver_type(type_, dialect)
    if isinstance(kind, CITEXT | types.CHAR):  # spaces at the end of a CHAR do not count
        return True
    if not isinstance(kind, types.String):
        return False
    if dialect.name in ("mysql", "mariadb"):
        return not (kind.collation or "").endswith("_bin")
    return kind.collation is not None

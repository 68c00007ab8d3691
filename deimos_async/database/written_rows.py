"""What a bulk statement of the ORM has written: the rows with their keys, on databases that tell and on others.

The statement is run as it was given, or with a RETURNING clause added where the database has one. Where it has none,
rows are looked for: before an UPDATE or DELETE by its own condition, and locked, as nobody can tell afterwards; after
an INSERT by the keys that were given. Whoever executed the statement gets a result like the one it would have had.

All of this is called within SQLAlchemy's event `do_orm_execute`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Result, Select, Table, select, tuple_
from sqlalchemy.engine import Dialect
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql.dml import Delete, Insert, Update

from deimos_async.database.upserts.options import unique_sets
from deimos_async.errors import ConfigurationError, DatabaseError

__all__ = ["Subject", "WrittenResult", "WrittenRows", "assigned", "execute_and_see", "rows_now"]

_MOST_KEYS = 500
"""Keys in the condition of one SELECT."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is written, and what is to be known of each row.

    Attributes:
        mapper: Of the class that the statement is about.
        key: Attributes of the primary key.
        names: Attributes that are wanted, the key's among them.
    """

    mapper: Mapper[Any]
    key: Sequence[str]
    names: Sequence[str]

    def attributes(self, names: Iterable[str]) -> list[Any]:
        """The class's attributes of these names, for statements."""
        return [getattr(self.mapper.class_, name) for name in names]

    @property
    def key_places(self) -> list[int]:
        """Where the key's attributes stand among the names."""
        return [list(self.names).index(name) for name in self.key]

    def key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """The primary key of a row."""
        return tuple(row[name] for name in self.key)


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """A statement's result, for whoever executed it, and the rows that it wrote.

    Attributes:
        rows: By names of attributes: as they are now, or as they were before a DELETE. In the database's order.
    """

    result: Result[Any]
    rows: Sequence[Mapping[str, Any]]


class WrittenResult(IteratorResult[Any]):
    """What a statement without RETURNING gives, made of one with it.

    Attributes:
        rowcount: Rows written.
        inserted_primary_key_rows: Keys of inserted rows.
        returns_rows: False.
    """

    returns_rows = False
    is_insert = False

    def __init__(self, rows: Sequence[Mapping[str, Any]], subject: Subject, *, is_insert: bool) -> None:
        super().__init__(SimpleResultMetaData([]), iter(()))
        self.rowcount = len(rows)
        self.is_insert = is_insert
        self.inserted_primary_key_rows = [subject.key_of(row) for row in rows] if is_insert else []
        self._subject = subject
        self.close()

    @property
    def inserted_primary_key(self) -> Any:
        """Key of the only row, as a row by the names of the key's columns."""
        keys = self.inserted_primary_key_rows or [(None,) * len(self._subject.key)]
        columns = [str(column.key) for column in self._subject.mapper.primary_key]
        return IteratorResult(SimpleResultMetaData(columns), iter(keys[:1])).one()

    @property
    def lastrowid(self) -> Any:
        """First part of the last row's key."""
        return self.inserted_primary_key_rows[-1][0] if self.inserted_primary_key_rows else None


def execute_and_see(execution: ORMExecuteState, subject: Subject) -> WrittenRows:
    """Execute an INSERT, UPDATE or DELETE of the ORM and tell which rows it wrote.

    Of an INSERT, rows that were left out (`ON CONFLICT DO NOTHING`, `INSERT IGNORE`) are not among them; those that it
    updated instead are.

    Raises:
        ConfigurationError: This database cannot tell which rows the statement wrote; nothing was executed.
        DatabaseError (`retriable`): Rows came between looking and writing, which only isolation levels below REPEATABLE
            READ let happen. The transaction must be rolled back.
        SQLAlchemyError: As the statement does.
    """
    statement = execution.statement
    connection = execution.session.connection(bind_arguments=dict(execution.bind_arguments))
    dialect = connection.dialect
    table = subject.mapper.local_table
    assert isinstance(statement, Insert | Update | Delete)
    # Neither a table's own wish, nor one that SQLAlchemy does not let be joined with RETURNING, is passed over.
    can_return = isinstance(table, Table) and table.implicit_returning and not statement._return_defaults
    if isinstance(statement, Insert):
        if can_return and _insert_returns(dialect, many=execution.is_executemany):
            return _with_returning(execution, subject, statement)
        return _insert_and_look(execution, subject, statement)
    if isinstance(execution.parameters, list):
        return _update_by_key(execution, subject, execution.parameters)
    # A statement writes one table, and of a class with several the others can only be looked up.
    if can_return and len(subject.mapper.tables) == 1 and _returns(dialect, subject, statement):
        return _with_returning(execution, subject, statement)
    if isinstance(statement, Update):
        return _look_and_update(execution, subject, statement)
    return _look_and_delete(execution, subject, statement)


def _insert_returns(dialect: Dialect, *, many: bool) -> bool:
    return dialect.insert_executemany_returning if many else dialect.insert_returning


def _returns(dialect: Dialect, subject: Subject, statement: Update | Delete) -> bool:
    several = len(_matching(subject, statement, subject.key).get_final_froms()) > 1
    if isinstance(statement, Update):
        return dialect.update_returning and (not several or dialect.update_returning_multifrom)
    return dialect.delete_returning and (not several or dialect.delete_returning_multifrom)


# --- by RETURNING ----------------------------------------------------------------------------------------------------


def _with_returning(execution: ORMExecuteState, subject: Subject, statement: Insert | Update | Delete) -> WrittenRows:
    own = len(statement._returning)
    amended = statement.returning(*subject.attributes(subject.names))
    frozen = execution.invoke_statement(statement=amended).freeze()
    rows = [dict(zip(subject.names, tuple(row)[own:], strict=True)) for row in frozen()]
    if own:
        return WrittenRows(frozen().columns(*range(own)), rows)
    return WrittenRows(WrittenResult(rows, subject, is_insert=isinstance(statement, Insert)), rows)


# --- by looking ------------------------------------------------------------------------------------------------------


def _look_and_update(execution: ORMExecuteState, subject: Subject, statement: Update) -> WrittenRows:
    if assigned(statement, subject.mapper, execution.parameters).intersection(subject.key):
        raise ConfigurationError(
            f"{_name(subject)}: this database does not tell which rows are meant when a statement sets the primary "
            "key; change the keys of objects, or set KafkaConfig(bulk=False)"
        )
    # A condition that joins other tables finds a row several times.
    keys = list(dict.fromkeys(_look(execution, _matching(subject, statement, subject.key).with_for_update())))
    result = execution.invoke_statement()
    _check_count(result, len(keys))
    return WrittenRows(result, rows_now(execution, subject, keys))


def _look_and_delete(execution: ORMExecuteState, subject: Subject, statement: Delete) -> WrittenRows:
    found = _look(execution, _matching(subject, statement, subject.names).with_for_update())
    rows = {tuple(row[place] for place in subject.key_places): row for row in found}
    result = execution.invoke_statement()
    _check_count(result, len(rows))
    return WrittenRows(result, [dict(zip(subject.names, row, strict=True)) for row in rows.values()])


def _update_by_key(
    execution: ORMExecuteState, subject: Subject, parameters: Sequence[Mapping[str, Any]]
) -> WrittenRows:
    """`update(Model)` with a list of rows that have the primary key."""
    keys = [key for row in parameters if (key := _values(row, subject.key, subject.mapper)) is not None]
    if len(keys) < len(parameters):
        raise ConfigurationError(
            f"{_name(subject)}: rows of a list that is to be written need their primary keys, as nobody can tell "
            "otherwise which ones are meant; execute the statement for one after the other, or set "
            "KafkaConfig(bulk=False)"
        )
    result = execution.invoke_statement()
    return WrittenRows(result, rows_now(execution, subject, keys))


def rows_now(execution: ORMExecuteState, subject: Subject, keys: Sequence[tuple[Any, ...]]) -> list[Mapping[str, Any]]:
    """Rows as they are now, which an UPDATE has locked."""
    # For MySQL, a row that already is as it is updated to be was not written: read without a lock it would be as it was
    # when the transaction began, though others may have committed changes since.
    is_locking = execution.session.get_bind(mapper=execution.bind_mapper).dialect.name in ("mysql", "mariadb")
    return list(_rows_by(execution, subject, subject.key, keys, is_locking=is_locking).values())


def _insert_and_look(execution: ORMExecuteState, subject: Subject, statement: Insert) -> WrittenRows:
    """Rows are found by what they were given of the primary key or of other unique columns.

    Rows that are there before and the same afterwards were left out. Nothing is locked before: locks on keys that do
    not exist yet make others that insert wait for each other.
    """
    given = execution.parameters
    if not given:
        return _insert_one_and_look(execution, subject, statement)
    rows = [given] if isinstance(given, Mapping) else list(given)
    lookups = [list(subject.key), *_unique_attributes(subject)]
    wanted: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for row in rows:
        complete = [
            (tuple(names), values) for names in lookups if (values := _values(row, names, subject.mapper)) is not None
        ]
        if not complete:
            raise ConfigurationError(
                f"{_name(subject)}: this database does not tell the keys of rows that it inserts together; give them "
                "the primary key or other unique columns, insert them one by one or as objects, or set "
                "KafkaConfig(bulk=False)"
            )
        for names, values in complete:
            wanted.setdefault(names, []).append(values)

    def look() -> dict[tuple[Any, ...], Mapping[str, Any]]:
        found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for names, values in wanted.items():
            found |= _rows_by(execution, subject, names, values)
        return found

    before = look()
    result = execution.invoke_statement()
    after = look()
    return WrittenRows(result, [row for key, row in after.items() if before.get(key) != row])


def _insert_one_and_look(execution: ORMExecuteState, subject: Subject, statement: Insert) -> WrittenRows:
    if statement.select is not None or statement._multi_values:
        raise ConfigurationError(
            f"{_name(subject)}: this database does not tell the keys of rows that it inserts together; give the rows "
            "as the second argument of execute(), with their primary keys or other unique columns, or set "
            "KafkaConfig(bulk=False)"
        )
    result = execution.invoke_statement()
    # 0: left out, or found as it should be; MySQL counts 1 for a row that it inserted and 2 for one that it changed.
    if result.rowcount == 0:  # type: ignore[attr-defined]
        return WrittenRows(result, [])
    key = tuple(result.inserted_primary_key)  # type: ignore[attr-defined]
    return WrittenRows(result, list(_rows_by(execution, subject, subject.key, [key]).values()))


def assigned(statement: Update, mapper: Mapper[Any], parameters: Any) -> set[str]:
    """Attributes that an UPDATE sets, by `values(...)` or by one mapping of parameters.

    Other names of parameters, which the statement itself has, may be among them.
    """
    names = _names(mapper)
    found = set()
    for column in (*(statement._values or ()), *(parameters if isinstance(parameters, Mapping) else ())):
        name = column if isinstance(column, str) else column.key
        found.add(names.get(name, name))
    return found


def _names(mapper: Mapper[Any]) -> dict[str, str]:
    """Attributes by their own names and by those of their columns."""
    columns = {attribute.columns[0].key: attribute.key for attribute in mapper.column_attrs}
    return columns | {attribute.key: attribute.key for attribute in mapper.column_attrs}


def _values(row: Mapping[str, Any], names: Sequence[str], mapper: Mapper[Any]) -> tuple[Any, ...] | None:
    """A row's values of attributes; None if one of them is missing or NULL."""
    found = []
    for name in names:
        value = row.get(name)
        if value is None:
            value = row.get(mapper.column_attrs[name].columns[0].key)
        if value is None:
            return None
        found.append(value)
    return tuple(found)


def _unique_attributes(subject: Subject) -> list[list[str]]:
    """Attributes of sets of columns of which no two rows have the same values, without the primary key."""
    table = subject.mapper.local_table
    assert isinstance(table, Table)
    names = _names(subject.mapper)
    others = unique_sets(table) - {frozenset(column.key for column in table.primary_key)}
    return sorted(sorted(names[column] for column in columns) for columns in others if columns <= names.keys())


def _matching(subject: Subject, statement: Update | Delete, names: Sequence[str]) -> Select[Any]:
    """These columns of the rows that an UPDATE or DELETE is about."""
    query = select(*subject.attributes(names))
    condition = statement.whereclause
    return query if condition is None else query.where(condition)


def _look(execution: ORMExecuteState, query: Select[Any]) -> list[tuple[Any, ...]]:
    parameters = execution.parameters
    found = execution.session.execute(
        query,
        parameters if isinstance(parameters, Mapping) else None,
        bind_arguments={"mapper": execution.bind_mapper},
    )
    return [tuple(row) for row in found]


def _rows_by(
    execution: ORMExecuteState,
    subject: Subject,
    names: Sequence[str],
    values: Sequence[tuple[Any, ...]],
    *,
    is_locking: bool = False,
) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Rows by their primary keys, in the order in which their values of some unique attributes are given."""
    attributes = subject.attributes(names)
    places = subject.key_places
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for first in range(0, len(values), _MOST_KEYS):
        some = values[first : first + _MOST_KEYS]
        if len(attributes) == 1:
            condition = attributes[0].in_([value for (value,) in some])
        else:
            condition = tuple_(*attributes).in_(some)
        query = select(*subject.attributes(subject.names)).where(condition)
        rows = _look(execution, query.with_for_update() if is_locking else query)
        by_key = {tuple(row[place] for place in places): dict(zip(subject.names, row, strict=True)) for row in rows}
        if tuple(names) == tuple(subject.key):
            by_key = {key: by_key.pop(key) for key in some if key in by_key} | by_key
        found |= by_key
    return found


def _check_count(result: Result[Any], expected: int) -> None:
    counted = getattr(result, "rowcount", -1)
    if counted > expected:
        error = DatabaseError(
            "the statement wrote rows that were not there when its rows were looked for, just before; "
            "roll the transaction back and run it again, or use REPEATABLE READ"
        )
        error.retriable = True
        raise error


def _name(subject: Subject) -> str:
    return subject.mapper.class_.__name__

"""What `insert()`, `update()` and `delete()` of sources write through a session, and what is sent of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Result
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.dml import Delete, Update

from deimos_async.database.written_rows import Subject, assigned, execute_and_see, rows_now
from deimos_async.errors import ConfigurationError, DatabaseError
from deimos_async.models.columns import Attributes, ModelColumns, columns_of
from deimos_async.models.loading import records_by_key
from deimos_async.models.payloads import Change
from deimos_async.models.sending import Sender, refuse_commit, send, senders

__all__ = ["listener"]


def listener(source: type) -> Callable[[ORMExecuteState], Result[Any] | None]:
    """For the event `do_orm_execute`: statements of this class, and of those that derive from it, are seen."""

    def execute(execution: ORMExecuteState) -> Result[Any] | None:
        if not (execution.is_insert or execution.is_update or execution.is_delete):
            return None
        mapper = execution.bind_mapper
        model: Any = None if mapper is None else mapper.class_
        if mapper is None or not issubclass(model, source) or not model.kafka_config.bulk:
            return None
        active = senders(model)
        return _execute(execution, mapper, active) if active else None

    return execute


def _execute(execution: ORMExecuteState, mapper: Mapper[Any], active: Sequence[Sender]) -> Result[Any]:
    columns = columns_of(mapper)
    fields = set().union(*(sender.fields.keys() for sender in active))
    # Whoever executes the statement may go on with the transaction after an error, and its rows are written.
    try:
        written = execute_and_see(execution, Subject(mapper, columns.key, columns.wanted(fields)))
    except BaseException as error:
        if isinstance(error, DatabaseError) or _may_have_written(execution, mapper, error):
            refuse_commit(execution.session, error)
        raise
    try:
        for of, rows in _by_class(columns, written.rows).items():
            if of is columns:
                _send(execution, of, rows, active)
            else:
                others = senders(of.model)
                _send(execution, of, _complete(execution, of, rows, others), others)
    except BaseException as error:
        refuse_commit(execution.session, error)
        raise
    return written.result


def _may_have_written(execution: ORMExecuteState, mapper: Mapper[Any], error: BaseException) -> bool:
    """Whether a statement that failed can have written some of its rows, as several statements of the database."""
    if isinstance(error, ConfigurationError):
        return False  # nothing was executed
    return isinstance(execution.parameters, list) or len(mapper.tables) > 1


def _by_class(columns: ModelColumns, rows: Iterable[Mapping[str, Any]]) -> dict[ModelColumns, list[Mapping[str, Any]]]:
    """Rows by the class that they belong to, where a table has several."""
    mapper = columns.mapper
    discriminator = mapper.polymorphic_on
    if discriminator is None:
        return {columns: list(rows)}
    names = [name for name in columns.names if mapper.column_attrs[name].columns[0] is discriminator]
    found: dict[ModelColumns, list[Mapping[str, Any]]] = {}
    for row in rows:
        of = next((mapper.polymorphic_map.get(row[name], mapper) for name in names if name in row), mapper)
        found.setdefault(columns_of(of), []).append(row)
    return found


def _complete(
    execution: ORMExecuteState, columns: ModelColumns, rows: Sequence[Mapping[str, Any]], active: Sequence[Sender]
) -> Sequence[Mapping[str, Any]]:
    """Rows with the columns that only their own class has; those that are gone stay as they are."""
    if not active or isinstance(execution.statement, Delete):
        return rows
    wanted = columns.wanted(set().union(*(sender.fields.keys() for sender in active)))
    if all(row.keys() >= set(wanted) for row in rows):
        return rows
    keys = [tuple(row[name] for name in columns.key) for row in rows]
    return rows_now(execution, Subject(columns.mapper, columns.key, wanted), keys)


def _send(
    execution: ORMExecuteState, columns: ModelColumns, rows: Sequence[Mapping[str, Any]], active: Sequence[Sender]
) -> None:
    session = execution.session
    attributes = [columns.with_aliases(dict(row)) for row in rows]
    if isinstance(execution.statement, Delete):
        changes = [Change("delete", each, _deleted(columns, each), columns) for each in attributes]
        for sender in active:
            send(session, sender, changes)
        return
    changed = _changed(execution, columns)
    for sender in active:
        records = _records(session, columns, attributes) if sender.reads_records else attributes
        send(
            session,
            sender,
            [
                Change("create" if changed is None else "update", each, record, columns, changed)
                for each, record in zip(attributes, records, strict=True)
            ],
        )


def _changed(execution: ORMExecuteState, columns: ModelColumns) -> frozenset[str] | None:
    """All names of the columns that an UPDATE sets; None for an INSERT."""
    statement = execution.statement
    if not isinstance(statement, Update):
        return None
    names = assigned(statement, columns.mapper, execution.parameters)
    if isinstance(execution.parameters, list):
        names |= {name for row in execution.parameters for name in row}.difference(columns.key)
    return frozenset(columns.names_of(names))


def _records(session: Session, columns: ModelColumns, rows: Sequence[Attributes]) -> list[Any]:
    """The objects of rows; a row itself where its object is of no use, being gone already."""
    found = records_by_key(session, columns, [tuple(row[name] for name in columns.key) for row in rows])
    return [found.get(tuple(row[name] for name in columns.key), row) for row in rows]


def _deleted(columns: ModelColumns, row: Attributes) -> Any:
    """An object of a row that is gone, of no session."""
    record = columns.mapper.class_manager.new_instance()
    for name in columns.names:
        if name in row:
            set_committed_value(record, name, row[name])
    make_transient_to_detached(record)
    return record

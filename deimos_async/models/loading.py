"""What is not known of records yet, read by few queries: attributes, old values, and records by their primary keys.

Called where a session may be used: in its events, or within `AsyncSession.run_sync`. Nothing is flushed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import InstanceState, Session, lazyload, undefer

from deimos_async.models.columns import ModelColumns, columns_of

__all__ = ["load_missing", "old_values", "records_by_key"]

_MOST_KEYS = 500
"""Keys in the condition of one query."""

Missing = Callable[[ModelColumns, InstanceState[Any]], set[str]]
"""Which attributes of a record must be loaded."""


def load_missing(session: Session, states: Iterable[InstanceState[Any]], missing_of: Missing) -> None:
    """Load what is missing of records in the session: a query for each class and 500 records that lack something.

    What they have, changed or not, stays as it is.
    """
    incomplete: dict[ModelColumns, dict[tuple[Any, ...], set[str]]] = {}
    for state in states:
        columns = columns_of(state.mapper)
        missing = missing_of(columns, state)
        if missing and state.identity is not None:
            incomplete.setdefault(columns, {})[state.identity] = missing
    for columns, keys in incomplete.items():
        names = set().union(*keys.values())
        options = [undefer(getattr(columns.model, name)) for name in columns.deferred & names]
        for query in _by_key(select(columns.model), columns, list(keys)):
            with session.no_autoflush:
                # A row of a record that the session has fills what is not loaded in it.
                session.execute(query.options(lazyload("*"), *options)).all()


def old_values(
    session: Session, unknown: Mapping[InstanceState[Any], Iterable[str]]
) -> dict[InstanceState[Any], dict[str, Any]]:
    """What the database has for attributes that were set without being loaded. The rows are locked.

    They are about to be written anyway; and if they were not locked, a value that is the same now might have become
    another one when it is written. What else is not loaded of these records is loaded as well, as the flush would do it
    for one after the other.
    """
    groups: dict[ModelColumns, dict[tuple[Any, ...], InstanceState[Any]]] = {}
    names: dict[ModelColumns, set[str]] = {}
    for state, attributes in unknown.items():
        if state.identity is not None:
            columns = columns_of(state.mapper)
            groups.setdefault(columns, {})[state.identity] = state
            names.setdefault(columns, set()).update(attributes)
    found: dict[InstanceState[Any], dict[str, Any]] = {}
    for columns, states in groups.items():
        wanted = [*columns.key, *sorted(names[columns].difference(columns.key))]
        # In the order of keys, as flushes write, so that two of them do not wait for each other.
        query = select(columns.model, *(getattr(columns.model, name) for name in wanted)).options(lazyload("*"))
        query = query.order_by(*(getattr(columns.model, name) for name in columns.key))
        # Not those of subclasses, which are joined from outside, and cannot be locked then.
        query = query.with_for_update(of=list(columns.mapper.tables))
        for part in _by_key(query, columns, list(states)):
            with session.no_autoflush:
                rows = [tuple(row)[1:] for row in session.execute(part)]
            for row in rows:
                key = row[: len(columns.key)]
                if key in states:
                    found[states[key]] = dict(zip(wanted, row, strict=True))
    return found


def records_by_key(session: Session, columns: ModelColumns, keys: Iterable[tuple[Any, ...]]) -> dict[Any, Any]:
    """Records by their primary keys: a query for 500. Keys without a row are missing."""
    found: dict[Any, Any] = {}
    for query in _by_key(select(columns.model), columns, list(dict.fromkeys(keys))):
        with session.no_autoflush:
            for record in session.execute(query).unique().scalars():
                found[tuple(getattr(record, name) for name in columns.key)] = record
    return found


def _by_key(query: Select[Any], columns: ModelColumns, keys: Sequence[tuple[Any, ...]]) -> Iterator[Select[Any]]:
    """The query for all these keys, in parts."""
    attributes = [getattr(columns.model, name) for name in columns.key]
    for first in range(0, len(keys), _MOST_KEYS):
        some = keys[first : first + _MOST_KEYS]
        single = len(attributes) == 1
        yield query.where(attributes[0].in_([key for (key,) in some]) if single else tuple_(*attributes).in_(some))

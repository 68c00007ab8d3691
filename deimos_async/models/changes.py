"""What a session's flushes change of `KafkaSource` objects, and what becomes of it.

Three moments of a flush:

- before it, what will be needed and is not loaded is loaded: columns of rows that are about to be deleted, and old
  values of attributes that were set without being loaded, so that it can be seen whether they change;
- while it writes, SQLAlchemy tells of each object that it has inserted, updated or deleted: these are noted, with the
  attributes that have really changed;
- after it, when everything has its place in the session, what the database made of the rows is loaded, by one query for
  many, and messages are made. They leave with the transaction, or with the savepoint not at all.

So the payload is what the row is after that flush, and two flushes that change a row make two messages. Hooks run with
the object still in its session, also that of a deleted row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.orm import InstanceState, Mapper, PassiveFlag, Session, object_session
from sqlalchemy.orm.attributes import get_history, instance_state

from deimos_async.models.columns import ModelColumns, columns_of, is_expression
from deimos_async.models.loading import load_missing, old_values
from deimos_async.models.payloads import Change
from deimos_async.models.sending import Sender, send, senders
from deimos_async.producing.producer import Producer

__all__ = ["listen"]

_INFO_KEY = "deimos_async.changes"

Kind = Literal["create", "update", "delete"]


@dataclass(slots=True)
class _Flush:
    """What one flush does.

    Attributes:
        old: Values that rows have in the database, of attributes that were set without being loaded.
        expressions: Attributes that an update sets to SQL; their history is gone afterwards.
        noted: Objects that were written, in order, with the attributes that an update has changed.
    """

    old: dict[InstanceState[Any], dict[str, Any]] = field(default_factory=dict)
    expressions: dict[InstanceState[Any], set[str]] = field(default_factory=dict)
    noted: list[tuple[Kind, Any, frozenset[str] | None]] = field(default_factory=list)


def listen(source: type) -> None:
    """Listen to flushes of all sessions, for objects of this class and of those that derive from it."""

    def before_flush(session: Session, context: Any, instances: Any) -> None:
        session.info.pop(_INFO_KEY, None)  # of a flush that has failed
        deleted = [
            instance_state(record)
            for record in session.deleted
            if isinstance(record, source) and record.kafka_config.delete  # type: ignore[attr-defined]
        ]
        if deleted:
            load_missing(session, deleted, _undeferred)
        unknown = {
            instance_state(record): names
            for record in session.dirty
            if isinstance(record, source)
            and record.kafka_config.update  # type: ignore[attr-defined]
            and (names := _set_unloaded(record))
        }
        if unknown:
            _flush_of(session).old = old_values(session, unknown)

    event.listen(Session, "before_flush", before_flush)
    # Before the listeners that write the outbox's rows at this moment.
    event.listen(Session, "after_flush_postexec", _after_flush, insert=True)
    event.listen(source, "after_insert", _after_insert, propagate=True)
    event.listen(source, "before_update", _before_update, propagate=True)
    event.listen(source, "after_update", _after_update, propagate=True)
    event.listen(source, "before_delete", _before_delete, propagate=True)
    event.listen(source, "after_delete", _after_delete, propagate=True)


def _flush_of(session: Session) -> _Flush:
    found = session.info.get(_INFO_KEY)
    if found is None:
        found = session.info[_INFO_KEY] = _Flush()
    flush: _Flush = found
    return flush


def _undeferred(columns: ModelColumns, state: InstanceState[Any]) -> set[str]:
    return columns.missing(state, columns.wanted(()))


def _set_unloaded(record: Any) -> list[str]:
    """Attributes that were set to a value while nobody knew the old one."""
    state = instance_state(record)
    found = []
    for name in columns_of(state.mapper).names:
        history = get_history(record, name, PassiveFlag.PASSIVE_NO_INITIALIZE)
        if history.added and not history.deleted and not is_expression(history.added[0]):
            found.append(name)
    return found


# --- while it writes -------------------------------------------------------------------------------------------------


def _note(record: Any, kind: Kind, changed: frozenset[str] | None = None) -> None:
    session = object_session(record)
    assert session is not None  # it is being flushed
    _flush_of(session).noted.append((kind, record, changed))


def _after_insert(mapper: Mapper[Any], connection: Any, record: Any) -> None:
    if record.kafka_config.create:
        _note(record, "create")


def _before_update(mapper: Mapper[Any], connection: Any, record: Any) -> None:
    if not record.kafka_config.update:
        return
    state = instance_state(record)
    expressions = {name for name in columns_of(state.mapper).names if is_expression(state.dict.get(name))}
    session = object_session(record)
    if expressions and session is not None:
        _flush_of(session).expressions[state] = expressions


def _after_update(mapper: Mapper[Any], connection: Any, record: Any) -> None:
    session = object_session(record)
    if not record.kafka_config.update or session is None:
        return
    changed = _changed(record, _flush_of(session))
    if changed:
        _note(record, "update", frozenset(changed))


def _changed(record: Any, flush: _Flush) -> set[str]:
    """All names of the columns whose value is another one than that which was loaded, or was in the database."""
    state = instance_state(record)
    columns = columns_of(state.mapper)
    old = flush.old.get(state, {})
    changed = set(flush.expressions.get(state, ()))
    for name in columns.names:
        history = get_history(record, name, PassiveFlag.PASSIVE_NO_INITIALIZE)
        if not history.added and not history.deleted:
            continue
        known = bool(history.deleted) or name not in old
        new = history.added[0] if history.added else None
        if known or columns.differs(name, old[name], new):
            changed.add(name)
    return columns.names_of(changed)


def _before_delete(mapper: Mapper[Any], connection: Any, record: Any) -> None:
    # Objects that only the flush has found out to be deleted, as orphans of a relationship: the others are complete.
    session = object_session(record)
    if record.kafka_config.delete and session is not None:
        load_missing(session, [instance_state(record)], _undeferred)


def _after_delete(mapper: Mapper[Any], connection: Any, record: Any) -> None:
    if record.kafka_config.delete:
        _note(record, "delete")


# --- after it --------------------------------------------------------------------------------------------------------


def _after_flush(session: Session, context: Any) -> None:
    flush: _Flush | None = session.info.pop(_INFO_KEY, None)
    if flush is None or not flush.noted:
        return
    active = {model: senders(model) for model in dict.fromkeys(type(record) for _, record, _ in flush.noted)}
    fields = {name for chosen in active.values() for sender in chosen for name in sender.fields}
    written = {
        instance_state(record): kind == "create"
        for kind, record, _ in flush.noted
        if kind != "delete" and active[type(record)]
    }
    load_missing(
        session,
        written,
        lambda columns, state: columns.missing(state, columns.wanted(fields), is_new=written[state]),
    )
    by_producer: dict[Producer, tuple[Sender, list[Change]]] = {}
    # A flush inserts before it deletes. A row that takes over the topic's key of one that is deleted must come after
    # its tombstone, or the topic would end without it.
    for kind, record, changed in sorted(flush.noted, key=lambda one: one[0] != "delete"):
        state = instance_state(record)
        columns = columns_of(state.mapper)
        attributes = columns.read(state, is_new=kind == "create")
        change = Change(kind, attributes, record, columns, changed)
        for sender in active[type(record)]:
            by_producer.setdefault(sender.producer, (sender, []))[1].append(change)
    for sender, changes in by_producer.values():
        send(session, sender, changes)

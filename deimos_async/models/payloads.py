"""From changes of rows to messages: what hooks make of them, without what the schema lacks. No session, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from deimos_async.errors import EncodeError
from deimos_async.models.columns import Attributes, ModelColumns, columns_of, state_of
from deimos_async.schemas.protocol import SchemaField
from deimos_async.topics import FieldKey, KeyConfig, SchemaKey

__all__ = [
    "Change",
    "Fields",
    "PlainHooks",
    "PrimaryKeyPayload",
    "RowHooks",
    "deletion_of",
    "is_watched",
    "messages_for",
    "names_in",
]

Fields = Mapping[str, SchemaField]
"""A schema's fields by their names."""

_UPDATED_AT = "updated_at"
"""An attribute whose change alone is none."""
_IN_PAYLOAD = frozenset({"payload_key", "partition_key"})
"""Names in a payload that are no fields of the schema and mean something all the same."""


class Change(NamedTuple):
    """What has happened to a row.

    Attributes:
        attributes: The row's values as they were written; of a deleted one as they were before.
        record: The object of the model, or where there is none what stands for it.
        columns: The model's, where there is one.
        changed: Names of what an update has changed, all names of each; None: it does not matter.
    """

    kind: Literal["create", "update", "delete"]
    attributes: Attributes
    record: Any
    columns: ModelColumns | None
    changed: frozenset[str] | None = None


class PrimaryKeyPayload(dict[str, Any]):
    """What a deleted row says by itself: its primary key, which may not be what the topic's keys are."""


class RowHooks(Protocol):
    """What a producer of rows decides: see `ModelProducer`."""

    def generate_payload(self, attributes: Attributes, record: Any) -> Any: ...
    def generate_deletion_payload(self, record: Any) -> Any: ...
    def watched_attributes(self, record: Any) -> Collection[str]: ...


class PlainHooks:
    """The rules for a producer that has none of its own (port `RowHooks`)."""

    def __init__(self, fields: Fields, key: KeyConfig) -> None:
        self._fields = fields
        self._key = key

    def generate_payload(self, attributes: Attributes, record: Any) -> Any:
        """The attributes."""
        return attributes

    def generate_deletion_payload(self, record: Any) -> Any:
        """What the record says."""
        return deletion_of(record, self._key)

    def watched_attributes(self, record: Any) -> Collection[str]:
        """The schema's fields; a schema without any watches all."""
        return self._fields.keys() or names_in(record)


def names_in(record: Any) -> Collection[str]:
    """Names of all columns of an object of a model; those in a mapping."""
    state = state_of(record)
    return record.keys() if state is None else columns_of(state.mapper).every


def deletion_of(record: Any, key: KeyConfig) -> Any:
    """What is sent when a record is deleted: what it says, or the value of the topic's key in it.

    Where it only says its primary key, the value of the field of `Key.field` goes before, if it has such an attribute;
    and a key with a schema is a mapping of the primary key's attributes.
    """
    payload = record.deletion_payload()
    state = state_of(record)
    if not isinstance(payload, PrimaryKeyPayload) or state is None:
        return payload
    columns = columns_of(state.mapper)
    if isinstance(key, FieldKey):
        name = columns.aliases.get(key.field, key.field)
        return {"payload_key": getattr(record, name)} if name in columns.names else payload
    if isinstance(key, SchemaKey):
        return {"payload_key": {name: getattr(record, name) for name in columns.key}}
    return payload


def is_watched(hooks: RowHooks, change: Change) -> bool:
    """Whether the change is one for this producer: made or deleted rows are, updated ones by what was changed."""
    if change.changed is None:
        return True
    watched = set(hooks.watched_attributes(change.record))
    watched.discard(_UPDATED_AT)
    return not watched.isdisjoint(change.changed)


def messages_for(
    hooks: RowHooks, fields: Fields, changes: Sequence[Change], *, truncate: bool, topic: str
) -> list[dict[str, Any]]:
    """Messages as `produce_many` takes them, in order; a hook that returned None has made none.

    Columns that the schema lacks are left out of payloads that are mappings; other names stay, and are up to
    `schema.unknown_fields`. A naive datetime is UTC, but for fields of local time.

    Args:
        fields: The schema's; empty: it has none, and nothing is left out.
        truncate: Whether text is cut to the lengths of its columns.

    Raises:
        EncodeError: There are columns, and no field for any of them: what is left would be a tombstone.
    """
    messages = []
    for change in changes:
        columns: Collection[str] = ()
        if change.kind == "delete":
            payload = hooks.generate_deletion_payload(change.record)
        else:
            attributes = dict(change.attributes)
            columns = change.attributes.keys() if change.columns is None else change.columns.every
            if truncate and change.columns is not None:
                attributes = change.columns.cut(attributes)
            payload = hooks.generate_payload(attributes, change.record)
        if payload is None:
            continue
        if isinstance(payload, Mapping):
            payload = _fitting(payload, fields, columns, topic)
        messages.append({"payload": payload})
    return messages


def _fitting(payload: Mapping[str, Any], fields: Fields, columns: Collection[str], topic: str) -> dict[str, Any]:
    fitting = {
        name: value.replace(tzinfo=UTC) if _is_meant_as_utc(value, fields.get(name)) else value
        for name, value in payload.items()
        if not fields or name in fields or name not in columns or name in _IN_PAYLOAD
    }
    if fitting.keys() <= _IN_PAYLOAD and payload.keys() - _IN_PAYLOAD:
        raise EncodeError(
            "none of the columns is a field of the schema, so nothing would be left but a tombstone; "
            "name fields as columns are named, or override generate_payload",
            topic=topic,
        )
    return fitting


def _is_meant_as_utc(value: Any, field: SchemaField | None) -> bool:
    if not isinstance(value, datetime) or value.tzinfo is not None:
        return False
    return field is None or "local-timestamp" not in str(field.type)

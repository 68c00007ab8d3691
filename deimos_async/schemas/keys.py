"""What a key is before and after its bytes, for each kind of key. Pure.

A key never disappears for being falsy: 0, "" and False are keys, only None is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.topics import FieldKey, KeyConfig, NoKey, PlainKey, SchemaKey

__all__ = ["PAYLOAD_KEY", "choose_key", "field_value", "key_name", "plain_key", "plain_key_text", "unwrap", "wrap"]

PAYLOAD_KEY = "payload_key"
"""Name under which a payload may carry its key."""


def choose_key(config: KeyConfig, payload: Any, key: Any) -> tuple[Any, Any]:
    """The payload without `payload_key`, and the key of a message.

    The key that was given wins, then `payload_key`, then the field of a `FieldKey`, else None. The payload that was
    given is not changed.

    Source: Deimos 2.6, key selection; it differs in that a topic without keys refuses one instead of crashing.
    """
    inside = None
    if isinstance(payload, Mapping) and PAYLOAD_KEY in payload:
        inside = payload[PAYLOAD_KEY]
        payload = {name: value for name, value in payload.items() if name != PAYLOAD_KEY}
    if key is None:
        key = inside
    if key is None and isinstance(config, FieldKey) and payload is not None:
        key = field_value(payload, config.field)
    return payload, key


def check_presence(config: KeyConfig, key: Any, topic: str) -> None:
    """Raises EncodeError for a key that is missing, or that the topic does not have."""
    if isinstance(config, NoKey):
        if key is not None:
            raise EncodeError("a key was given, but this topic has no keys (key=Key.none())", topic=topic)
    elif key is None:
        raise EncodeError(
            "a key is required: give key=, payload_key in the payload, or declare the topic with key=Key.none()",
            topic=topic,
        )


def field_value(payload: Any, field: str) -> Any:
    """The value of a field, dotted for a nested one; None if anything on the way is missing or None."""
    value = payload
    for step in field.split("."):
        value = value.get(step) if isinstance(value, Mapping) else getattr(value, step, None)
        if value is None:
            return None
    return value


def key_name(config: FieldKey) -> str:
    """Name of the one field of the key schema: the last part of a dotted field."""
    return config.field.rpartition(".")[2]


def wrap(config: FieldKey | SchemaKey, key: Any) -> Any:
    """What the key schema describes: a scalar field key becomes `{field: key}`, a mapping is taken as it is."""
    if isinstance(config, FieldKey) and not isinstance(key, Mapping):
        return {key_name(config): key}
    return key


def unwrap(config: FieldKey | SchemaKey, value: Any) -> Any:
    """The reverse: the bare value of a field key, the mapping of a schema key."""
    return value[key_name(config)] if isinstance(config, FieldKey) else value


def plain_key(key: Any) -> bytes:
    """The text of a key, UTF-8; bytes as they are.

    Raises:
        EncodeError: It has no one text form (a mapping, a list, an object).
    """
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, bool):
        return b"true" if key else b"false"
    if isinstance(key, (str, int, float, Decimal, UUID)):
        return str(key).encode()
    if isinstance(key, (date, time)):
        return key.isoformat().encode()
    raise EncodeError(
        f"Key.plain() takes text, numbers, UUIDs and dates, not {type(key).__name__}; "
        "use Key.schema(...) for a key of several fields"
    )


def plain_key_text(data: bytes) -> str:
    """Raises DecodeError if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the key is not UTF-8 at byte {error.start}; it is declared as Key.plain()") from error


def is_schema_key(config: object) -> bool:
    """Whether keys of this kind have a schema."""
    return isinstance(config, (FieldKey, SchemaKey))


def is_plain_key(config: object) -> bool:
    """Whether keys of this kind are text."""
    return isinstance(config, PlainKey)

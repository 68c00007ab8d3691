"""What a key is before and after its bytes, for each kind of key. Pure.

A key never disappears for being falsy: 0, "" and False are keys, only None is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.schemas.coercion import Unfit, as_mapping, kind_of, to_text
from deimos_async.topics import UNSET, FieldKey, KeyConfig, NoKey

__all__ = [
    "PAYLOAD_KEY",
    "check_presence",
    "choose_key",
    "field_value",
    "key_name",
    "picking",
    "plain_key",
    "text_decoder",
]

PAYLOAD_KEY = "payload_key"
"""Name under which a payload may carry its key."""


def choose_key(config: KeyConfig, payload: Any, key: Any) -> tuple[Any, Any]:
    """The payload without `payload_key`, and the key of a message.

    The key that was given wins, then `payload_key`, then the field of a `FieldKey`, else None. The payload that was
    given is not changed.

    Args:
        config: How the topic's keys are made, or UNSET.
        key: UNSET or None: not given.

    Source: Deimos 2.6, key selection.
    """
    if key is not None and key is not UNSET:  # as is usual
        kind = type(payload)
        if kind is bytes or (kind is dict and PAYLOAD_KEY not in payload):
            return payload, key
    inside = None
    if isinstance(payload, Mapping) and PAYLOAD_KEY in payload:
        inside = payload[PAYLOAD_KEY]
        payload = {name: value for name, value in payload.items() if name != PAYLOAD_KEY}
    if key is UNSET or key is None:
        key = inside
    if key is None and isinstance(config, FieldKey):
        key = field_value(payload, config.field)
    return payload, key


def check_presence(config: KeyConfig, key: Any) -> None:
    """Raises EncodeError for a key that is missing, or that the topic does not have."""
    if isinstance(config, NoKey):
        if key is not None:
            raise EncodeError("this topic has no keys (it is declared with key=Key.none()), but a key was given")
    elif config is UNSET:
        raise EncodeError(
            "the topic is declared without key=, so nothing can be sent to it; "
            "declare it with Key.field(...), Key.schema(...), Key.plain(), or Key.none()"
        )
    elif key is None:
        field = f", the field {config.field!r}" if isinstance(config, FieldKey) else ""
        raise EncodeError(
            f"a key is required: give key={field} or payload_key in the payload; "
            "use Key.none() for a topic without keys"
        )


def field_value(payload: Any, field: str) -> Any:
    """Value of a field of a mapping or object, dotted for a nested one; None if anything on the way is missing."""
    value = payload
    for step in field.split("."):
        value = value.get(step) if isinstance(value, Mapping) else getattr(value, step, None)
        if value is None:
            return None
    return value


def key_name(field: str) -> str:
    """Name of the one field of the key schema: the last part of a dotted field."""
    return field.rpartition(".")[2]


def picking(decode: Callable[[bytes | None], Any], field: str, topic: str) -> Callable[[bytes | None], Any]:
    """A decoder of keys that gives the one field's value instead of the mapping around it."""

    def decode_field(data: bytes | None) -> Any:
        value = decode(data)
        if value is None:
            return None
        try:
            return value[field]
        except (KeyError, TypeError, IndexError) as error:
            raise DecodeError(
                f"the key was written without the field {field!r} of key=Key.field(...)", topic=topic
            ) from error

    return decode_field


def plain_key(key: Any) -> bytes:
    """The text of a key in UTF-8; bytes as they are.

    Text is as in coercion: `true` and `false`, ISO dates, the value of an enum member. Mappings, lists and objects of
    fields have no one text form, and equal keys must have equal bytes.

    Raises:
        EncodeError: The key has no text form.
    """
    if type(key) is str:
        text = key
    elif type(key) is int:
        text = str(key)
    elif isinstance(key, bytes | bytearray | memoryview):
        return bytes(key)
    elif as_mapping(key) is not None or isinstance(key, list | tuple | set | frozenset):
        raise EncodeError(
            f"a plain key is text, a number, a date or the like, not {kind_of(key)}; "
            "use Key.schema(...) for keys of several fields"
        )
    else:
        try:
            text = to_text(key)
        except Unfit as error:
            raise EncodeError(error.field_errors()) from None
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError("the key has half of a surrogate pair and no UTF-8 form") from error


def text_decoder(topic: str) -> Callable[[bytes | None], str | None]:
    """The reverse of `plain_key`, as far as there is one: keys come back as text. Raises DecodeError if not UTF-8."""

    def decode_text(data: bytes | None) -> str | None:
        if data is None:
            return None
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"the key is not UTF-8 at byte {error.start}, but is declared as Key.plain()", topic=topic
            ) from error

    return decode_text

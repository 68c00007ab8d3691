"""Backend `mock`: marks what passes through it instead of encoding it. For tests that need to see that they did.

Source: Deimos 2.6, schema backend `mock`. It differs where ours carries bytes: a mapping is told from text, when it is
read, by being a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.schemas.coercion import as_mapping
from deimos_async.schemas.protocol import CompiledSchema, SchemaField

__all__ = ["MockBackend", "MockSchema", "mock"]

_KEY = "key of "


class MockSchema:
    """Text becomes `payload-encoded` and `payload-decoded`, values of mappings get `encoded-` and `decoded-` in front.

    Nothing is checked and there are no fields (port `CompiledSchema`).
    """

    schema_type = ""

    def __init__(self, text: str) -> None:
        self.full_name = text
        self.text = text

    def coerce(self, payload: Any) -> Any:
        """The payload as it is."""
        return payload

    def validate(self, payload: Any) -> None:
        """Everything fits."""

    def encode(self, payload: Any) -> bytes:
        """`payload-encoded`, or JSON of the mapping with each value's text after `encoded-`."""
        fields = as_mapping(payload)
        if fields is None:
            return b"payload-encoded"
        return json.dumps({str(name): f"encoded-{value}" for name, value in fields.items()}).encode()

    def decode(self, data: bytes, offset: int = 0, writer: CompiledSchema | None = None) -> Any:
        """`payload-decoded`, or the JSON object with each value's text after `decoded-`."""
        fields = _json_object(data[offset:])
        return "payload-decoded" if fields is None else {name: f"decoded-{value}" for name, value in fields.items()}

    def decoder(self, writer: CompiledSchema | None = None) -> Callable[[bytes, int], Any]:
        """`decode`."""
        return self.decode

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """None."""
        return ()


class _MockKeySchema(MockSchema):
    """Keys of one field travel as JSON, so that they come back as they were."""

    def encode(self, payload: Any) -> bytes:
        try:
            return json.dumps(payload, sort_keys=True).encode()
        except (TypeError, ValueError) as error:
            raise EncodeError("keys of the backend 'mock' are what JSON can hold", schema=self.full_name) from error

    def decode(self, data: bytes, offset: int = 0, writer: CompiledSchema | None = None) -> Any:
        fields = _json_object(data[offset:])
        if fields is None:
            raise DecodeError("keys of the backend 'mock' are JSON objects", schema=self.full_name)
        return fields


class MockBackend:
    """See the module (port `SchemaBackend`)."""

    name = "mock"
    uses_registry = False
    uses_files = False
    supports_key_schemas = True
    mock = "mock"

    def compile(self, text: str, *, named: Mapping[str, str] | None = None, unknown_fields: str = "drop") -> MockSchema:
        """A schema of that name; what `key_schema` returned compiles to a key's."""
        return _MockKeySchema(text) if text.startswith(_KEY) else MockSchema(text)

    def key_schema(self, value_schema: CompiledSchema, field: str) -> str:
        """What `compile` takes for the key: nothing is checked, as there are no fields."""
        return f"{_KEY}{value_schema.full_name} by {field}"

    def missing_types(self, text: str) -> Sequence[str]:
        """None."""
        return ()


mock = MockBackend()


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

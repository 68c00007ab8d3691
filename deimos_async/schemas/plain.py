"""Backend `plain`: payloads are bytes already. No schema, no fields, nothing to check but the type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deimos_async.errors import ConfigurationError, EncodeError
from deimos_async.schemas.protocol import CompiledSchema, SchemaField

__all__ = ["PlainBackend", "PlainSchema", "plain"]


class PlainSchema:
    """Bytes in and out (port `CompiledSchema`)."""

    full_name = ""
    text = ""
    schema_type = ""

    def coerce(self, payload: Any) -> bytes:
        """Bytes from bytes, bytearray, memoryview, or text as UTF-8. Raises EncodeError for anything else."""
        if isinstance(payload, bytes):
            return payload
        if isinstance(payload, str):
            try:
                return payload.encode()
            except UnicodeEncodeError as error:
                raise EncodeError("the text has half of a surrogate pair and no UTF-8 form") from error
        if isinstance(payload, bytearray | memoryview):
            return bytes(payload)
        raise EncodeError(
            f"payloads without a schema are bytes or str, not {type(payload).__name__}; "
            "give json.dumps(...) of it, or declare the topic with schema="
        )

    def validate(self, payload: Any) -> None:
        """Raises EncodeError unless the payload is bytes or text with a UTF-8 form."""
        self.coerce(payload)

    def encode(self, payload: Any) -> bytes:
        """As `coerce`."""
        return self.coerce(payload)

    def decode(self, data: bytes, offset: int = 0, writer: CompiledSchema | None = None) -> bytes:
        """The bytes from `offset` on."""
        return data[offset:]

    def decoder(self, writer: CompiledSchema | None = None) -> Callable[[bytes, int], bytes]:
        """`decode`."""
        return self.decode

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """None."""
        return ()


class PlainBackend:
    """Payloads without a schema (port `SchemaBackend`)."""

    name = "plain"
    uses_registry = False
    uses_files = False
    supports_key_schemas = False
    mock = "plain"

    def compile(
        self, text: str, *, named: Mapping[str, str] | None = None, unknown_fields: str = "drop"
    ) -> PlainSchema:
        """The one schema there is, whatever the text."""
        return PlainSchema()

    def key_schema(self, value_schema: CompiledSchema, field: str) -> str:
        """Raises ConfigurationError: there are no fields that could be a key."""
        raise ConfigurationError(f"payloads of the backend 'plain' have no field {field!r}; use Key.plain()")

    def missing_types(self, text: str) -> Sequence[str]:
        """None."""
        return ()


plain = PlainBackend()

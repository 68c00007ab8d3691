"""The port to a schema language. Backends compile a schema once; what comes out are plain functions without I/O.

The registry's answers are fetched before and passed in, so the path of a message awaits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["NO_DEFAULT", "CompiledSchema", "RegisteredSchema", "SchemaBackend", "SchemaField", "SchemaReference"]


class _NoDefault:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NO_DEFAULT"

    def __bool__(self) -> bool:
        return False


NO_DEFAULT = _NoDefault()
"""Marks a field without a default, which is not the same as a default of null."""


@dataclass(frozen=True, slots=True)
class SchemaField:
    """One top-level field of a schema.

    `type` is the schema language's own description (for Avro the parsed JSON), `enum_values` the symbols of a direct
    or nullable enum, `default` the default or `NO_DEFAULT`.
    """

    name: str
    type: Any
    enum_values: tuple[str, ...] = ()
    default: Any = NO_DEFAULT
    doc: str | None = None


@dataclass(frozen=True, slots=True)
class SchemaReference:
    """A schema that another one builds on, in the registry's words."""

    name: str
    subject: str
    version: int


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema as a registry holds it."""

    id: int
    text: str
    schema_type: str = "AVRO"
    """`"AVRO"`, `"PROTOBUF"` or `"JSON"`."""
    references: tuple[SchemaReference, ...] = ()
    subject: str | None = None
    version: int | None = None


class CompiledSchema(Protocol):
    """One schema as functions. Immutable; may be shared by tasks and threads."""

    full_name: str
    """Full name, e.g. `com.acme.Order`; empty where the language has none."""
    text: str
    """What is registered: self-contained, for Avro canonical JSON with every named type inlined once."""
    schema_type: str
    """The registry's word: `AVRO`, `PROTOBUF`, `JSON`."""

    def coerce(self, payload: Any) -> Any:
        """A new payload made to fit: conversions done, defaults filled, unknown fields treated as configured.

        The argument is left as it is. Raises EncodeError with every field that cannot be made to fit.
        """

    def validate(self, payload: Any) -> None:
        """Check without converting anything. Raises EncodeError with every field that is wrong, unknown ones too."""

    def encode(self, payload: Any) -> bytes:
        """Bytes without framing, of a payload that `coerce` returned. Raises EncodeError."""

    def decode(self, data: bytes, offset: int = 0, writer: CompiledSchema | None = None) -> Any:
        """Value written in `data` from `offset` on. `writer`: schema that wrote it, if it is not this one.

        Raises DecodeError with the path where known.
        """

    def decoder(self, writer: CompiledSchema | None = None) -> Callable[[bytes, int], Any]:
        """`decode` for one writer with everything decided: (data, offset) -> value. For the path of a message."""

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """Top-level fields in the schema's order; empty where there are none."""


class SchemaBackend(Protocol):
    """One schema language in one manner of use. Stateless; chosen by name in `schema.backend`."""

    name: str
    uses_registry: bool
    """Whether bytes are framed in the Confluent format with an id from the registry."""
    uses_files: bool
    """Whether `schema=` names a file under `schema.path` (or a generated class)."""
    supports_key_schemas: bool
    """Whether `Key.field` makes a key schema and `Key.schema` names one."""
    mock: str
    """Name of the backend that stands in for it under `mock_backends()`."""

    def compile(
        self, text: str, *, named: Mapping[str, str] | None = None, unknown_fields: str = "drop"
    ) -> CompiledSchema:
        """Compile a schema.

        Args:
            text: The schema's text; may build on types that it does not define.
            named: Texts of those types by full name (already found: no I/O here).
            unknown_fields: `"drop"` or `"error"`, what `coerce` does with fields that the schema lacks.

        Raises SchemaError naming what is wrong and where.
        """

    def key_schema(self, value_schema: CompiledSchema, field: str) -> str:
        """Text of the key schema `<Schema>_key` with that one field. Raises ConfigurationError naming the field."""

    def missing_types(self, text: str) -> Sequence[str]:
        """Full names that the text uses and does not define, so that the caller can find them."""

"""An Avro schema as functions, in the plain binary encoding; what the three backends have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from functools import cached_property, lru_cache
from typing import Any, TypeVar
from uuid import UUID

from deimos_async.errors import DecodeError, EncodeError, FieldError, SchemaError
from deimos_async.schemas.avro_coercion import CoercionFactory
from deimos_async.schemas.avro_reading import BROKEN, Read, ReaderFactory, Unreadable, problem_of, resolves
from deimos_async.schemas.avro_source import read_source, write_source
from deimos_async.schemas.avro_types import Field, Node, parse_schema, schema_text, unwrap_nullable
from deimos_async.schemas.avro_writing import WriterFactory
from deimos_async.schemas.coercion import Unfit, epoch_micros
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema, SchemaField

__all__ = ["TOO_DEEP", "CompiledAvro", "Decoder", "compile_avro", "unreadable"]

Decoder = Callable[[bytes, int], Any]

TOO_DEEP = "nested too deeply, or it contains itself"


class CompiledAvro:
    """An Avro schema as functions, in the plain binary encoding. Immutable; may be shared by tasks and threads.

    Paths in errors are written `some_record.items[3].labels["key of a map"]`.

    Attributes:
        full_name: As `com.acme.Order`; empty for a schema that is no named type.
        text: Self-contained JSON of the schema.
        node: The parsed schema.
    """

    schema_type = "AVRO"

    def __init__(self, node: Node, *, unknown_fields: str) -> None:
        self.node = node
        self.full_name = node.name
        self.text = schema_text(node)
        self.unknown_fields = unknown_fields
        self._writers = WriterFactory()
        self._write = self._writers.make(node)
        self._coerce = CoercionFactory(self._writers, refuse_unknown=unknown_fields == "error").make(node)
        self._decoders = lru_cache(maxsize=64)(self._decoder_of)

    # Made when first used: most schemas of other writers are only ever resolved from.

    @cached_property
    def _encode(self) -> Callable[[Any], bytes]:
        return write_source(self._writers, self.node, self._encode_any) or self._encode_any

    @cached_property
    def _decode(self) -> Decoder:
        return self._decoder_of(self)

    def coerce(self, payload: Any) -> Any:
        """A new payload made to fit; see `avro_coercion` for the rules.

        Args:
            payload: A mapping, dataclass instance, pydantic model or object with `to_dict()`; for a schema that is no
                record whatever it describes.

        Raises:
            EncodeError: With every field that cannot be made to fit.
        """
        try:
            return self._coerce(payload)
        except Unfit as error:
            raise EncodeError(error.field_errors(), schema=self.full_name or None) from None
        except RecursionError as error:
            raise EncodeError(TOO_DEEP, schema=self.full_name or None) from error

    def validate(self, payload: Any) -> None:
        """Check without converting: types, ranges, absent fields (also those with a default) and unknown ones.

        Raises:
            EncodeError: With every field that is wrong.
        """
        self._binary(payload)

    def encode(self, payload: Any) -> bytes:
        """The binary encoding of a payload that `coerce` returned.

        Raises:
            EncodeError: The payload does not fit, which is checked again; with every field that is wrong.
        """
        return self._encode(payload)

    def _encode_any(self, payload: Any) -> bytes:
        return bytes(self._binary(payload))

    def _binary(self, payload: Any) -> bytearray:
        out = bytearray()
        try:
            self._write(payload, out)
        except Unfit as error:
            raise EncodeError(error.field_errors(), schema=self.full_name or None) from None
        except RecursionError as error:
            raise EncodeError(TOO_DEEP, schema=self.full_name or None) from error
        return out

    def decode(self, data: bytes, offset: int = 0, writer: CompiledSchema | None = None) -> Any:
        """The value written in `data` from `offset` to its end.

        Raises:
            DecodeError: The bytes end too early or late, are not what the writer's schema says, or do not resolve to
                this schema; with the path.
        """
        return self.decoder(writer)(data, offset)

    def decoder(self, writer: CompiledSchema | None = None) -> Decoder:
        """`decode` for one writer. None, or a writer with the same text: nothing needs to be resolved.

        Resolution is compiled here, so keep the function. Logical values come in the reader's types.

        Raises:
            DecodeError: The writer's schema has another name than this one and its aliases, or is no schema of Avro.
        """
        if writer is None or writer.text == self.text:
            return self._decode
        return self._decoders(writer)  # type: ignore[arg-type]  # compiled schemas are compared by identity

    def _decoder_of(self, writer: CompiledSchema) -> Decoder:
        factory = ReaderFactory()
        decode = self._decoding(self._reading(writer, factory))
        return read_source(factory, self._writer_node(writer), self.node, decode) or decode

    def _reading(self, writer: CompiledSchema, factory: ReaderFactory) -> Read:
        try:
            return factory.make_whole(self._writer_node(writer), self.node)
        except RecursionError as error:
            raise DecodeError("the writer's schema is nested too deeply", schema=self.full_name or None) from error

    def _decoding(self, read: Read, *, to_end: bool = True) -> Decoder:
        full_name = self.full_name or None

        def decode(data: bytes, offset: int = 0) -> Any:
            try:
                value, end = read(data, offset)
            except BROKEN as error:
                raise unreadable(error, full_name) from error
            except RecursionError as error:
                raise DecodeError(TOO_DEEP, schema=full_name) from error
            if end != len(data) and (to_end or end > len(data)):
                raise _trailing(len(data) - end, full_name)
            return value

        return decode

    def _writer_node(self, writer: CompiledSchema) -> Node:
        try:
            source = writer.node if isinstance(writer, CompiledAvro) else parse_schema(writer.text)
        except SchemaError as error:
            raise DecodeError(f"the writer's schema is no schema of Avro: {error}", schema=self.full_name) from error
        if not resolves(source, self.node):
            raise DecodeError(
                f"written with schema {source.label}, which is neither {self.node.label} nor one of its aliases",
                schema=self.full_name or None,
            )
        return source

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """Top-level fields, `type` and `default` as the schema's JSON has them. Empty for what is no record."""
        if self.node.kind != "record":
            return ()
        types = {entry["name"]: entry["type"] for entry in json.loads(self.text)["fields"]}
        return tuple(
            SchemaField(
                entry.name,
                types[entry.name],
                enum_values=unwrap_nullable(entry.node).symbols,
                default=entry.default,
                doc=entry.doc,
            )
            for entry in self.node.fields
        )

    def has_field(self, name: str) -> bool:
        """Whether the schema is a record with that field."""
        return self._field(name) is not None

    def _field(self, name: str) -> Field | None:
        return next((entry for entry in self.node.fields if entry.name == name), None)

    def automatic(self, name: str, now: datetime, new_id: Callable[[], UUID]) -> Any:
        """The value that fills a field `message_id` or `timestamp` which a payload lacks.

        A message id is a UUID, as text or UUID. A timestamp is ISO 8601 text, a datetime or date for
        logical types, and for a plain int or long whole seconds since the epoch, as coercion makes them of a datetime.
        Of a union the first branch counts that suits.

        Args:
            name: `message_id` or `timestamp`.
            now: Aware.
            new_id: Makes a message id, e.g. `uuid.uuid4`; called only where one is needed.

        Returns:
            The value, or `NO_DEFAULT` where the schema has no such field or its type does not suit.
        """
        entry = self._field(name)
        if entry is None:
            return NO_DEFAULT
        make = {"message_id": _message_id, "timestamp": _timestamp}.get(name)
        if make is None:
            return NO_DEFAULT
        for branch in entry.node.branches or (entry.node,):
            if (value := make(branch, now, new_id)) is not NO_DEFAULT:
                return value
        return NO_DEFAULT


def _message_id(node: Node, now: datetime, new_id: Callable[[], UUID]) -> Any:
    if node.logical is not None:
        return new_id() if node.logical.python is UUID else NO_DEFAULT
    return str(new_id()) if node.kind == "string" else NO_DEFAULT


def _timestamp(node: Node, now: datetime, new_id: Callable[[], UUID]) -> Any:
    if node.logical is not None:
        python, local = node.logical.group
        if python is date:
            return now.astimezone(UTC).date()
        if python is not datetime:
            return NO_DEFAULT
        moment = now.astimezone(UTC)
        return node.logical.coerce(moment.replace(tzinfo=None) if local else moment)
    if node.kind == "string":
        return now.isoformat()
    if node.kind not in ("int", "long"):
        return NO_DEFAULT
    nanos = str(node.extra.get("logicalType", "")).endswith("timestamp-nanos")
    return epoch_micros(now) * 1000 if nanos else epoch_micros(now) // 1_000_000


def unreadable(error: Exception, full_name: str | None) -> DecodeError:
    """What a reading function raised, for the caller."""
    path = error.path if isinstance(error, Unreadable) else ""
    return DecodeError([FieldError(path, problem_of(error))], schema=full_name)


def _trailing(count: int, full_name: str | None) -> DecodeError:
    return DecodeError(f"{count} bytes follow the value: it was written with another schema", schema=full_name)


_Compiled = TypeVar("_Compiled", bound=CompiledAvro)


def compile_avro(cls: type[_Compiled], text: str, named: Mapping[str, str], unknown_fields: str) -> _Compiled:
    """A compiled schema of that class. Raises SchemaError."""
    node = parse_schema(text, named)
    try:
        return cls(node, unknown_fields=unknown_fields)
    except RecursionError as error:
        raise SchemaError(f"schema {node.name}: nested too deeply") from error

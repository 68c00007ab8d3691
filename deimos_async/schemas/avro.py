"""Avro: three backends that compile a schema into functions.

`avro_schema_registry` gives the plain binary encoding (the Confluent frame is added around it), `avro_local` an object
container file of one record with the schema embedded, `avro_validation` JSON text that was validated, for tests. All
three coerce, validate and describe a schema in the same way.

Encoding is our own code and not fastavro's, since a union must be written with the branch that was chosen; so is
decoding, since resolution is decided once for a pair of schemas, and since bytes that nest deeply, or ask for endless
empty items, must not end the process (both do in fastavro 1.13). Tests compare both directions with fastavro.

One value does not come back as it was: a `float` has 32 bits, so 1.1 is read back as the nearest such number.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from deimos_async.errors import ConfigurationError, DecodeError, EncodeError, FieldError, SchemaError
from deimos_async.schemas.avro_coercion import CoercionFactory
from deimos_async.schemas.avro_json import JsonForm
from deimos_async.schemas.avro_reading import (
    BROKEN,
    Read,
    ReaderFactory,
    Unreadable,
    problem_of,
    read_bytes,
    read_long,
    resolves,
)
from deimos_async.schemas.avro_types import Field, Node, parse_schema, schema_text, undefined_types, unwrap_nullable
from deimos_async.schemas.avro_writing import WriterFactory, put_long
from deimos_async.schemas.coercion import Unfit, epoch_micros
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema, SchemaField

__all__ = ["AvroBackend", "CompiledAvro", "avro_local", "avro_schema_registry", "avro_validation"]

Decoder = Callable[[bytes, int], Any]

_TOO_DEEP = "nested too deeply, or it contains itself"


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
        self._decode = self._decoding(ReaderFactory().make(node, node))
        self._decoders = lru_cache(maxsize=64)(self._decoder_of)

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
            raise EncodeError(_TOO_DEEP, schema=self.full_name or None) from error

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
        return bytes(self._binary(payload))

    def _binary(self, payload: Any) -> bytearray:
        out = bytearray()
        try:
            self._write(payload, out)
        except Unfit as error:
            raise EncodeError(error.field_errors(), schema=self.full_name or None) from None
        except RecursionError as error:
            raise EncodeError(_TOO_DEEP, schema=self.full_name or None) from error
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
        return self._decoding(self._reading(writer))

    def _reading(self, writer: CompiledSchema) -> Read:
        try:
            return ReaderFactory().make(self._writer_node(writer), self.node)
        except RecursionError as error:
            raise DecodeError("the writer's schema is nested too deeply", schema=self.full_name or None) from error

    def _decoding(self, read: Read, *, to_end: bool = True) -> Decoder:
        full_name = self.full_name or None

        def decode(data: bytes, offset: int = 0) -> Any:
            try:
                value, end = read(data, offset)
            except BROKEN as error:
                raise _unreadable(error, full_name) from error
            except RecursionError as error:
                raise DecodeError(_TOO_DEEP, schema=full_name) from error
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

    def automatic(self, name: str, now: datetime) -> Any:
        """The value that fills a field `message_id` or `timestamp` which a payload lacks.

        A message id is a random UUID (version 4), as text or UUID. A timestamp is ISO 8601 text, a datetime or date for
        logical types, and for a plain int or long whole seconds since the epoch, as coercion makes them of a datetime.
        Of a union the first branch counts that suits.

        Args:
            name: `message_id` or `timestamp`.
            now: Aware.

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
            if (value := make(branch, now)) is not NO_DEFAULT:
                return value
        return NO_DEFAULT


def _message_id(node: Node, now: datetime) -> Any:
    if node.logical is not None:
        return uuid4() if node.logical.python is UUID else NO_DEFAULT
    return str(uuid4()) if node.kind == "string" else NO_DEFAULT


def _timestamp(node: Node, now: datetime) -> Any:
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


def _unreadable(error: Exception, full_name: str | None) -> DecodeError:
    path = error.path if isinstance(error, Unreadable) else ""
    return DecodeError([FieldError(path, problem_of(error))], schema=full_name)


def _trailing(count: int, full_name: str | None) -> DecodeError:
    return DecodeError(f"{count} bytes follow the value: it was written with another schema", schema=full_name)


_MAGIC = b"Obj\x01"
_HEADER = parse_schema('{"type": "map", "values": "bytes"}')
_SYNC_BYTES = 16
_MOST_INFLATED_BYTES = 64 * 1024 * 1024


class CompiledAvroContainer(CompiledAvro):
    """The same schema, in object container files of one record, written without compression.

    Files of other programs are read, too, also deflated ones; of several records the first is the message.
    Source: Apache Avro specification 1.12, "Object Container Files".
    """

    def __init__(self, node: Node, *, unknown_fields: str) -> None:
        super().__init__(node, unknown_fields=unknown_fields)
        header = bytearray(_MAGIC)
        metadata = {"avro.codec": b"null", "avro.schema": self.text.encode()}
        WriterFactory().make(_HEADER)(metadata, header)
        self._header = bytes(header)
        self._read_metadata = ReaderFactory().make(_HEADER, _HEADER)
        self._by_schema = lru_cache(maxsize=64)(self._decoders_of_text)

    def encode(self, payload: Any) -> bytes:
        """A container file with the payload as its only record. Raises EncodeError."""
        body = self._binary(payload)
        out = bytearray(self._header)
        sync = os.urandom(_SYNC_BYTES)
        out += sync
        put_long(out, 1)
        put_long(out, len(body))
        out += body
        out += sync
        return bytes(out)

    def decoder(self, writer: CompiledSchema | None = None) -> Decoder:
        """`decode`; the writer's schema is the one in the file, and `writer` is not looked at."""
        return self._decode_file

    def _decoders_of_text(self, text: bytes) -> tuple[Decoder, Decoder]:
        try:
            source = _compiled(CompiledAvro, text.decode(), {}, "drop")
        except (SchemaError, ValueError) as error:
            raise DecodeError(
                f"the schema in the file cannot be used: {error}", schema=self.full_name or None
            ) from error
        read = self._reading(source)
        return self._decoding(read), self._decoding(read, to_end=False)

    def _decode_file(self, data: bytes, offset: int) -> Any:
        full_name = self.full_name or None
        try:
            if data[offset : offset + 4] != _MAGIC:
                raise Unreadable("no object container file: it does not start with 'Obj' and 1")
            metadata, position = self._read_metadata(data, offset + 4)
            sync, position = data[position : position + _SYNC_BYTES], position + _SYNC_BYTES
            codec = metadata.get("avro.codec", b"null")
            if codec not in (b"null", b"deflate"):
                raise Unreadable(f"the file's codec {codec[:20]!r} is not supported, only null and deflate are")
            first: tuple[int, bytes] | None = None
            while position < len(data):
                count, position = read_long(data, position)
                block, position = read_bytes(data, position)
                if data[position : position + _SYNC_BYTES] != sync or count < 0:
                    raise Unreadable("a block of the file does not end with its mark")
                position += _SYNC_BYTES
                first = first or ((count, block) if count else None)
            if first is None:
                raise Unreadable("the file has no record")
        except BROKEN as error:
            raise _unreadable(error, full_name) from error
        whole, beginning = self._by_schema(metadata.get("avro.schema", b""))
        count, block = first
        return (whole if count == 1 else beginning)(_inflated(block, full_name) if codec == b"deflate" else block, 0)


def _inflated(block: bytes, full_name: str | None) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(block, _MOST_INFLATED_BYTES)
    except zlib.error as error:
        raise DecodeError("a block of the file cannot be inflated", schema=full_name) from error
    if not inflate.eof:
        raise DecodeError(
            f"a block of the file ends too early, or has more than {_MOST_INFLATED_BYTES} bytes", schema=full_name
        )
    return data


class CompiledAvroJson(CompiledAvro):
    """The same schema, carried as JSON text: see `avro_json` for its form. The writer's schema is not needed."""

    def __init__(self, node: Node, *, unknown_fields: str) -> None:
        super().__init__(node, unknown_fields=unknown_fields)
        self._form = JsonForm(self._writers)

    def encode(self, payload: Any) -> bytes:
        """Compact JSON of a payload, which is validated first. Raises EncodeError."""
        self._binary(payload)
        form = self._form.dump(self.node, payload)
        return json.dumps(form, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    def decoder(self, writer: CompiledSchema | None = None) -> Decoder:
        """`decode`; absent fields take their defaults, unknown ones are ignored, and `writer` is not looked at."""
        return self._decode_json

    def _decode_json(self, data: bytes, offset: int) -> Any:
        full_name = self.full_name or None
        try:
            return self._form.load(self.node, json.loads(data[offset:]))
        except Unfit as error:
            raise DecodeError(error.field_errors(), schema=full_name) from None
        except ValueError as error:
            raise DecodeError(f"not JSON: {type(error).__name__}", schema=full_name) from error
        except RecursionError as error:
            raise DecodeError(_TOO_DEEP, schema=full_name) from error


def _compiled(cls: type[CompiledAvro], text: str, named: Mapping[str, str], unknown_fields: str) -> CompiledAvro:
    node = parse_schema(text, named)
    try:
        return cls(node, unknown_fields=unknown_fields)
    except RecursionError as error:
        raise SchemaError(f"schema {node.name}: nested too deeply") from error


class AvroBackend:
    """One of the three manners of Avro; stateless. Implements `SchemaBackend`."""

    uses_files = True
    supports_key_schemas = True
    mock = "avro_validation"

    def __init__(self, name: str, compiled: type[CompiledAvro], *, uses_registry: bool = False) -> None:
        self.name = name
        self.uses_registry = uses_registry
        self._compiled = compiled

    def compile(
        self, text: str, *, named: Mapping[str, str] | None = None, unknown_fields: str = "drop"
    ) -> CompiledAvro:
        """Compile a schema; types of other files are drawn in from `named`.

        Raises:
            SchemaError: Not a schema, a type that is defined nowhere, a default that does not fit.
            ValueError: `unknown_fields` is neither `"drop"` nor `"error"`.
        """
        if unknown_fields not in ("drop", "error"):
            raise ValueError(f"unknown_fields is 'drop' or 'error', not {unknown_fields!r}")
        return _compiled(self._compiled, text, named or {}, unknown_fields)

    def missing_types(self, text: str) -> Sequence[str]:
        """Full names that the text uses and does not define, in order of first use. Raises SchemaError."""
        return undefined_types(text)

    def key_schema(self, value_schema: CompiledSchema, field: str) -> str:
        """Text of the record `<Name>_key` in the value's namespace, with the one field.

        The field's whole type is copied, logical types and enums included; a nullable field gives a key that is not
        null. A dotted name walks nested records, and the key's field has the last part's name.

        Raises:
            ConfigurationError: No such field, or a type that makes no key: records, arrays, maps, floats (equal
                numbers need not have equal bytes), null, unions of several types.

        Source: Deimos 2.6 `generate_key_schema`, which copies the type's name only.
        """
        node = value_schema.node if isinstance(value_schema, CompiledAvro) else parse_schema(value_schema.text)
        namespace, _, name = node.name.rpartition(".")
        found = _key_field(node, field)
        key = Node(
            "record",
            name=f"{namespace}.{name}_key" if namespace else f"{name}_key",
            fields=(Field(found.name, unwrap_nullable(found.node)),),
            extra={"doc": f"Key for {node.name} - autogenerated by Deimos"},
        )
        return schema_text(key)


_NO_KEYS = frozenset({"record", "array", "map", "float", "double", "null", "union"})


def _key_field(value: Node, field: str) -> Field:
    where = f"field {field!r} of key=Key.field({field!r})"
    if value.kind != "record":
        raise ConfigurationError(f"{where}: the schema {value.label} is no record and has no fields")
    record, found = value, None
    for part in field.split("."):
        if found is not None:
            record = unwrap_nullable(found.node)
        found = next((entry for entry in record.fields if entry.name == part), None)
        if found is None:
            names = [entry.name for entry in record.fields]
            close = get_close_matches(part, names, n=3) or names[:10]
            known = f"did you mean {' or '.join(close)}?" if close else "it has no fields"
            raise ConfigurationError(f"{where} is not in {value.name}: {record.label} has no {part!r}; {known}")
    assert found is not None
    node = unwrap_nullable(found.node)
    if node.kind in _NO_KEYS:
        raise ConfigurationError(
            f"{where} in {value.name} is of type {node.label}, which makes no key; "
            "use an integer, string, boolean, bytes, fixed or enum, or Key.schema(...)"
        )
    return found


avro_schema_registry = AvroBackend("avro_schema_registry", CompiledAvro, uses_registry=True)
"""Plain binary bodies, for the Confluent format."""
avro_local = AvroBackend("avro_local", CompiledAvroContainer)
"""Object container files, which carry their schema."""
avro_validation = AvroBackend("avro_validation", CompiledAvroJson)
"""Validated JSON, for tests."""

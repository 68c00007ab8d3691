"""The three backends: container files, JSON text, key schemas, automatic fields."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import fastavro
import pytest

from deimos_async.errors import ConfigurationError, DecodeError, EncodeError
from deimos_async.schemas.avro import (
    AvroBackend,
    CompiledAvro,
    avro_local,
    avro_schema_registry,
    avro_validation,
)
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema, SchemaBackend

ALL = [avro_schema_registry, avro_local, avro_validation]
SIMPLE = {
    "type": "record",
    "name": "MySchema",
    "namespace": "com.acme",
    "fields": [{"name": "test_id", "type": "string"}, {"name": "some_int", "type": "int"}],
}
VALUE = {"test_id": "some string", "some_int": 3}


def compiled(schema: Any, backend: AvroBackend) -> CompiledAvro:
    return backend.compile(json.dumps(schema))


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.name)
def test_backend_says_what_it_can_do(backend: AvroBackend) -> None:
    port: SchemaBackend = backend
    schema: CompiledSchema = compiled(SIMPLE, backend)
    assert port.uses_registry is (port.name == "avro_schema_registry")
    assert port.uses_files
    assert port.supports_key_schemas
    assert port.mock == "avro_validation"
    assert schema.schema_type == "AVRO"


@pytest.mark.parametrize("backend", ALL, ids=lambda backend: backend.name)
def test_payload_that_does_not_fit_is_never_encoded(backend: AvroBackend) -> None:
    for payload in ({"test_id": 1, "some_int": 3}, {"test_id": "x"}, VALUE | {"odd": 1}, None, object()):
        with pytest.raises(EncodeError):
            compiled(SIMPLE, backend).encode(payload)


# --- container files --------------------------------------------------------------------------------------------------


def test_local_bytes_are_a_container_file_with_the_schema() -> None:
    schema = compiled(SIMPLE, avro_local)
    data = schema.encode(VALUE)
    assert data.startswith(b"Obj\x01")
    reader = fastavro.reader(io.BytesIO(data))
    assert list(reader) == [VALUE]
    assert reader.metadata["avro.codec"] == "null"
    assert json.loads(reader.metadata["avro.schema"]) == json.loads(schema.text)


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_container_files_of_other_programs_are_read(codec: str) -> None:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(SIMPLE, {}), [VALUE], codec=codec)
    assert compiled(SIMPLE, avro_local).decode(out.getvalue()) == VALUE


def test_first_record_of_a_container_file_is_the_message() -> None:
    out = io.BytesIO()
    records = [VALUE | {"some_int": number} for number in range(5000)]  # more than one block
    fastavro.writer(out, fastavro.parse_schema(SIMPLE, {}), records)
    assert compiled(SIMPLE, avro_local).decode(out.getvalue()) == VALUE | {"some_int": 0}


def test_container_file_is_read_with_its_own_schema() -> None:
    later = SIMPLE | {"fields": [*SIMPLE["fields"], {"name": "added", "type": "int", "default": 1}]}
    data = compiled(SIMPLE, avro_local).encode(VALUE)
    assert compiled(later, avro_local).decode(data) == VALUE | {"added": 1}
    with pytest.raises(DecodeError, match="MySchema"):
        compiled(SIMPLE | {"name": "Other"}, avro_local).decode(data)


def _container(**changes: Any) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(changes.get("schema", SIMPLE), {}), changes.get("records", [VALUE]))
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Obj\x01",
        b"Obj\x02" + _container()[4:],
        _container(records=[]),
        _container()[:-1],
        _container() + b"x",
        _container().replace(b"null", b"zstd", 1),
        _container().replace(b'"string"', b'"strung"', 1),
        _container()[:-20] + b"\x00" * 20,
    ],
    ids=["empty", "magic alone", "other magic", "no record", "cut", "longer", "codec", "schema", "mark"],
)
def test_damaged_container_file_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        compiled(SIMPLE, avro_local).decode(data)


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_validation_bytes_are_the_payload_as_json() -> None:
    schema = compiled(SIMPLE, avro_validation)
    assert schema.encode(VALUE) == b'{"test_id":"some string","some_int":3}'
    assert schema.decode(b'{"test_id": "some string", "some_int": 3}') == VALUE


def test_json_form_is_readable_and_keeps_types() -> None:
    fields = {
        "raw": ("bytes", b"\x00\xff", "\x00\u00ff"),
        "day": ({"type": "int", "logicalType": "date"}, date(2026, 11, 24), "2026-11-24"),
        "at": (
            {"type": "long", "logicalType": "timestamp-millis"},
            datetime(2026, 11, 24, 12, 0, 0, 5000, UTC),
            "2026-11-24T12:00:00.005000+00:00",
        ),
        "money": (
            {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 7},
            Decimal("0.0000001"),
            "0.0000001",
        ),
        "id": ({"type": "string", "logicalType": "uuid"}, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        "maybe": (["null", "bytes"], b"a", "a"),
        "either": (["null", "bytes", "string"], b"a", {"bytes": "a"}),
        "nothing": (["null", "bytes", "string"], None, None),
        "limit": ("double", float("-inf"), "-Infinity"),
    }
    schema = compiled(
        {
            "type": "record",
            "name": "Rec",
            "fields": [{"name": name, "type": kind} for name, (kind, *_) in fields.items()],
        },
        avro_validation,
    )
    payload = {name: value for name, (_, value, _) in fields.items()}
    data = schema.encode(payload)
    assert json.loads(data) == {name: form for name, (*_, form) in fields.items()}
    decoded = schema.decode(data)
    assert decoded == payload
    assert [type(value) for value in decoded.values()] == [type(value) for value in payload.values()]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"\xff", ""),
        (b'{"test_id": "x"}', "some_int"),
        (b'{"test_id": 5, "some_int": 3}', "test_id"),
        (b'{"test_id": "x", "some_int": 3.5}', "some_int"),
        (b'{"test_id": "x", "some_int": 99999999999}', "some_int"),
        (b"[" * 100_000, ""),
    ],
)
def test_json_that_does_not_fit_is_a_decode_error(data: bytes, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        compiled(SIMPLE, avro_validation).decode(data)
    assert caught.value.path == path


def test_json_of_another_version_is_read() -> None:
    later = SIMPLE | {"fields": [*SIMPLE["fields"], {"name": "added", "type": "int", "default": 1}]}
    assert compiled(later, avro_validation).decode(compiled(SIMPLE, avro_validation).encode(VALUE)) == VALUE | {
        "added": 1
    }
    assert (
        compiled(SIMPLE, avro_validation).decode(compiled(later, avro_validation).encode(VALUE | {"added": 2})) == VALUE
    )


# --- key schemas ------------------------------------------------------------------------------------------------------

STATUS = {"type": "enum", "name": "Status", "namespace": "com.other", "symbols": ["A", "B"]}
ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "com.acme",
    "fields": [
        {"name": "order_id", "type": "long"},
        {"name": "maybe_id", "type": ["null", "string"], "default": None},
        {"name": "uid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "price", "type": "double"},
        {"name": "either", "type": ["null", "int", "string"]},
        {"name": "first", "type": STATUS},
        {"name": "status", "type": "com.other.Status"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {
            "name": "buyer",
            "type": ["null", {"type": "record", "name": "Buyer", "fields": [{"name": "buyer_id", "type": "int"}]}],
        },
    ],
}


@pytest.mark.parametrize(
    ("field", "name", "kind"),
    [
        ("order_id", "order_id", "long"),
        ("maybe_id", "maybe_id", "string"),
        ("uid", "uid", {"type": "string", "logicalType": "uuid"}),
        ("status", "status", STATUS),
        ("buyer.buyer_id", "buyer_id", "int"),
    ],
)
def test_key_schema_has_the_whole_type_of_the_field(field: str, name: str, kind: Any) -> None:
    text = avro_schema_registry.key_schema(compiled(ORDER, avro_schema_registry), field)
    assert json.loads(text) == {
        "type": "record",
        "name": "Order_key",
        "namespace": "com.acme",
        "doc": "Key for com.acme.Order - autogenerated by Deimos",
        "fields": [{"name": name, "type": kind}],
    }
    assert avro_schema_registry.compile(text).full_name == "com.acme.Order_key"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("order_ids", "order_id"),
        ("zzz", "maybe_id"),
        ("price", "double"),
        ("either", "union"),
        ("tags", "array"),
        ("buyer", "Buyer"),
        ("buyer.id", "buyer_id"),
        ("order_id.x", "no fields"),
    ],
)
def test_field_that_makes_no_key_is_refused_by_name(field: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        avro_local.key_schema(compiled(ORDER, avro_local), field)
    assert field in str(caught.value)
    assert "com.acme.Order" in str(caught.value)
    assert words in str(caught.value)


def test_schema_that_is_no_record_makes_no_key() -> None:
    with pytest.raises(ConfigurationError, match="no record"):
        avro_local.key_schema(compiled("string", avro_local), "a")


# --- automatic fields -------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 24, 12, 30, 0, 123_456, tzinfo=UTC)


def automatic(name: str, kind: Any) -> Any:
    schema = compiled({"type": "record", "name": "R", "fields": [{"name": name, "type": kind}]}, avro_validation)
    value = schema.automatic(name, NOW, uuid4)
    if value is not NO_DEFAULT:
        schema.encode(schema.coerce({name: value}))
    return value


def logical(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "logicalType": name}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("string", "2026-11-24T12:30:00.123456+00:00"),
        (["null", "string"], "2026-11-24T12:30:00.123456+00:00"),
        ("long", 1795523400),
        ("int", 1795523400),
        (logical("long", "timestamp-millis"), NOW.replace(microsecond=123_000)),
        (["null", logical("long", "timestamp-micros")], NOW),
        (logical("long", "timestamp-nanos"), 1795523400123456000),
        (logical("long", "local-timestamp-micros"), NOW.replace(tzinfo=None)),
        (logical("int", "date"), date(2026, 11, 24)),
        ("double", NO_DEFAULT),
        ("null", NO_DEFAULT),
        (logical("int", "time-millis"), NO_DEFAULT),
    ],
)
def test_timestamp_is_filled_by_the_type_of_its_field(kind: Any, expected: Any) -> None:
    assert automatic("timestamp", kind) == expected


@pytest.mark.parametrize(
    ("kind", "python"),
    [
        ("string", str),
        (["null", "string"], str),
        (logical("string", "uuid"), UUID),
        ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, UUID),
    ],
)
def test_message_id_is_a_new_random_uuid_each_time(kind: Any, python: type) -> None:
    first, second = automatic("message_id", kind), automatic("message_id", kind)
    assert type(first) is python
    assert UUID(str(first)).version == 4
    assert first != second


@pytest.mark.parametrize("kind", ["long", "bytes", {"type": "array", "items": "string"}])
def test_message_id_of_another_type_is_not_filled(kind: Any) -> None:
    assert automatic("message_id", kind) is NO_DEFAULT


def test_field_that_the_schema_lacks_is_not_filled() -> None:
    schema = compiled(SIMPLE, avro_validation)
    assert schema.automatic("timestamp", NOW, uuid4) is NO_DEFAULT
    assert schema.automatic("test_id", NOW, uuid4) is NO_DEFAULT
    assert schema.has_field("test_id")
    assert not schema.has_field("timestamp")

"""Bytes: against known ones, against fastavro, and hostile ones."""

from __future__ import annotations

import io
import json
import math
import random
import string
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import pytest

from deimos_async.errors import DecodeError
from deimos_async.schemas.avro import (
    AvroBackend,
    CompiledAvro,
    avro_local,
    avro_schema_registry,
    avro_validation,
)


def compiled(schema: Any, backend: AvroBackend = avro_schema_registry) -> CompiledAvro:
    return backend.compile(json.dumps(schema))


def logical(kind: str, logical_name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": logical_name, **more}


NESTED = {"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "b", "type": "string"}]}


@pytest.mark.parametrize(
    ("schema", "value", "golden"),
    [
        ("null", None, ""),
        ("boolean", True, "01"),
        ("int", 0, "00"),
        ("int", -1, "01"),
        ("int", 1, "02"),
        ("int", -64, "7f"),
        ("int", 64, "8001"),
        ("int", 2**31 - 1, "feffffff0f"),
        ("long", -(2**63), "ffffffffffffffffff01"),
        ("float", 1.5, "0000c03f"),
        ("double", -2.0, "00000000000000c0"),
        ("bytes", b"\x01\xff", "0401ff"),
        ("string", "foo", "06666f6f"),  # the specification's example
        ("string", "é", "04c3a9"),
        (NESTED, {"a": 27, "b": "foo"}, "3606666f6f"),  # the specification's example
        ({"type": "array", "items": "long"}, [3, 27], "04063600"),  # the specification's example
        ({"type": "array", "items": "long"}, [], "00"),
        ({"type": "map", "values": "int"}, {"a": 1}, "0202610200"),
        (["null", "string"], None, "00"),
        (["null", "string"], "a", "020261"),  # the specification's example
        ({"type": "enum", "name": "E", "symbols": ["A", "B", "C", "D"]}, "D", "06"),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab", "6162"),
        (logical("int", "date"), date(1970, 1, 2), "02"),
        (logical("int", "date"), date(1969, 12, 31), "01"),
        (logical("int", "time-millis"), time(0, 0, 1), "d00f"),
        (logical("long", "time-micros"), time(0, 0, 0, 1), "02"),
        (logical("long", "timestamp-millis"), datetime(1970, 1, 1, 0, 0, 0, 1000, UTC), "02"),
        (logical("long", "timestamp-millis"), datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC), "01"),
        (logical("long", "timestamp-micros"), datetime(1970, 1, 1, 0, 0, 0, 1, UTC), "02"),
        (logical("long", "local-timestamp-millis"), datetime(1970, 1, 1, 0, 0, 0, 1000), "02"),  # noqa: DTZ001
        (logical("bytes", "decimal", precision=4, scale=2), Decimal("1.00"), "0264"),
        (logical("bytes", "decimal", precision=4, scale=2), Decimal("-1.28"), "0280"),  # shortest two's complement
        (logical("bytes", "decimal", precision=4, scale=2), Decimal("1.28"), "040080"),
        (logical("fixed", "decimal", name="D", size=3, precision=4, scale=2), Decimal("-0.01"), "ffffff"),
        (logical("string", "uuid"), UUID(int=1), "48" + b"00000000-0000-0000-0000-000000000001".hex()),
        (logical("fixed", "uuid", name="U", size=16), UUID(int=1), "00" * 15 + "01"),
    ],
)
def test_bytes_are_the_known_ones(schema: Any, value: Any, golden: str) -> None:
    subject = compiled(schema)
    assert subject.encode(subject.coerce(value)).hex() == golden
    decoded = subject.decode(bytes.fromhex(golden))
    assert decoded == value
    assert type(decoded) is type(value)


def test_offset_is_where_the_value_begins() -> None:
    assert compiled("int").decode(b"\x00\x00\x00\x02", 3) == 1


# --- random payloads --------------------------------------------------------------------------------------------------

EVERYTHING = {
    "type": "record",
    "name": "Everything",
    "namespace": "com.acme",
    "fields": [
        {"name": name, "type": kind}
        for name, kind in {
            "flag": "boolean",
            "small": "int",
            "large": "long",
            "single": "float",
            "double": "double",
            "text": "string",
            "raw": "bytes",
            "note": ["null", "string"],
            "colour": {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN", "BLUE"]},
            "hash": {"type": "fixed", "name": "Hash", "size": 5},
            "day": logical("int", "date"),
            "clock": logical("int", "time-millis"),
            "fine": logical("long", "time-micros"),
            "at": logical("long", "timestamp-millis"),
            "exact": logical("long", "timestamp-micros"),
            "wall": logical("long", "local-timestamp-micros"),
            "money": logical("bytes", "decimal", precision=12, scale=3),
            "rate": logical("fixed", "decimal", name="Rate", size=6, precision=12, scale=5),
            "id": logical("string", "uuid"),
            "tree": {
                "type": "record",
                "name": "Tree",
                "fields": [
                    {"name": "label", "type": "string"},
                    {"name": "children", "type": {"type": "array", "items": "Tree"}},
                ],
            },
            "counts": {"type": "map", "values": ["null", "long"]},
            "any": [
                "null",
                "boolean",
                "long",
                "double",
                "string",
                "bytes",
                {"type": "array", "items": "int"},
                "Tree",
                {
                    "type": "record",
                    "name": "Pair",
                    "fields": [{"name": "x", "type": "int"}, {"name": "y", "type": "int"}],
                },
                logical("fixed", "decimal", name="Small", size=2, precision=3, scale=1),
            ],
            "dates": {"type": "array", "items": ["null", logical("int", "date")]},
        }.items()
    ],
}


def random_value(kind: Any, names: dict[str, Any], pick: random.Random, depth: int = 0) -> Any:
    """A value that decoding could give."""
    if isinstance(kind, list):
        return random_value(pick.choice(kind), names, pick, depth)
    if isinstance(kind, str) and kind in names:
        return random_value(names[kind], names, pick, depth)
    name = kind.get("logicalType") if isinstance(kind, dict) else None
    base = kind["type"] if isinstance(kind, dict) else kind
    if base in ("record", "enum", "fixed"):
        names[kind["name"]] = kind
    if name is not None:
        return _random_logical(name, kind, pick)
    many = range(pick.randrange(0, 4) if depth < 3 else 0)
    makers: dict[str, Callable[[], Any]] = {
        "null": lambda: None,
        "boolean": lambda: pick.random() < 0.5,
        "int": lambda: pick.choice([0, -1, 63, 64, -65, pick.randrange(-(2**31), 2**31)]),
        "long": lambda: pick.choice([0, 2**31, -(2**63), 2**63 - 1, pick.randrange(-(2**63), 2**63)]),
        "float": lambda: pick.choice([0.0, 1.5, -0.375, math.inf, float(pick.randrange(2**20))]),
        "double": lambda: pick.choice([pick.random(), 1e308, -1e-300, math.inf]),
        "string": lambda: "".join(pick.choices(string.ascii_letters + "äß漢😀\x00", k=pick.choice([0, 3, 64, 200]))),
        "bytes": lambda: pick.randbytes(pick.choice([0, 1, 70])),
        "enum": lambda: pick.choice(kind["symbols"]),
        "fixed": lambda: pick.randbytes(kind["size"]),
        "array": lambda: [random_value(kind["items"], names, pick, depth + 1) for _ in many],
        "map": lambda: {f"key {n}": random_value(kind["values"], names, pick, depth + 1) for n in many},
        "record": lambda: {
            entry["name"]: random_value(entry["type"], names, pick, depth + 1) for entry in kind["fields"]
        },
    }
    return makers[base]()


def _random_logical(name: str, kind: dict[str, Any], pick: random.Random) -> Any:
    moment = datetime(1, 1, 2, tzinfo=UTC) + timedelta(
        days=pick.randrange(3_650_000), seconds=pick.randrange(86_400), milliseconds=pick.randrange(1000)
    )
    if name == "decimal":
        digits = 10 ** kind["precision"] - 1
        return Decimal(pick.randint(-digits, digits)).scaleb(-kind["scale"])
    if name == "uuid":
        return UUID(int=pick.getrandbits(128))
    if name == "date":
        return moment.date()
    if name.startswith("time-"):
        return moment.time()
    return moment.replace(tzinfo=None) if name.startswith("local") else moment


def payloads(count: int, seed: int) -> list[Any]:
    pick = random.Random(seed)
    return [random_value(EVERYTHING, {}, pick) for _ in range(count)]


@pytest.mark.parametrize(
    "backend", [avro_schema_registry, avro_local, avro_validation], ids=lambda backend: backend.name
)
def test_random_payloads_come_back_as_they_were(backend: AvroBackend) -> None:
    schema = compiled(EVERYTHING, backend)
    for payload in payloads(150, seed=1):
        fitted = schema.coerce(payload)
        assert fitted == payload
        schema.validate(fitted)
        decoded = schema.decode(schema.encode(fitted))
        assert decoded == fitted
        assert repr(decoded) == repr(fitted)  # the same Python types, too


def loosened(value: Any) -> Any:
    """The same payload as a careless producer might give it: numbers and dates as text, tuples for lists."""
    if isinstance(value, dict):
        return {key: loosened(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(loosened(item) for item in value)
    if isinstance(value, bytes):
        return bytearray(value)
    if isinstance(value, bool) or value is None or (isinstance(value, float) and math.isinf(value)):
        return value
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)


def test_random_payloads_in_looser_forms_are_coerced_to_the_same() -> None:
    schema = compiled(EVERYTHING)
    for payload in payloads(150, seed=7):
        loose = loosened(payload)
        loose["any"] = payload["any"]  # text would be text there
        assert schema.coerce(loose) == payload


def test_fastavro_reads_what_we_write() -> None:
    schema, parsed = compiled(EVERYTHING), fastavro.parse_schema(EVERYTHING, {})
    for payload in payloads(150, seed=2):
        data = io.BytesIO(schema.encode(payload))
        assert fastavro.schemaless_reader(data, parsed, None) == payload
        assert not data.read()


def test_we_read_what_fastavro_writes() -> None:
    schema, parsed = compiled(EVERYTHING), fastavro.parse_schema(EVERYTHING, {})
    for payload in payloads(150, seed=3):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, payload)
        assert schema.decode(out.getvalue()) == payload


def test_bytes_are_those_of_fastavro_where_nothing_is_left_open() -> None:
    kinds = ("boolean", "int", "long", "float", "double", "string", "bytes")
    schema = {"type": "record", "name": "Flat", "fields": [{"name": kind, "type": ["null", kind]} for kind in kinds]}
    subject, parsed, pick = compiled(schema), fastavro.parse_schema(schema, {}), random.Random(4)
    for _ in range(200):
        payload = random_value(schema, {}, pick)
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, payload)
        assert subject.encode(subject.coerce(payload)) == out.getvalue()


def test_float_is_read_back_as_the_nearest_number_of_32_bits() -> None:
    schema = compiled("float")
    once = schema.decode(schema.encode(schema.coerce(1.1)))
    assert once == pytest.approx(1.1, rel=1e-7)
    assert schema.decode(schema.encode(once)) == once


def test_decimals_are_not_rounded_to_the_precision_or_to_any_context() -> None:
    schema = compiled(logical("bytes", "decimal", precision=40, scale=2))
    value = Decimal("12345678901234567890123456789012345678.12")
    assert schema.decode(schema.encode(schema.coerce(value))) == value
    # another program may have written more digits than it declared
    narrow = compiled(logical("bytes", "decimal", precision=2, scale=0))
    assert narrow.decode(b"\x04\x7f\xff") == Decimal(32767)


# --- broken and hostile bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ("int", ""),
        ("int", "80"),
        ("int", "feffffffff0f"),  # more than 32 bits
        ("long", "ffffffffffffffffffffff01"),  # more than 64 bits
        ("long", "ffffffffffffffffff03"),  # 65 bits in ten bytes
        ("boolean", ""),
        ("boolean", "02"),
        ("float", "0000"),
        ("double", "00000000000000"),
        ("string", "06666f"),
        ("string", "03"),  # negative length
        ("string", "04fffe"),  # not UTF-8
        ("bytes", "01"),
        ("bytes", "feffffffffffffffff01"),
        ({"type": "fixed", "name": "F", "size": 2}, "61"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, "01"),  # index -1
        ({"type": "enum", "name": "E", "symbols": ["A"]}, "02"),
        (["null", "int"], "04"),
        (["null", "int"], "01"),
        (["int", "string", "boolean"], "06"),
        ({"type": "array", "items": "int"}, "02"),
        ({"type": "array", "items": "int"}, "feffffff0f00"),  # a count beyond the data
        ({"type": "array", "items": "null"}, "feffffffffffff7f00"),  # endless items without bytes
        ({"type": "map", "values": "int"}, "0202"),
        ({"type": "map", "values": "int"}, "feffffff0f00"),
        (logical("string", "uuid"), "0461620"[:-1]),
        (logical("int", "time-millis"), "feffffff0f"),
        (logical("int", "time-millis"), "01"),
        (logical("int", "date"), "feffffff0f"),
        (logical("long", "timestamp-micros"), "feffffffffffffffff01"),
        ("null", "00"),  # trailing byte
        ("int", "0200"),
    ],
)
def test_broken_bytes_are_decode_errors(schema: Any, data: str) -> None:
    with pytest.raises(DecodeError):
        compiled(schema).decode(bytes.fromhex(data))


def test_decode_error_names_the_schema_and_the_path() -> None:
    schema = compiled(
        {
            "type": "record",
            "name": "Outer",
            "fields": [{"name": "m", "type": {"type": "map", "values": {"type": "array", "items": NESTED}}}],
        }
    )
    data = schema.encode({"m": {"k": [{"a": 1, "b": "x"}, {"a": 2, "b": "yz"}]}})
    with pytest.raises(DecodeError) as caught:
        schema.decode(data[:-4])
    assert caught.value.path == 'm["k"][1].b'
    assert caught.value.schema == "Outer"


def test_deep_nesting_in_the_data_is_an_error_and_no_crash() -> None:
    schema = compiled({"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]})
    with pytest.raises(DecodeError):
        schema.decode(b"\x02" * 500_000 + b"\x00")


def test_arrays_in_several_blocks_and_with_sizes_are_read() -> None:
    schema = compiled({"type": "array", "items": "int"})
    # two items with the block's size of two bytes told (count -2), one more item, end
    assert schema.decode(bytes.fromhex("03040204020600")) == [1, 2, 3]
    assert compiled({"type": "map", "values": "int"}).decode(bytes.fromhex("0106026102" + "0202620400")) == {
        "a": 1,
        "b": 2,
    }


def test_items_without_bytes_are_read() -> None:
    schema = compiled({"type": "array", "items": "null"})
    assert schema.decode(schema.encode([None] * 1000)) == [None] * 1000


@pytest.mark.parametrize(
    "backend", [avro_schema_registry, avro_local, avro_validation], ids=lambda backend: backend.name
)
def test_damaged_bytes_raise_nothing_but_decode_errors(backend: AvroBackend) -> None:
    schema, pick = compiled(EVERYTHING, backend), random.Random(5)
    refused = 0
    for payload in payloads(60, seed=6):
        data = bytearray(schema.encode(payload))
        for _ in range(pick.randrange(1, 4)):
            data[pick.randrange(len(data))] = pick.randrange(256)
        for damaged in (bytes(data), bytes(data[: pick.randrange(len(data))]), bytes(data) + b"x"):
            try:
                schema.decode(damaged)
            except DecodeError:
                refused += 1
    assert refused >= 2 * 60  # at least all that are too short or too long


def test_items_without_bytes_are_counted_over_the_whole_message() -> None:
    nested = {"type": "array", "items": {"type": "array", "items": "null"}}
    schema = avro_schema_registry.compile(
        json.dumps({"type": "record", "name": "Nothings", "fields": [{"name": "items", "type": nested}]})
    )
    hundred_thousand = b"\xc0\x9a\x0c\x00"  # 100,000 as a zig-zag varint, the end of the inner list
    few, many = b"\x08" + hundred_thousand * 4 + b"\x00", b"\x0c" + hundred_thousand * 6 + b"\x00"
    assert [len(inner) for inner in schema.decode(few)["items"]] == [100_000] * 4
    for _ in range(2):  # each message begins anew
        with pytest.raises(DecodeError, match="more than 500000 records, defaults and items without bytes"):
            schema.decode(many)
        assert len(schema.decode(few)["items"]) == 4

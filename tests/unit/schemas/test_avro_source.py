"""The quick way through a schema against the long one, which decides: the same values, bytes and refusals."""

import json
import random
from typing import Any

import pytest

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.schemas.avro import avro_schema_registry
from deimos_async.schemas.avro_compiled import CompiledAvro
from deimos_async.schemas.avro_reading import ReaderFactory
from deimos_async.schemas.avro_source import read_source, write_source
from deimos_async.schemas.avro_types import Node, parse_schema
from deimos_async.schemas.avro_writing import WriterFactory

SCALARS: list[Any] = [
    "null",
    "boolean",
    "int",
    "long",
    "float",
    "double",
    "bytes",
    "string",
    {"type": "int", "logicalType": "date"},
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "long", "logicalType": "local-timestamp-micros"},
    {"type": "string", "logicalType": "uuid"},
    {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
]


def random_schema(pick: random.Random, names: list[str], depth: int = 0) -> Any:
    """A type of Avro, named types numbered."""
    made = pick.random()
    if depth > 3 or made < 0.5:
        return pick.choice(SCALARS)
    if made < 0.6:
        return pick.sample(["null", "long", "string"], pick.choice([2, 2, 3]))
    if made < 0.7:
        return {"type": "array", "items": random_schema(pick, names, depth + 1)}
    if made < 0.75:
        return {"type": "map", "values": random_schema(pick, names, depth + 1)}
    names.append(f"T{len(names)}")
    if made < 0.8:
        return {"type": "enum", "name": names[-1], "symbols": ["A", "B", "C", "D"][: pick.randint(1, 4)]}
    if made < 0.83:
        return {"type": "fixed", "name": names[-1], "size": pick.randint(1, 4)}
    return random_record(pick, names, depth)


def random_record(pick: random.Random, names: list[str], depth: int = 0) -> Any:
    names.append(f"T{len(names)}")
    name = names[-1]
    fields = [
        {"name": f"f{number}", "type": random_schema(pick, names, depth + 1)} for number in range(pick.randint(1, 6))
    ]
    if pick.random() < 0.2:
        fields.append({"name": "again", "type": ["null", name]})
    return {"type": "record", "name": name, "fields": fields}


def random_value(node: Node, pick: random.Random, depth: int = 0) -> Any:
    """What decoding could give, now and then something that does not fit."""
    if pick.random() < 0.01:
        return pick.choice([None, 1, "no", b"no", [1], {"no": 1}, object()])
    if node.logical is not None:
        raw: Any = {"bytes": b"\x01", "string": "00000000-0000-0000-0000-00000000000a"}.get(node.kind, 12_345)
        return node.logical.from_raw(raw)
    match node.kind:
        case "null":
            return None
        case "boolean":
            return pick.random() < 0.5
        case "int" | "long":
            return pick.choice([0, -1, 63, 64, -64, -65, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), True])
        case "float" | "double":
            return pick.choice([0.0, 1.5, -2.25, 3, float("inf")])
        case "bytes":
            return pick.randbytes(pick.choice([0, 1, 63, 64, 200]))
        case "string":
            return "aß漢😀"[: pick.randint(0, 4)] * pick.choice([1, 20])
        case "enum":
            return pick.choice(node.symbols)
        case "fixed":
            return pick.randbytes(node.size)
        case "array":
            return [random_value(node.items, pick, depth + 1) for _ in range(pick.randint(0, 3) if depth < 6 else 0)]
        case "map":
            return {f"k{number}": random_value(node.items, pick, depth + 1) for number in range(pick.randint(0, 2))}
        case "union":
            first = node.branches[0] if depth > 6 else pick.choice(node.branches)
            return random_value(first, pick, depth + 1)
        case _:
            return {entry.name: random_value(entry.node, pick, depth + 1) for entry in node.fields}


def outcome(call: Any, *arguments: Any) -> tuple[str, Any]:
    try:
        return "value", repr(call(*arguments))
    except (EncodeError, DecodeError) as error:
        return type(error).__name__, str(error)


def long_way(schema: CompiledAvro, writer: CompiledAvro | None = None) -> Any:
    return schema._decoding(schema._reading(writer or schema, ReaderFactory()))


@pytest.mark.parametrize("seed", range(8))
def test_random_values_of_random_schemas_are_encoded_and_decoded_as_the_long_way_does(seed: int) -> None:
    pick = random.Random(seed)
    refused = 0
    for _ in range(25):
        schema = avro_schema_registry.compile(json.dumps(random_record(pick, [])))
        node, read, slow = schema.node, schema.decoder(), long_way(schema)
        for _ in range(20):
            value = random_value(node, pick)
            found = outcome(schema.encode, value)
            assert found == outcome(schema._encode_any, value)
            if found[0] != "value":
                refused += 1
                continue
            data = schema.encode(value)
            assert outcome(read, data, 0) == outcome(slow, data, 0)
            for damaged in (data[:-1], data + b"\0", data[1:], flipped(data, pick)):
                assert outcome(read, damaged, 0) == outcome(slow, damaged, 0)
    assert refused > 20


def flipped(data: bytes, pick: random.Random) -> bytes:
    if not data:
        return b"\xff"
    at = pick.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << pick.randrange(8))]) + data[at + 1 :]


def changed(kind: Any, pick: random.Random) -> Any:
    """The same record as another version may have it."""
    if isinstance(kind, list) or not isinstance(kind, dict):
        return {"int": "long", "string": "bytes", "float": "double"}.get(kind, kind) if isinstance(kind, str) else kind
    if kind["type"] == "record":
        fields = [{**entry, "type": changed(entry["type"], pick)} for entry in kind["fields"] if pick.random() < 0.8]
        pick.shuffle(fields)
        new = {"name": "new", "type": "string", "default": "given"}
        more = {"name": "many", "type": {"type": "array", "items": "int"}, "default": []}
        return {**kind, "fields": fields + pick.choice([[], [new], [new, more]])}
    if kind["type"] == "enum":
        return {**kind, "symbols": [*kind["symbols"][1:], "Z"], "default": "Z"} if pick.random() < 0.5 else kind
    if kind["type"] == "array":
        return {**kind, "items": changed(kind["items"], pick)}
    return kind


@pytest.mark.parametrize("seed", range(8))
def test_other_versions_are_resolved_as_the_long_way_does(seed: int) -> None:
    pick = random.Random(seed)
    read_values = 0
    for _ in range(40):
        text = random_record(pick, [])
        writer = avro_schema_registry.compile(json.dumps(text))
        other = changed(text, pick)
        if not other["fields"]:
            continue
        reader = avro_schema_registry.compile(json.dumps(other))
        read, slow = reader.decoder(writer), long_way(reader, writer)
        for _ in range(10):
            value = random_value(writer.node, pick)
            if outcome(writer.encode, value)[0] != "value":
                continue
            data = writer.encode(value)
            found = outcome(read, data, 0)
            assert found == outcome(slow, data, 0)
            read_values += found[0] == "value"
    assert read_values > 50


USUAL = {
    "type": "record",
    "name": "Usual",
    "fields": [
        {"name": "number", "type": "long"},
        {"name": "text", "type": ["null", "string"]},
        {"name": "last", "type": ["long", "null"]},
        {"name": "price", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "OLD"]}},
        {"name": "of", "type": {"type": "record", "name": "Of", "fields": [{"name": "city", "type": "string"}]}},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
    ],
}


def test_usual_messages_take_the_quick_way() -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("the long way was taken")

    node = parse_schema(json.dumps(USUAL))
    writers, readers = WriterFactory(), ReaderFactory()
    writers.make(node)
    readers.make_whole(node, node)
    write = write_source(writers, node, never)
    read = read_source(readers, node, node, never)
    assert write is not None
    assert read is not None
    schema = avro_schema_registry.compile(json.dumps(USUAL))
    for text in (None, "ä" * 100):
        value = schema.coerce(
            {
                "number": -(10**12),
                "text": text,
                "last": 5,
                "price": 1,
                "at": "2026-01-01T00:00:00Z",
                "tags": ["a", ""],
                "state": "OLD",
                "of": {"city": "Paris"},
                "counts": {"a": 1},
            }
        )
        data = write(value)
        assert read(data, 0) == value
        assert read(b"frame" + data, 5) == value


def test_names_of_a_schema_are_never_code() -> None:
    hostile = "x' + exit() + '"
    schema = avro_schema_registry.compile(
        json.dumps(
            {
                "type": "record",
                "name": "Named",
                "doc": hostile,
                "fields": [{"name": "a", "type": "string", "default": hostile, "doc": hostile}],
            }
        )
    )
    older = avro_schema_registry.compile(json.dumps({"type": "record", "name": "Named", "fields": []}))
    assert schema.decoder(older)(b"", 0) == {"a": hostile}
    assert schema.decode(schema.encode({"a": hostile})) == {"a": hostile}


def test_schema_too_large_for_source_is_still_read_and_written() -> None:
    fields = [{"name": f"f{number}", "type": ["null", "string"]} for number in range(2_000)]
    schema = avro_schema_registry.compile(json.dumps({"type": "record", "name": "Wide", "fields": fields}))
    value = {f"f{number}": str(number) for number in range(2_000)}
    assert schema.decode(schema.encode(value)) == value


def test_record_nested_deeper_than_blocks_may_is_read_and_written() -> None:
    kind: Any = "string"
    value: Any = "end"
    for number in range(30):
        kind = {"type": "record", "name": f"R{number}", "fields": [{"name": "in", "type": ["null", kind]}]}
        value = {"in": value}
    schema = avro_schema_registry.compile(json.dumps(kind))
    assert schema.decode(schema.encode(value)) == value


def record_of(name: str, *fields: tuple[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": each, "type": kind} for each, kind in fields]}


@pytest.mark.parametrize("container", ["array", "map"])
def test_items_that_grow_by_defaults_are_counted(container: str) -> None:
    """A byte for each item, and a reader that adds much to it: 20,000 bytes would become four million values."""

    def whole(item: Any) -> Any:
        kind = {"type": "array", "items": item} if container == "array" else {"type": "map", "values": item}
        return avro_schema_registry.compile(json.dumps(record_of("Whole", ("all", kind))))

    item = record_of("Item", ("ok", "boolean"))
    added = [{"name": f"f{number}", "type": ["null", "string"], "default": None} for number in range(200)]
    writer, reader = whole(item), whole({**item, "fields": item["fields"] + added})
    read = reader.decoder(writer)

    def encoded(count: int) -> bytes:
        items: Any = [{"ok": True}] * count if container == "array" else {str(n): {"ok": True} for n in range(count)}
        data: bytes = writer.encode({"all": items})
        return data

    assert len(read(encoded(2_000), 0)["all"]) == 2_000
    with pytest.raises(DecodeError, match="more than 500000 records, defaults"):
        read(encoded(20_000), 0)
    assert len(read(encoded(2_000), 0)["all"]) == 2_000


def test_long_names_make_no_large_source() -> None:
    inner = record_of("Inner", ("f" * 50_000, "long"))
    fields = [("x0", inner), *((f"x{number}", "Inner") for number in range(1, 200))]
    node = parse_schema(json.dumps(record_of("Outer", *fields)))
    writers, readers = WriterFactory(), ReaderFactory()
    writers.make(node)
    read = readers.make_whole(node, node)
    assert write_source(writers, node, lambda value: b"") is None
    assert read_source(readers, node, node, read) is None


def test_types_that_use_each_other_many_times_are_compiled_in_no_time() -> None:
    """Each level names the next one three times: written out it would be 3**40 fields."""
    kind: Any = record_of("L0", ("a", {"type": "array", "items": record_of("Leaf", ("x", "int"))}))
    for level in range(1, 40):
        name = f"L{level - 1}"
        kind = record_of(
            f"L{level}", ("a", kind), ("b", ["null", name]), ("c", {"type": "array", "items": name}), ("d", name)
        )
    schema = avro_schema_registry.compile(json.dumps(kind))
    with pytest.raises(DecodeError):
        schema.decode(b"")
    with pytest.raises(EncodeError):
        schema.encode({})

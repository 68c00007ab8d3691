"""Reading what another version of a schema wrote."""

from __future__ import annotations

import io
import json
import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import pytest

from deimos_async.errors import DecodeError
from deimos_async.schemas.avro import CompiledAvro, avro_schema_registry


def compiled(schema: Any) -> CompiledAvro:
    return avro_schema_registry.compile(json.dumps(schema))


def record(*fields: dict[str, Any], name: str = "com.acme.Rec", **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def entry(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def read(writer: Any, reader: Any, value: Any) -> Any:
    source = compiled(writer)
    return compiled(reader).decode(source.encode(source.coerce(value)), 0, source)


DATE = {"type": "int", "logicalType": "date"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def decimal(scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": scale}


def enum(*symbols: str, name: str = "com.acme.E", **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


@pytest.mark.parametrize(
    ("writer", "reader", "value", "expected"),
    [
        ("int", "long", 1, 1),
        ("int", "float", 1, 1.0),
        ("int", "double", 1, 1.0),
        ("long", "double", 1, 1.0),
        ("float", "double", 1.5, 1.5),
        ("string", "bytes", "é", b"\xc3\xa9"),
        ("bytes", "string", b"\xc3\xa9", "é"),
        ("int", ["null", "int"], 1, 1),
        (["null", "int"], "int", 1, 1),
        (["null", "int"], ["string", "long", "null"], None, None),
        (["null", "int"], ["string", "long", "null"], 5, 5),
        ("int", ["double", "int"], 5, 5),  # the same type before a promotion
        ("int", ["string", "double"], 5, 5.0),
        (["null", "string"], ["null", "bytes"], "a", b"a"),
        (enum("A", "B"), enum("B", "A"), "B", "B"),
        (enum("A", "B"), enum("A", default="A"), "B", "A"),
        (enum("A", name="old.E"), enum("A", name="new.E", aliases=["old.E"]), "A", "A"),
        ({"type": "array", "items": "int"}, {"type": "array", "items": "double"}, [1], [1.0]),
        ({"type": "map", "values": "int"}, {"type": "map", "values": ["null", "long"]}, {"a": 1}, {"a": 1}),
        (MILLIS, MICROS, NOON, NOON),
        (MICROS, MILLIS, NOON, NOON),
        (MILLIS, "long", NOON, 1795521600000),
        ("long", MILLIS, 1795521600000, NOON),
        ("int", DATE, 1, date(1970, 1, 2)),
        (decimal(2), decimal(3), Decimal("1.25"), Decimal("1.25")),
        ("string", {"type": "string", "logicalType": "uuid"}, str(UUID(int=1)), UUID(int=1)),
        ("bytes", {"type": "string", "logicalType": "uuid"}, str(UUID(int=1)).encode(), UUID(int=1)),
    ],
)
def test_value_becomes_one_of_the_readers_type(writer: Any, reader: Any, value: Any, expected: Any) -> None:
    result = read(writer, reader, value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("writer", "reader", "value"),
    [
        ("string", "int", "a"),
        ("long", "int", 1),
        ("double", "float", 1.5),
        (["null", "int"], "int", None),
        (["int", "string"], ["null", "int"], "a"),
        (enum("A", "B"), enum("A"), "B"),
        ({"type": "fixed", "name": "F", "size": 1}, {"type": "fixed", "name": "F", "size": 2}, b"a"),
        (record(entry("a", "int")), record(entry("a", "int"), entry("b", "int")), {"a": 1}),
        (record(entry("a", "int")), record(entry("a", "string")), {"a": 1}),
        ("int", record(), 1),
    ],
)
def test_value_that_does_not_resolve_is_a_decode_error(writer: Any, reader: Any, value: Any) -> None:
    with pytest.raises(DecodeError):
        read(writer, reader, value)


def test_branch_that_does_not_resolve_does_no_harm_until_it_occurs() -> None:
    writer, reader = {"type": "array", "items": ["int", "string"]}, {"type": "array", "items": "int"}
    assert read(writer, reader, [1, 2]) == [1, 2]
    with pytest.raises(DecodeError) as caught:
        read(writer, reader, [1, "a"])
    assert caught.value.path == "[1]"


def test_fields_are_matched_by_name_and_alias_skipped_and_filled() -> None:
    writer = record(
        entry("gone", {"type": "array", "items": record(entry("x", "string"), name="com.acme.Gone")}),
        entry("old", "int"),
        entry("kept", "string"),
    )
    reader = record(
        entry("kept", "string"),
        entry("added", {"type": "array", "items": "int"}, default=[7]),
        entry("day", DATE, default=1),
        entry("raw", "bytes", default="\u00ff"),
        entry("new", "long", aliases=["old"]),
        entry("inner", record(entry("y", "int", default=3), name="com.acme.Inner"), default={}),
    )
    value = {"gone": [{"x": "a"}], "old": 5, "kept": "k"}
    expected = {
        "kept": "k",
        "added": [7],
        "day": date(1970, 1, 2),
        "raw": b"\xff",
        "new": 5,
        "inner": {"y": 3},
    }
    first = read(writer, reader, value)
    assert first == expected
    assert list(first) == list(expected)  # in the reader's order


def test_defaults_of_one_message_are_not_those_of_the_next() -> None:
    writer = compiled(record(entry("a", "int")))
    decode = compiled(record(entry("a", "int"), entry("tags", {"type": "array", "items": "int"}, default=[]))).decoder(
        writer
    )
    data = writer.encode({"a": 1})
    decode(data, 0)["tags"].append(1)
    assert decode(data, 0) == {"a": 1, "tags": []}


def test_recursive_schemas_resolve() -> None:
    def node(*more: dict[str, Any]) -> dict[str, Any]:
        return record(entry("v", "int"), entry("next", ["null", "com.acme.Rec"]), *more)

    result = read(node(), node(entry("w", "int", default=0)), {"v": 1, "next": {"v": 2, "next": None}})
    assert result == {"v": 1, "next": {"v": 2, "next": None, "w": 0}, "w": 0}


def test_other_schema_is_refused_by_name_when_the_decoder_is_made() -> None:
    writer = compiled(record(entry("a", "int"), name="com.acme.Other"))
    with pytest.raises(DecodeError) as caught:
        compiled(record(entry("a", "int"))).decoder(writer)
    assert "com.acme.Other" in str(caught.value)
    assert "com.acme.Rec" in str(caught.value)


def test_alias_of_the_reader_is_another_name_for_it() -> None:
    writer = record(entry("a", "int"), name="com.old.Former")
    assert read(writer, record(entry("a", "int"), aliases=["com.old.Former"]), {"a": 1}) == {"a": 1}


def test_equal_writer_needs_no_resolution() -> None:
    schema = compiled(record(entry("a", "int")))
    again = compiled(record(entry("a", "int")))
    assert schema.decoder(again) is schema.decoder()


def test_types_below_match_without_their_namespace() -> None:
    writer = record(entry("e", enum("A", name="one.E")))
    reader = record(entry("e", ["null", enum("A", name="two.E")]))
    assert read(writer, reader, {"e": "A"}) == {"e": "A"}


def test_branches_of_a_union_are_told_apart_by_what_the_writer_wrote() -> None:
    first = record(entry("a", "int", default=0), name="com.acme.First")
    second = record(entry("a", "int", default=0), entry("b", "int", default=5), name="com.acme.Second")
    writer = record(entry("u", [first, second]))
    later = second | {"fields": [*second["fields"], entry("c", "int", default=9)]}
    reader = record(entry("u", ["null", later, first]))
    assert read(writer, reader, {"u": {"a": 1, "b": 2}}) == {"u": {"a": 1, "b": 2, "c": 9}}
    assert read(writer, reader, {"u": {"a": 1}}) == {"u": {"a": 1}}


def test_random_records_resolve_as_fastavro_resolves_them() -> None:
    pick = random.Random(8)
    kinds = ["int", "long", "float", "double", "string", "bytes", ["null", "int"], ["null", "string", "double"]]
    wider = {"int": ["int", "long", "double"], "long": ["long", "double"], "float": ["float", "double"]}
    values = {"int": 7, "long": 2**40, "float": 0.5, "double": 0.25, "string": "text", "bytes": b"raw"}
    for _ in range(100):
        written = [entry(f"f{n}", pick.choice(kinds)) for n in range(6)]
        kept = [part for part in written if pick.random() < 0.8]
        wanted = [
            entry(part["name"], pick.choice(wider.get(part["type"], [part["type"]])))
            if isinstance(part["type"], str)
            else part
            for part in kept
        ] + [entry("added", "int", default=3)]
        pick.shuffle(wanted)
        writer, reader = record(*written), record(*wanted)
        value = {
            part["name"]: values[part["type"] if isinstance(part["type"], str) else part["type"][1]] for part in written
        }
        data = compiled(writer).encode(value)
        oracle = fastavro.schemaless_reader(
            io.BytesIO(data), fastavro.parse_schema(writer, {}), fastavro.parse_schema(reader, {})
        )
        assert compiled(reader).decode(data, 0, compiled(writer)) == oracle

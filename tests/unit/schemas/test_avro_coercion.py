"""Whole payloads: defaults, unknown fields, unions, paths; and validation, which converts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from deimos_async.errors import EncodeError
from deimos_async.schemas.avro import CompiledAvro, avro_schema_registry


def compiled(schema: Any, unknown_fields: str = "drop") -> CompiledAvro:
    return avro_schema_registry.compile(json.dumps(schema), unknown_fields=unknown_fields)


def record(*fields: Any, name: str = "Rec") -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "namespace": "com.acme",
        "fields": [
            {"name": entry[0], "type": entry[1]} | ({"default": entry[2]} if len(entry) > 2 else {}) for entry in fields
        ],
    }


def problems(call: Callable[[Any], Any], value: Any) -> dict[str, str]:
    with pytest.raises(EncodeError) as caught:
        call(value)
    found: dict[str, str] = {}
    for error in caught.value.errors:
        found[error.path] = f"{found.get(error.path, '')} {error.problem}"
    return found


ITEM = record(("price", "int"), ("label", "string", "none"), name="Item")
EVERYWHERE = record(
    ("single", ITEM),
    ("items", {"type": "array", "items": "com.acme.Item"}),
    ("labels", {"type": "map", "values": "com.acme.Item"}),
    name="Outer",
)


def test_conversion_reaches_records_arrays_and_maps() -> None:
    given = {"single": {"price": "1"}, "items": ({"price": "2"},), "labels": {"a": {"price": "3", "label": 4}}}
    assert compiled(EVERYWHERE).coerce(given) == {
        "single": {"price": 1, "label": "none"},
        "items": [{"price": 2, "label": "none"}],
        "labels": {"a": {"price": 3, "label": "4"}},
    }
    assert given == {"single": {"price": "1"}, "items": ({"price": "2"},), "labels": {"a": {"price": "3", "label": 4}}}


def test_all_errors_are_reported_at_once_with_their_paths() -> None:
    schema = compiled(EVERYWHERE)
    given = {
        "single": {},
        "items": [{"price": 1}, {"price": "x"}, 5],
        "labels": {"a b": {"price": None}, "k": {"price": True}},
    }
    with pytest.raises(EncodeError) as caught:
        schema.coerce(given)
    assert [error.path for error in caught.value.errors] == [
        "single.price",
        "items[1].price",
        "items[2]",
        'labels["a b"].price',
        'labels["k"].price',
    ]
    assert caught.value.schema == "com.acme.Outer"
    assert "com.acme.Outer" in str(caught.value)


def test_errors_do_not_tell_values() -> None:
    with pytest.raises(EncodeError) as caught:
        compiled(record(("a", "int"), ("b", ["null", "int"]), ("c", ["int", "boolean"]))).coerce(
            {"a": "secret", "b": "secret", "c": "secret"}
        )
    assert "secret" not in str(caught.value)


def test_unknown_fields_are_dropped_at_every_depth() -> None:
    inner = {"price": 1, "label": "x", "odd": 1}
    result = compiled(EVERYWHERE).coerce({"single": inner, "items": [inner], "labels": {"k": inner}, "odd": 1})
    fitted = {"price": 1, "label": "x"}
    assert result == {"single": fitted, "items": [fitted], "labels": {"k": fitted}}


def test_unknown_fields_are_refused_with_their_paths_when_asked_for() -> None:
    inner = {"price": 1, "label": "x", "odd": 1}
    found = problems(
        compiled(EVERYWHERE, "error").coerce,
        {"single": inner, "items": [inner], "labels": {"k": inner}, "odd": 1},
    )
    assert set(found) == {"single.odd", "items[0].odd", 'labels["k"].odd', "odd"}


def test_unknown_word_for_unknown_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown_fields"):
        compiled("int", "keep")


def test_absent_field_takes_the_default_and_a_new_one_each_time() -> None:
    schema = compiled(
        record(
            ("tags", {"type": "array", "items": "string"}, ["a"]),
            ("raw", "bytes", "\u00ff"),
            ("day", {"type": "int", "logicalType": "date"}, 1),
            ("maybe", ["null", "int"], None),
            ("item", ITEM, {"price": 3}),
            ("ratio", "double", 1),
            ("money", {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "\u0001\u0000"),
        )
    )
    first, second = schema.coerce({}), schema.coerce({})
    assert first == {
        "tags": ["a"],
        "raw": b"\xff",
        "day": date(1970, 1, 2),
        "maybe": None,
        "item": {"price": 3, "label": "none"},
        "ratio": 1.0,
        "money": Decimal("2.56"),  # 0x0100 hundredths
    }
    first["tags"].append("b")
    first["item"]["price"] = 4
    assert second == schema.coerce({})


def test_null_does_not_take_the_default() -> None:
    assert set(problems(compiled(record(("a", "int", 1))).coerce, {"a": None})) == {"a"}


@pytest.mark.parametrize("kind", ["boolean", "int", "long", "float", "double", "string", "bytes"])
def test_null_for_a_field_that_is_not_nullable_is_an_error(kind: str) -> None:
    assert set(problems(compiled(record(("a", kind))).coerce, {"a": None})) == {"a"}


@pytest.mark.parametrize("kind", ["int", "long", "float", "double"])
def test_boolean_is_no_number(kind: str) -> None:
    schema = compiled(record(("a", kind)))
    assert set(problems(schema.coerce, {"a": True})) == {"a"}
    assert set(problems(schema.validate, {"a": True})) == {"a"}
    assert set(problems(schema.encode, {"a": True})) == {"a"}


RECORD1 = record(("record1_map", {"type": "map", "values": "long"}), ("record1_id", "int"), name="Record1")
RECORD2 = record(("record2_id", "string"), name="Record2")
RECORD3 = record(("record3_id", "float"), name="Record3")
RECORD4 = record(("record4_id", "int"), name="Record4")
SEVEN = ["null", RECORD1, RECORD2, RECORD3, RECORD4, "int", {"type": "array", "items": "string"}]
DATE = {"type": "int", "logicalType": "date"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
UUIDS = {"type": "string", "logicalType": "uuid"}
COLOURS = {"type": "enum", "name": "Colour", "symbols": ["RED", "GREEN"]}
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Colour(Enum):
    RED = 1
    other = "GREEN"


@pytest.mark.parametrize(
    ("union", "given", "expected"),
    [
        (SEVEN, None, None),
        (SEVEN, ["a", "b"], ["a", "b"]),
        (SEVEN, {"record1_map": {"a": 1}, "record1_id": 567}, {"record1_map": {"a": 1}, "record1_id": 567}),
        (SEVEN, {"record1_map": {"a": "1"}, "record1_id": "567"}, {"record1_map": {"a": 1}, "record1_id": 567}),
        (SEVEN, {"record2_id": "hello"}, {"record2_id": "hello"}),
        (SEVEN, {"record3_id": 10.101}, {"record3_id": 10.101}),
        (SEVEN, {"record4_id": 101010}, {"record4_id": 101010}),
        (SEVEN, 1010101, 1010101),
        (SEVEN, "1010101", 1010101),
        (["null", "boolean", "string"], "abc", "abc"),
        (["null", "boolean", "string"], "true", "true"),
        (["string", "int"], 5, 5),
        (["int", "string"], "5", "5"),
        (["null", "string", {"type": "array", "items": "int"}], [1], [1]),
        (["null", "string", {"type": "array", "items": "int"}], ["1"], [1]),
        (["null", "string"], [1], "[1]"),
        (["double", "long"], 5, 5),
        (["float", "double"], 1.1, 1.1),
        (["null", "int"], " 7 ", 7),
        (["int", "boolean"], "true", True),
        (["int", "long"], 2**40, 2**40),
        (["int", "double"], 2**40, float(2**40)),
        (["null", DATE], date(2026, 11, 24), date(2026, 11, 24)),
        (["null", "string", DATE], date(2026, 11, 24), date(2026, 11, 24)),
        (["null", MILLIS], NOON, NOON),
        (["null", MICROS], NOON, NOON),
        (["string", MILLIS], NOON, NOON),
        (["null", MILLIS], "2026-11-24T12:00:00Z", NOON),
        (["null", COLOURS, "string"], "RED", "RED"),
        (["null", COLOURS, "string"], "BLUE", "BLUE"),
        (["null", COLOURS, "string"], Colour.RED, "RED"),
        (["null", COLOURS, "string"], Colour.other, "GREEN"),
        (["null", {"type": "map", "values": "int"}], {"a": "1"}, {"a": 1}),
        (["bytes", "string"], "text", "text"),
        (["null", {"type": "long"}], NOON, int(NOON.timestamp())),
    ],
)
def test_union_takes_the_branch_that_fits_else_the_first_that_can(union: Any, given: Any, expected: Any) -> None:
    schema = compiled(record(("u", union)))
    result = schema.coerce({"u": given})
    assert result == {"u": expected}
    assert type(result["u"]) is type(expected)
    data = schema.encode(result)
    assert schema.encode(schema.decode(data)) == data


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"record2_id": "x", "odd": 1}, "u"),
        ({"unknown": 1}, "u"),
        ({}, "u"),
        ("abc", "u"),
        (1.5, "u"),
        (2**40, "u"),
        ([None], "u"),
    ],
)
def test_value_that_fits_no_branch_is_an_error_that_names_the_branches(given: Any, path: str) -> None:
    found = problems(compiled(record(("u", SEVEN))).coerce, {"u": given})
    for name in ("null", "com.acme.Record1", "com.acme.Record4", "int", "array"):
        assert name in found[path]


def test_only_record_of_a_union_tells_what_is_wrong_with_it() -> None:
    schema = compiled(record(("u", ["null", ITEM, "int"]), ("v", ["null", "com.acme.Item"])))
    given = {"price": "x", "odd": 1}
    found = problems(schema.coerce, {"u": given, "v": given})
    assert set(found) == {"u", "u.price", "u.odd", "v.price", "v.odd"}


def test_nothing_is_dropped_to_fit_a_record_of_a_union_at_any_depth() -> None:
    nested = record(("inner", ITEM), name="Nested")
    schema = compiled(record(("u", ["null", nested])))
    assert set(problems(schema.coerce, {"u": {"inner": {"price": 1, "odd": 2}}})) == {"u.inner.odd"}


def test_records_that_differ_in_optional_fields_are_told_apart() -> None:
    first = record(("a", "int"), ("b", "int", 0), name="First")
    second = record(("a", "int"), name="Second")
    schema = compiled([first, second])
    assert schema.coerce({"a": 1}) == {"a": 1}  # exactly a Second
    assert schema.coerce({"a": "1"}) == {"a": 1, "b": 0}  # nothing fits exactly: the first that can be made to fit


@dataclass
class ItemData:
    price: Any
    label: str = "data"


@dataclass
class OuterData:
    single: Any
    items: list[Any] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)


class ItemModel(BaseModel):
    price: int
    label: str = "model"


class ItemObject:
    def to_dict(self) -> dict[str, Any]:
        return {"price": "3", "label": "object"}


def test_dataclasses_models_and_objects_are_taken_at_every_depth() -> None:
    given = OuterData(ItemData("1"), [ItemModel(price=2), ItemObject()], {"k": ItemData(4)})
    expected = {
        "single": {"price": 1, "label": "data"},
        "items": [{"price": 2, "label": "model"}, {"price": 3, "label": "object"}],
        "labels": {"k": {"price": 4, "label": "data"}},
    }
    assert compiled(EVERYWHERE).coerce(given) == expected


@pytest.mark.parametrize("given", [ItemData(1), ItemModel(price=1), ItemObject()])
def test_objects_are_taken_in_unions_with_text(given: Any) -> None:
    schema = compiled(record(("u", ["null", "string", ITEM])))
    assert schema.coerce({"u": given})["u"]["label"] in ("data", "model", "object")


def test_keys_of_mappings_may_be_text_enums() -> None:
    class Key(StrEnum):
        PRICE = "price"
        LABEL = "label"

    schema = compiled(record(("m", {"type": "map", "values": "int"}), ("i", ITEM)))
    result = schema.coerce({"m": {Key.PRICE: 1}, "i": {Key.PRICE: 2, Key.LABEL: "x"}})
    assert result == {"m": {"price": 1}, "i": {"price": 2, "label": "x"}}
    assert [type(key) for key in result["m"]] == [str]


def test_keys_of_maps_that_are_no_text_are_errors() -> None:
    assert set(problems(compiled({"type": "map", "values": "int"}).coerce, {1: 1, "a": "x"})) == {'["1"]', '["a"]'}


def test_payload_that_is_no_mapping_is_an_error() -> None:
    schema = compiled(ITEM)
    for given in (None, "text", 5, [1]):
        assert set(problems(schema.coerce, given)) == {""}
        assert set(problems(schema.encode, given)) == {""}


def test_payload_that_contains_itself_is_an_error() -> None:
    schema = compiled(record(("next", ["null", "com.acme.Rec"])))
    endless: dict[str, Any] = {}
    endless["next"] = endless
    for call in (schema.coerce, schema.validate, schema.encode):
        assert "itself" in problems(call, endless)[""]


def test_text_that_has_no_utf8_form_is_an_error_when_written() -> None:
    schema = compiled(record(("a", "string")))
    assert set(problems(schema.encode, schema.coerce({"a": "\ud800"}))) == {"a"}


def test_datetime_for_a_timestamp_in_nanoseconds_becomes_its_number() -> None:
    schema = compiled({"type": "long", "logicalType": "timestamp-nanos"})
    assert schema.coerce(datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)) == 1_000_005_000
    assert schema.coerce(7) == 7


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("null", None),
        ("boolean", True),
        ("int", 2**31 - 1),
        ("long", -(2**63)),
        ("float", 1),
        ("double", 1.5),
        ("string", "x"),
        ("bytes", b"x"),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab"),
        (COLOURS, "RED"),
        (DATE, date(2026, 1, 1)),
        (DATE, 5),
        (MILLIS, NOON),
        (MILLIS, 5),
        (UUIDS, UUID(int=1)),
        (UUIDS, str(UUID(int=1))),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, Decimal("1.5")),
        ({"type": "array", "items": "int"}, [1, 2]),
        ({"type": "map", "values": "int"}, {"a": 1}),
        (["null", "double"], 5),
        (["int", "double"], 2**40),
    ],
)
def test_exact_value_is_valid(kind: Any, value: Any) -> None:
    compiled(record(("a", kind))).validate({"a": value})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("boolean", 1),
        ("boolean", "true"),
        ("int", 2**31),
        ("int", 4.0),
        ("int", "5"),
        ("long", 2**63),
        ("long", NOON),
        ("float", "1.5"),
        ("float", 1e39),
        ("double", Decimal(1)),
        ("double", 10**400),
        ("string", 5),
        ("string", b"x"),
        ("bytes", "x"),
        ({"type": "fixed", "name": "F", "size": 2}, b"abc"),
        (COLOURS, "BLUE"),
        (COLOURS, Colour.RED),
        (DATE, "2026-01-01"),
        (DATE, NOON),
        (DATE, True),
        (MILLIS, NOON.replace(tzinfo=None)),
        (MILLIS, 10**18),
        (MILLIS, 1.5),
        (UUIDS, "no uuid"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, Decimal("1.234")),
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, 1.5),
        ({"type": "array", "items": "int"}, "12"),
        ({"type": "map", "values": "int"}, [1]),
        (["null", "int"], "5"),
    ],
)
def test_value_that_would_need_a_conversion_is_invalid(kind: Any, value: Any) -> None:
    schema = compiled(record(("a", kind)))
    assert set(problems(schema.validate, {"a": value})) == {"a"}
    assert set(problems(schema.encode, {"a": value})) == {"a"}


def test_validation_reports_missing_and_unknown_fields_and_every_element() -> None:
    given = {
        "single": {"price": 1},  # the default of label does not count
        "items": [{"price": "1", "label": "x"}, {"price": 1, "label": 2, "odd": 3}],
        "labels": {"k": {"price": 1, "label": "x", "odd": 1}},
        "odd": 1,
    }
    assert set(problems(compiled(EVERYWHERE).validate, given)) == {
        "single.label",
        "items[0].price",
        "items[1].label",
        "items[1].odd",
        'labels["k"].odd',
        "odd",
    }


def test_validation_of_a_union_tells_the_details_of_the_only_branch_of_the_kind() -> None:
    schema = compiled(record(("u", ["null", ITEM, "int"])))
    assert set(problems(schema.validate, {"u": {"price": "x", "label": "y"}})) == {"u.price"}
    assert "com.acme.Item" in problems(schema.validate, {"u": 1.5})["u"]


def test_moment_that_utc_does_not_have_is_invalid() -> None:
    first_hour = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
    schema = compiled(record(("a", MILLIS)))
    for call in (schema.coerce, schema.validate, schema.encode):
        assert "years" in problems(call, {"a": first_hour})["a"]

"""Schemas themselves: names, files that use each other, what is registered, what is refused."""

from __future__ import annotations

import json
from typing import Any

import fastavro
import pytest

from deimos_async.errors import SchemaError
from deimos_async.schemas.avro import avro_local
from deimos_async.schemas.avro import avro_schema_registry as backend


def enum(name: str, *symbols: str) -> dict[str, Any]:
    return {"type": "enum", "name": name, "symbols": list(symbols or ("A",))}


ORDER = json.dumps(
    {
        "type": "record",
        "name": "Order",
        "namespace": "com.acme",
        "fields": [
            {"name": "buyer", "type": "Person"},
            {"name": "seller", "type": "com.acme.Person"},
            {"name": "status", "type": "com.other.Status"},
        ],
    }
)
PERSON = json.dumps(
    {
        "type": "record",
        "name": "com.acme.Person",
        "doc": "who",
        "fields": [
            {"name": "address", "type": "com.other.Address"},
            {"name": "friend", "type": ["null", "Person"], "default": None},
        ],
    }
)
ADDRESS = json.dumps(
    {
        "type": "record",
        "name": "Address",
        "namespace": "com.other",
        "fields": [{"name": "kind", "type": "Status"}, {"name": "owner", "type": ["null", "com.acme.Person"]}],
    }
)
STATUS = json.dumps({"type": "enum", "name": "Status", "namespace": "com.other", "symbols": ["A", "B"]})
NAMED = {"com.acme.Person": PERSON, "com.other.Address": ADDRESS, "com.other.Status": STATUS}


def test_types_of_other_files_are_inlined_once_at_first_use() -> None:
    schema = backend.compile(ORDER, named=NAMED)
    buyer, seller, status = json.loads(schema.text)["fields"]
    address = buyer["type"]["fields"][0]["type"]
    assert schema.full_name == "com.acme.Order"
    assert buyer["type"]["name"] == "Person"
    assert buyer["type"]["doc"] == "who"
    assert address["namespace"] == "com.other"
    assert address["fields"][0]["type"] == {"type": "enum", "name": "Status", "symbols": ["A", "B"]}
    assert address["fields"][1]["type"] == ["null", "com.acme.Person"]
    assert seller["type"] == "com.acme.Person"
    assert status["type"] == "com.other.Status"


def test_registered_text_stands_alone_and_stays_the_same() -> None:
    text = backend.compile(ORDER, named=NAMED).text
    assert backend.missing_types(text) == ()
    assert backend.compile(text).text == text
    fastavro.parse_schema(json.loads(text), {})  # another implementation understands it
    assert " " not in text


def test_text_keeps_docs_defaults_aliases_and_own_attributes() -> None:
    source = {
        "type": "record",
        "name": "Rec",
        "namespace": "com.acme",
        "doc": "a record",
        "owner": "team",
        "aliases": ["Old"],
        "fields": [
            {"name": "a", "type": "int", "doc": "a field", "default": 1, "aliases": ["b"], "order": "ignore"},
            {"name": "s", "type": {"type": "string", "avro.java.string": "String"}},
            {"name": "e", "type": enum("E", "X", "Y") | {"default": "X"}},
        ],
    }
    kept = json.loads(backend.compile(json.dumps(source)).text)
    assert kept == source | {"aliases": ["com.acme.Old"]}


def test_text_does_not_depend_on_white_space() -> None:
    loose = json.dumps(json.loads(STATUS), indent=4)
    assert backend.compile(loose).text == backend.compile(STATUS).text


def test_missing_types_are_told_in_order_by_full_name() -> None:
    assert list(backend.missing_types(ORDER)) == ["com.acme.Person", "com.other.Status"]
    assert list(backend.missing_types(PERSON)) == ["com.other.Address"]
    assert list(backend.missing_types(ADDRESS)) == ["com.other.Status", "com.acme.Person"]
    assert list(backend.missing_types('"string"')) == []


def test_namespace_is_inherited_from_the_nearest_definition_around() -> None:
    source = {
        "type": "record",
        "name": "Outer",
        "namespace": "a",
        "fields": [
            {"name": "x", "type": {"type": "record", "name": "b.Inner", "fields": [{"name": "y", "type": "Z"}]}},
            {"name": "z", "type": {"type": "array", "items": "Z"}},
            {"name": "w", "type": {"type": "map", "values": ["null", "c.Z", "long"]}},
        ],
    }
    assert list(backend.missing_types(json.dumps(source))) == ["b.Z", "a.Z", "c.Z"]


def test_type_without_a_namespace_inside_one_that_has_one_keeps_its_name() -> None:
    inner = {
        "type": "record",
        "name": "Inner",
        "namespace": "",
        "fields": [{"name": "next", "type": ["null", "Inner"]}],
    }
    source = {"type": "record", "name": "a.Outer", "fields": [{"name": "inner", "type": inner}]}
    text = backend.compile(json.dumps(source)).text
    assert json.loads(text)["fields"][0]["type"]["namespace"] == ""
    assert backend.compile(text).text == text


def test_recursive_schema_works() -> None:
    source = {
        "type": "record",
        "name": "Tree",
        "fields": [{"name": "children", "type": {"type": "array", "items": "Tree"}, "default": []}],
    }
    schema = backend.compile(json.dumps(source))
    value = schema.coerce({"children": [{}, {"children": [{}]}]})
    assert value == {"children": [{"children": []}, {"children": [{"children": []}]}]}
    assert schema.decode(schema.encode(value)) == value


def test_same_type_defined_in_two_files_is_defined_once() -> None:
    one = {"type": "record", "name": "One", "fields": [{"name": "k", "type": enum("Kind")}]}
    two = {"type": "record", "name": "Two", "fields": [{"name": "k", "type": enum("Kind")}]}
    top = {"type": "record", "name": "Top", "fields": [{"name": "a", "type": "One"}, {"name": "b", "type": "Two"}]}
    schema = backend.compile(json.dumps(top), named={"One": json.dumps(one), "Two": json.dumps(two)})
    assert schema.text.count('"symbols"') == 1
    two["fields"] = [{"name": "k", "type": enum("Kind", "B")}]
    with pytest.raises(SchemaError, match="Kind is defined twice and differently"):
        backend.compile(json.dumps(top), named={"One": json.dumps(one), "Two": json.dumps(two)})


def test_schema_that_is_no_record_has_no_fields_and_no_name() -> None:
    schema = backend.compile('["null", "int"]')
    assert schema.full_name == ""
    assert schema.schema_fields() == ()
    assert schema.decode(schema.encode(schema.coerce("5"))) == 5


def test_fields_tell_symbols_defaults_and_docs() -> None:
    from deimos_async.schemas.protocol import NO_DEFAULT

    source = {
        "type": "record",
        "name": "Rec",
        "fields": [
            {"name": "plain", "type": "int", "doc": "text"},
            {"name": "direct", "type": enum("E", "X", "Y"), "default": "X"},
            {"name": "nullable", "type": ["null", enum("F", "Z")], "default": None},
        ],
    }
    plain, direct, nullable = backend.compile(json.dumps(source)).schema_fields()
    assert (plain.name, plain.type, plain.doc, plain.default, plain.enum_values) == (
        "plain",
        "int",
        "text",
        NO_DEFAULT,
        (),
    )
    assert (direct.enum_values, direct.default) == (("X", "Y"), "X")
    assert (nullable.enum_values, nullable.default) == (("Z",), None)
    assert nullable.type == ["null", enum("F", "Z")]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{", "not JSON"),
        ("5", "a name, an object or a list"),
        ('{"name": "X"}', "no 'type'"),
        ('"com.acme.Missing"', "com.acme.Missing is not defined"),
        ('{"type": "record", "fields": []}', "needs a name"),
        ('{"type": "record", "name": "a-b", "fields": []}', "'a-b'"),
        ('{"type": "record", "name": "R"}', "list of fields"),
        ('{"type": "record", "name": "R", "fields": [{"type": "int"}]}', "field needs a name"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a"}]}', "R.a: 'type' is missing"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "Gone"}]}', "R.a: type Gone"),
        (
            '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}',
            "'a' appears twice",
        ),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "default": "x"}]}', "field a"),
        ('{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "default": null}]}', "field a"),
        ('{"type": "enum", "name": "E", "symbols": ["A", "A"]}', "each of them once"),
        ('{"type": "enum", "name": "E", "symbols": ["a b"]}', "'a b'"),
        ('{"type": "enum", "name": "E", "symbols": ["A"], "default": "B"}', "default of the enum"),
        ('{"type": "fixed", "name": "F"}', "size"),
        ('{"type": "array"}', "'items' is missing"),
        ('{"type": "map"}', "'values' is missing"),
        ('["int", "int"]', "int twice"),
        ('["null", ["int"]]', "union directly"),
        ("[]", "empty"),
        ('["int", {"type": "int", "logicalType": "date"}]', "int twice"),
    ],
)
def test_broken_schema_is_refused_with_the_place(source: str, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        backend.compile(source)
    assert words in str(caught.value)


def test_file_that_defines_another_type_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"com\.acme\.Person.*com\.other\.Status"):
        backend.compile(ORDER, named=NAMED | {"com.acme.Person": STATUS})


def test_schema_nested_too_deeply_is_refused() -> None:
    text = '{"type":"array","items":' * 5000 + '"int"' + "}" * 5000
    with pytest.raises(SchemaError):
        backend.compile(text)


@pytest.mark.parametrize(
    "source",
    [
        {"type": "string", "logicalType": "unheard-of"},
        {"type": "string", "logicalType": "date"},
        {"type": "bytes", "logicalType": "decimal"},
        {"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3},
        {"type": "fixed", "name": "F", "size": 2, "logicalType": "decimal", "precision": 9},
        {"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"},
    ],
)
def test_logical_type_that_is_unknown_or_invalid_is_ignored(source: dict[str, Any]) -> None:
    schema = backend.compile(json.dumps(source))
    value: Any = "text" if source["type"] == "string" else b"x" * source.get("size", 2)
    assert schema.decode(schema.encode(schema.coerce(value))) == value
    assert "logicalType" in schema.text


def test_equal_schemas_are_compiled_once() -> None:
    text = json.dumps({"type": "record", "name": "Once", "fields": [{"name": "a", "type": "int"}]})
    assert backend.compile(text) is backend.compile(text, named={})
    assert backend.compile(text) is not backend.compile(text, unknown_fields="error")
    assert backend.compile(text) is not avro_local.compile(text)

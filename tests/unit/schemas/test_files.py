"""Schema files below one folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from deimos_async.errors import SchemaError, SchemaNotFoundError
from deimos_async.schemas.backends import backend
from deimos_async.schemas.files import SchemaFiles

avro = backend("avro_schema_registry")


def write(root: Path, full_name: str, *fields: tuple[str, Any], **more: Any) -> str:
    namespace, _, name = full_name.rpartition(".")
    schema = {
        "type": "record",
        "name": name,
        "namespace": namespace,
        "fields": [{"name": field, "type": kind} for field, kind in fields],
        **more,
    }
    path = root.joinpath(*full_name.split(".")).with_suffix(".avsc")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema), "utf-8")
    return path.read_text("utf-8")


def test_full_name_is_a_path_below_the_folder(tmp_path: Path) -> None:
    text = write(tmp_path, "com.acme.Order", ("id", "long"))
    plain = write(tmp_path, "Lonely", ("id", "long"))
    files = SchemaFiles(tmp_path)
    assert files.find("com.acme.Order") == text
    assert files.find("Lonely") == plain
    assert files.has("com.acme.Order")
    assert not files.has("com.acme.Orders")
    assert files.path("com.acme.Order") == tmp_path / "com" / "acme" / "Order.avsc"


def test_file_is_read_once(tmp_path: Path) -> None:
    text = write(tmp_path, "com.acme.Order", ("id", "long"))
    files = SchemaFiles(str(tmp_path))
    files.find("com.acme.Order")
    files.path("com.acme.Order").unlink()
    assert files.find("com.acme.Order") == text
    assert files.has("com.acme.Order")


def test_missing_file_names_path_setting_and_close_names(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.Order", ("id", "long"))
    write(tmp_path, "org.other.Widget", ("id", "long"))
    files = SchemaFiles(tmp_path)
    with pytest.raises(SchemaNotFoundError) as caught:
        files.find("com.acme.Ordr")
    message = str(caught.value)
    assert str(tmp_path / "com" / "acme" / "Ordr.avsc") in message
    assert "'schema.path'" in message
    assert "did you mean com.acme.Order?" in message
    with pytest.raises(SchemaNotFoundError, match=r"did you mean org\.other\.Widget\?"):
        files.find("com.acme.Widget")
    with pytest.raises(SchemaNotFoundError) as caught:
        files.find("com.acme.Zebra")
    assert "did you mean" not in str(caught.value)


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SchemaNotFoundError, match="which is no folder"):
        SchemaFiles(tmp_path / "nowhere").find("com.acme.Order")


@pytest.mark.parametrize("name", ["", ".", "a..b", "../secret", "a/b", "com.acme.Order.", "com.1x", "a\\b", "x y"])
def test_name_that_no_schema_can_have_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    files = SchemaFiles(tmp_path / "schemas")
    for call in (files.find, files.has, files.path):
        with pytest.raises(SchemaNotFoundError, match="is not the full name of a schema"):
            call(name)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"type": "record", "name": "Order", "namespace": "com.other", "fields": []}, "declares com.other.Order"),
        ({"type": "record", "name": "com.other.Order", "fields": []}, "declares com.other.Order"),
        ({"type": "record", "name": "Order", "fields": []}, "declares Order"),
        ({"type": "record", "name": "order", "namespace": "com.acme", "fields": []}, "declares com.acme.order"),
        ({"type": "array", "items": "string"}, "declares no name"),
        ("string", "declares no name"),
    ],
)
def test_file_that_declares_another_name_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    path = tmp_path / "com" / "acme" / "Order.avsc"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(SchemaError) as caught:
        SchemaFiles(tmp_path).find("com.acme.Order")
    assert not isinstance(caught.value, SchemaNotFoundError)
    message = str(caught.value)
    assert str(path) in message
    assert found in message
    assert "should declare com.acme.Order" in message


@pytest.mark.parametrize(("content", "problem"), [(b"{", "is not JSON"), (b"\xff\xfe", "cannot be read")])
def test_broken_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "Order.avsc").write_bytes(content)
    with pytest.raises(SchemaError, match=problem) as caught:
        SchemaFiles(tmp_path).find("Order")
    assert "Order.avsc" in str(caught.value)


def test_types_of_other_files_are_drawn_in(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.Order", ("id", "long"), ("customer", "Customer"), ("note", ["null", "org.other.Note"]))
    customer = write(tmp_path, "com.acme.Customer", ("address", "com.acme.Address"))
    address = write(tmp_path, "com.acme.Address", ("city", "string"))
    note = write(tmp_path, "org.other.Note", ("text", "string"))
    text, named = SchemaFiles(tmp_path).with_dependencies(avro, "com.acme.Order")
    assert named == {"com.acme.Customer": customer, "com.acme.Address": address, "org.other.Note": note}
    compiled = avro.compile(text, named=named)
    payload = {"id": 1, "customer": {"address": {"city": "Bonn"}}, "note": {"text": "x"}}
    assert compiled.decode(compiled.encode(payload)) == payload


def test_files_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.Node", ("next", ["null", "com.acme.Edge"]))
    write(tmp_path, "com.acme.Edge", ("to", "com.acme.Node"))
    text, named = SchemaFiles(tmp_path).with_dependencies(avro, "com.acme.Node")
    compiled = avro.compile(text, named=named)
    payload = {"next": {"to": {"next": None}}}
    assert compiled.decode(compiled.encode(payload)) == payload


NESTED = {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}


def test_type_nested_in_two_files_is_one_type(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.Shop", ("sign", "Sign"), ("door", "Door"))
    write(tmp_path, "com.acme.Sign", ("color", NESTED))
    write(tmp_path, "com.acme.Door", ("color", NESTED))
    text, named = SchemaFiles(tmp_path).with_dependencies(avro, "com.acme.Shop")
    compiled = avro.compile(text, named=named)
    payload = {"sign": {"color": "RED"}, "door": {"color": "BLUE"}}
    assert compiled.decode(compiled.encode(payload)) == payload


@pytest.mark.parametrize("order", [("first", "last"), ("last", "first")])
def test_type_without_a_file_is_found_inside_a_file_that_is_drawn_in(tmp_path: Path, order: tuple[str, str]) -> None:
    kinds = {"first": "com.acme.Color", "last": "com.acme.Sign"}
    write(tmp_path, "com.acme.Shop", *((name, kinds[name]) for name in order))
    write(tmp_path, "com.acme.Sign", ("color", ["null", {"type": "array", "items": NESTED}]))
    text, named = SchemaFiles(tmp_path).with_dependencies(avro, "com.acme.Shop")
    compiled = avro.compile(text, named=named)
    payload = {"first": "BLUE", "last": {"color": ["RED"]}}
    assert compiled.decode(compiled.encode(payload)) == payload


def test_missing_type_names_the_schema_that_uses_it(tmp_path: Path) -> None:
    write(tmp_path, "com.acme.Order", ("customer", "Customer"))
    write(tmp_path, "com.acme.Customer", ("address", "Adress"))
    write(tmp_path, "com.acme.Address", ("city", "string"))
    with pytest.raises(SchemaNotFoundError, match=r"it is used by com\.acme\.Customer") as caught:
        SchemaFiles(tmp_path).with_dependencies(avro, "com.acme.Order")
    assert "did you mean com.acme.Address" in str(caught.value)

"""The backend that marks what passes through it."""

import json
from dataclasses import dataclass

import pytest

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.schemas.mock import mock

schema = mock.compile("com.acme.Order")


@dataclass
class Order:
    id: int


def test_text_is_marked_both_ways() -> None:
    assert schema.encode("some text") == b"payload-encoded"
    assert schema.decode(b"payload-encoded") == "payload-decoded"


def test_values_of_mappings_are_marked_both_ways() -> None:
    data = schema.encode({"id": 5, "name": "x"})
    assert json.loads(data) == {"id": "encoded-5", "name": "encoded-x"}
    assert schema.decoder()(b'{"id": "5"}', 0) == {"id": "decoded-5"}
    assert json.loads(schema.encode(Order(7))) == {"id": "encoded-7"}


def test_nothing_is_checked() -> None:
    payload = {"whatever": object()}
    schema.validate(payload)
    assert schema.coerce(payload) is payload
    assert schema.schema_fields() == ()
    assert mock.missing_types("x") == ()


def test_keys_come_back_as_they_were() -> None:
    key_schema = mock.compile(mock.key_schema(schema, "order_id"))
    data = key_schema.encode({"order_id": 5})
    assert data == b'{"order_id": 5}'
    assert key_schema.decode(data) == {"order_id": 5}
    assert key_schema.decoder()(data, 0) == {"order_id": 5}


def test_key_that_json_cannot_hold_is_an_error() -> None:
    key_schema = mock.compile(mock.key_schema(schema, "order_id"))
    with pytest.raises(EncodeError, match="JSON"):
        key_schema.encode({"order_id": object()})
    with pytest.raises(DecodeError, match="JSON"):
        key_schema.decode(b"5")

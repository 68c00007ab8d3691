"""Choosing keys, and keys without a schema."""

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from deimos_async.errors import DecodeError, EncodeError
from deimos_async.schemas import keys
from deimos_async.topics import UNSET, Key


class Color(enum.StrEnum):
    RED = "red"


class Size(enum.Enum):
    LARGE = 3


@dataclass
class Customer:
    id: Any = None


@dataclass
class Order:
    order_id: Any = 0
    customer: Any = field(default_factory=Customer)


FALSY = [0, "", False, 0.0, b""]


@pytest.mark.parametrize("key", [*FALSY, 5, "a", {"a": 1}])
@pytest.mark.parametrize("config", [Key.plain(), Key.field("order_id"), Key.schema("K"), Key.none()])
def test_key_that_is_given_wins(config: Any, key: Any) -> None:
    payload = {"order_id": 1, "payload_key": 2}
    assert keys.choose_key(config, payload, key) == ({"order_id": 1}, key)
    assert payload == {"order_id": 1, "payload_key": 2}


@pytest.mark.parametrize("inside", [*FALSY, 7])
@pytest.mark.parametrize("given", [None, UNSET])
def test_payload_key_wins_over_the_field_and_leaves_a_copy(given: Any, inside: Any) -> None:
    payload = OrderedDict(order_id=1, payload_key=inside)
    left, key = keys.choose_key(Key.field("order_id"), payload, given)
    assert key is inside
    assert left == {"order_id": 1}
    assert payload == {"order_id": 1, "payload_key": inside}


@pytest.mark.parametrize("value", [*FALSY, 7])
def test_field_is_taken_last_and_falsy_values_are_keys(value: Any) -> None:
    payload = {"order_id": value}
    assert keys.choose_key(Key.field("order_id"), payload, None) == (payload, value)
    assert keys.choose_key(Key.field("order_id"), payload, None)[0] is payload
    assert keys.choose_key(Key.field("order_id"), payload | {"payload_key": None}, None) == (payload, value)


@pytest.mark.parametrize("config", [Key.plain(), Key.schema("K"), Key.none(), UNSET])
def test_other_kinds_of_keys_take_no_field(config: Any) -> None:
    assert keys.choose_key(config, {"order_id": 1}, None) == ({"order_id": 1}, None)


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        ({"customer": {"id": 5}}, 5),
        ({"customer": {"id": 0}}, 0),
        ({"customer": {"id": None}}, None),
        ({"customer": {}}, None),
        ({"customer": None}, None),
        ({}, None),
        (None, None),
        ("text", None),
        (Order(customer=Customer("x")), "x"),
        (Order(customer={"id": "x"}), "x"),
        ({"customer": Customer(0)}, 0),
        (Order(customer=None), None),
    ],
)
def test_dotted_field_walks_mappings_and_objects(payload: Any, key: Any) -> None:
    assert keys.choose_key(Key.field("customer.id"), payload, None) == (payload, key)


def test_key_name_is_the_last_part() -> None:
    assert keys.key_name("order_id") == "order_id"
    assert keys.key_name("customer.address.id") == "id"


@pytest.mark.parametrize("config", [Key.plain(), Key.field("id"), Key.schema("K")])
def test_missing_key_is_an_error_that_tells_how_to_have_none(config: Any) -> None:
    with pytest.raises(EncodeError, match=r"a key is required: .*payload_key.*use Key\.none\(\)"):
        keys.check_presence(config, None)
    for key in FALSY:
        keys.check_presence(config, key)


def test_key_on_a_topic_without_keys_is_an_error() -> None:
    keys.check_presence(Key.none(), None)
    for key in FALSY:
        with pytest.raises(EncodeError, match="this topic has no keys"):
            keys.check_presence(Key.none(), key)


@pytest.mark.parametrize("key", [None, 1])
def test_topic_declared_without_key_takes_nothing(key: Any) -> None:
    with pytest.raises(EncodeError, match="declared without key="):
        keys.check_presence(UNSET, key)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("abc", b"abc"),
        ("", b""),
        ("grün", b"gr\xc3\xbcn"),
        (5, b"5"),
        (0, b"0"),
        (-7, b"-7"),
        (1.5, b"1.5"),
        (False, b"false"),
        (True, b"true"),
        (Decimal("1.50"), b"1.50"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
        (date(2026, 11, 24), b"2026-11-24"),
        (Color.RED, b"red"),
        (Size.LARGE, b"3"),
        (b"\xff", b"\xff"),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
    ],
)
def test_plain_key_is_its_text(key: Any, data: bytes) -> None:
    assert keys.plain_key(key) == data


@pytest.mark.parametrize("key", [{"a": 1}, [1], (1, 2), {1}, Order(), object()])
def test_plain_key_without_one_text_form_is_an_error(key: Any) -> None:
    with pytest.raises(EncodeError) as caught:
        keys.plain_key(key)
    assert type(key).__name__ in str(caught.value)


def test_plain_key_with_half_a_surrogate_pair_is_an_error() -> None:
    with pytest.raises(EncodeError, match="surrogate"):
        keys.plain_key("\udc00")


def test_plain_keys_come_back_as_text() -> None:
    decode = keys.text_decoder("orders")
    assert decode(b"5") == "5"
    assert decode(b"") == ""
    assert decode(None) is None
    with pytest.raises(DecodeError, match="not UTF-8 at byte 1") as caught:
        decode(b"a\xff")
    assert caught.value.topic == "orders"


@pytest.mark.parametrize("value", [{}, {"other": 1}, "text", 5])
def test_key_written_without_the_field_is_an_error(value: Any) -> None:
    decode = keys.picking(lambda data: value, "id", "orders")
    with pytest.raises(DecodeError, match="without the field 'id'") as caught:
        decode(b"x")
    assert caught.value.topic == "orders"


@pytest.mark.parametrize("value", [0, "", None, 5])
def test_field_is_picked_out_of_the_key(value: Any) -> None:
    decode = keys.picking(lambda data: data and {"id": value}, "id", "orders")
    assert decode(b"x") == value
    assert decode(None) is None

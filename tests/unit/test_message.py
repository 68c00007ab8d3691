"""Records, messages and headers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from deimos_async.message import (
    Delivery,
    Headers,
    InboundRecord,
    Message,
    OutboundRecord,
    TopicPartition,
    encode_headers,
)


@dataclass(frozen=True)
class Record:
    topic: str = "test.orders"
    partition: int = 3
    offset: int = 42
    timestamp: int | None = None
    key: bytes | None = b"key"
    value: bytes | None = b"value"
    headers: Sequence[tuple[str, bytes | None]] = ()


def message(**fields: Any) -> Message[Any]:
    record: InboundRecord = Record(**fields)
    return Message(record, "decoded key", {"decoded": "payload"})


def test_message_gives_what_the_record_has_and_what_was_decoded() -> None:
    found = message(headers=[("a", b"1")])
    assert (found.topic, found.partition, found.offset) == ("test.orders", 3, 42)
    assert (found.key, found.payload) == ("decoded key", {"decoded": "payload"})
    assert (found.raw_key, found.raw_payload) == (b"key", b"value")
    assert found.headers["a"] == b"1"
    assert found.headers is found.headers


@pytest.mark.parametrize(
    ("milliseconds", "time"),
    [
        (None, None),
        (-1, None),
        (2**62, None),
        (253_402_300_800_000, None),  # year 10,000
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (253_402_300_799_999, datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        (1_700_000_000_123, datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)),
    ],
)
def test_timestamp_is_aware_utc_or_none(milliseconds: int | None, time: datetime | None) -> None:
    assert message(timestamp=milliseconds).timestamp == time


@pytest.mark.parametrize(("value", "is_tombstone"), [(None, True), (b"", False), (b"x", False)])
def test_only_a_missing_value_is_a_tombstone(value: bytes | None, is_tombstone: bool) -> None:
    assert message(value=value).is_tombstone is is_tombstone


def test_message_is_read_only() -> None:
    for name in ("payload", "key", "topic", "offset", "headers", "new"):
        with pytest.raises(AttributeError):
            setattr(message(), name, None)


def test_reprs_show_the_place_and_no_data() -> None:
    assert repr(message()) == "Message(topic='test.orders', partition=3, offset=42)"
    assert repr(OutboundRecord("orders", key=b"secret", value=b"secret")) == (
        "OutboundRecord(topic='orders', partition=None)"
    )
    assert repr(Headers([("a", b"secret")])) == "Headers(['a'])"


def test_headers_keep_order_and_repeated_names() -> None:
    headers = Headers([("a", b"1"), ("b", None), ("a", b"2")])
    assert list(headers) == [("a", b"1"), ("b", None), ("a", b"2")]
    assert len(headers) == 3
    assert headers["a"] == headers.get("a") == b"2"
    assert headers.get_all("a") == [b"1", b"2"]
    assert headers["b"] is None
    assert headers.get("b", b"default") is None
    assert headers.get("c", b"default") == b"default"
    assert headers.get_all("c") == []
    assert "b" in headers
    assert "c" not in headers
    with pytest.raises(KeyError, match="c"):
        headers["c"]


def test_headers_of_the_same_pairs_are_equal() -> None:
    pairs = [("a", b"1"), ("b", None)]
    assert Headers(pairs) == Headers(tuple(pairs))
    assert hash(Headers(pairs)) == hash(Headers(tuple(pairs)))
    assert Headers(pairs) != Headers(pairs[::-1])
    assert Headers(pairs) != pairs


@pytest.mark.parametrize(
    ("given", "encoded"),
    [
        (None, []),
        ({}, []),
        ({"a": "ä", "b": b"\xff", "c": None}, [("a", b"\xc3\xa4"), ("b", b"\xff"), ("c", None)]),
        ([("a", "1"), ("a", "2")], [("a", b"1"), ("a", b"2")]),
        (Headers([("a", b"1"), ("a", None)]), [("a", b"1"), ("a", None)]),
    ],
)
def test_headers_are_encoded_in_order(given: Any, encoded: list[tuple[str, bytes | None]]) -> None:
    assert encode_headers(given) == encoded


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"a": 5}, "header 'a': values are str, bytes or None, not int"),
        ([("b", bytearray(b"x"))], "header 'b': values are str, bytes or None, not bytearray"),
        ({5: "a"}, "header names are str, not int"),
    ],
)
def test_header_of_another_type_is_refused_by_name(given: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        encode_headers(given)


def test_places_are_tuples_that_survive_a_pickle() -> None:
    for place in (TopicPartition("orders", 3), Delivery("orders", 3, 42)):
        assert pickle.loads(pickle.dumps(place)) == place
        assert hash(place) == hash(tuple(place))

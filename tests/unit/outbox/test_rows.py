"""Records become rows of the outbox, and headers come back as they were."""

from __future__ import annotations

import json
import uuid

import pytest

from deimos_async.database.outbox.protocol import NewRow
from deimos_async.message import OutboundRecord
from deimos_async.outbox import rows
from deimos_async.outbox.rows import decode_headers, encode_headers_text, header_problem
from deimos_async.outbox.shards import SHARDS, order_hash, shard_of


def make_rows(records: list[OutboundRecord]) -> list[NewRow]:
    return [NewRow(*row) for row in rows.make_rows(records)]


def test_record_becomes_a_row_with_everything_it_carries() -> None:
    record = OutboundRecord("orders", b"k", b"value", [("a", b"1"), ("b", None)], None, None, 1_700_000_000_123)
    (row,) = make_rows([record])
    assert row._asdict() | {"message_id": None} == {
        "topic": "orders",
        "message": b"value",
        "key": b"k",
        "partition_key": None,
        "shard": shard_of(row.order_hash),
        "order_hash": order_hash("orders", b"k"),
        "order_key": None,
        "headers": '[["a","1"],["b",null]]',
        "kafka_partition": None,
        "timestamp_ms": 1_700_000_000_123,
        "message_id": None,
        "size": len(b"k") + len(b"value") + len('[["a","1"],["b",null]]'),
    }


def test_tombstone_without_headers_has_no_value_and_no_headers() -> None:
    (row,) = make_rows([OutboundRecord("orders", b"k", None)])
    assert (row.message, row.headers, row.size) == (None, None, 1)


@pytest.mark.parametrize(
    ("partition_key", "text", "raw"),
    [
        (b"customer-7", "customer-7", None),
        (b"x" * 255, "x" * 255, None),
        (b"x" * 256, None, b"x" * 256),
        ("Zürich".encode(), None, "Zürich".encode()),
        (b"\xff", None, b"\xff"),
        (b"a\0b", None, b"a\0b"),
        (b"", None, b""),
    ],
)
def test_partition_key_is_text_where_every_table_can_hold_it(
    partition_key: bytes, text: str | None, raw: bytes | None
) -> None:
    (row,) = make_rows([OutboundRecord("orders", b"k", b"v", partition_key=partition_key)])
    assert (row.partition_key, row.order_key) == (text, raw)
    assert row.order_hash == order_hash("orders", partition_key)


def test_what_keeps_its_order_is_in_one_shard() -> None:
    same_key = make_rows([OutboundRecord("orders", b"k", b"%d" % number) for number in range(20)])
    assert len({row.shard for row in same_key}) == 1
    one_partition = make_rows([OutboundRecord("orders", b"%d" % number, b"v", partition=3) for number in range(20)])
    assert len({row.shard for row in one_partition}) == 1
    without_key = make_rows([OutboundRecord("orders", None, b"v") for _ in range(2000)])
    assert {row.shard for row in without_key} == set(range(SHARDS))  # missing one: once in 10^12
    assert all(-(2**31) <= row.order_hash < 2**31 for row in without_key)


def test_message_ids_are_uuids_of_version_7_and_all_different() -> None:
    found = make_rows([OutboundRecord("orders", None, b"v") for _ in range(500)])
    ids = [uuid.UUID(row.message_id) for row in found]
    assert len(set(ids)) == 500
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, uuid.RFC_4122)}
    assert [str(id_) for id_ in ids] == [row.message_id for row in found]
    assert max(id_.int >> 80 for id_ in ids) <= uuid.UUID(make_rows([OutboundRecord("a")])[0].message_id).int >> 80


def test_headers_of_several_messages_are_their_own() -> None:
    trace = (("traceparent", b"00-1-2-01"),)
    records = [OutboundRecord("orders", headers=headers) for headers in (trace, [("a", b"1")], trace, [("b", b"2")])]
    texts = [row.headers for row in make_rows(records)]
    assert texts == ['[["traceparent","00-1-2-01"]]', '[["a","1"]]', '[["traceparent","00-1-2-01"]]', '[["b","2"]]']


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("a", b"1"), ("a", b"2"), ("b", None), ("c", b"")],
        [("text", "Zürich ✓ \U0001f600".encode()), ("nul", b"\0"), ("quotes", b"\"'\\\n")],
        [("raw", bytes(range(256)))],
    ],
)
def test_headers_come_back_in_order_and_to_the_byte(headers: list[tuple[str, bytes | None]]) -> None:
    text = encode_headers_text(headers)
    assert decode_headers(text) == headers
    assert text.isascii()


def test_headers_can_be_read_by_people() -> None:
    assert json.loads(encode_headers_text([("city", "Zürich".encode()), ("raw", b"\xff")])) == [
        ["city", "Zürich"],
        ["raw", {"base64": "/w=="}],
    ]
    assert decode_headers(None) == []


@pytest.mark.parametrize("text", ["{", "7", '[["a"]]', '[["a",7]]', '[["a",{"base32":""}]]', '[["a",{"base64":"?"}]]'])
def test_something_else_than_headers_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_headers(text)


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ([("a" * 128, b"x" * 1000)] * 20, None),
        ([("a" * 129, b"")], "a name has 1 to 128"),
        ([("", b"")], "a name has 1 to 128"),
        ([("with space", b"")], "header 'with space' cannot be stored"),
        ([("line\nbreak", b"")], "header 'line\\nbreak' cannot be stored"),
        ([("a", None)] * 100, None),
        ([("a", None)] * 101, "101 headers, at most 100"),
        ([("a", b"x" * (32 * 1024 - 1))], None),
        ([("a", b"x" * 32 * 1024)], "headers of 32769 bytes, at most 32768"),
    ],
)
def test_headers_beyond_the_limits_are_refused_without_their_values(
    headers: list[tuple[str, bytes | None]], problem: str | None
) -> None:
    found = header_problem(headers)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem.replace(r"\\n", r"\n") in found

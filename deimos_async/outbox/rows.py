"""From records to rows of the outbox, and from their headers back.

Headers are stored as JSON that people can read: a list of pairs of name and value. A value is a text where its bytes
are UTF-8, `{"base64": "..."}` where they are not, and null where there is none.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from deimos_async.database.outbox.protocol import RowValues
from deimos_async.message import OutboundRecord
from deimos_async.outbox.shards import order_hash, shard_of

__all__ = ["decode_headers", "encode_headers_text", "header_problem", "make_rows"]

Pairs = Sequence[tuple[str, bytes | None]]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MOST_HEADERS = 100
_MOST_HEADER_BYTES = 32 * 1024
_LONGEST_TEXT = 255


def make_rows(records: Sequence[OutboundRecord]) -> list[RowValues]:
    """n records -> n rows, in order, each with a message id of its own."""
    texts: dict[int, str] = {}
    rows: list[RowValues] = []
    for record, message_id in zip(records, _message_ids(len(records)), strict=True):
        topic, key, value, headers, partition, partition_key, timestamp = record
        order = _order_hash(topic, key if partition_key is None else partition_key, partition)
        if order is None:
            order = random.getrandbits(32) - 0x8000_0000
        size = 0 if value is None else len(value)
        if key is not None:
            size += len(key)
        text = plain = order_key = None
        if headers:
            # The headers of one call's trace are one object, which all its messages share.
            text = texts.get(id(headers))
            if text is None:
                text = texts[id(headers)] = encode_headers_text(headers)
            size += len(text)
        if partition_key is not None:
            plain = _as_text(partition_key)
            if plain is None:
                order_key = partition_key
        shard = shard_of(order)
        rows.append((topic, value, key, plain, shard, order, order_key, text, partition, timestamp, message_id, size))
    return rows


_order_hash = lru_cache(maxsize=16384)(order_hash)
"""Equal keys repeat a lot."""


def _as_text(partition_key: bytes) -> str | None:
    """Where it can be read by everybody it is stored as Deimos does; in all encodings that a table may have."""
    if 0 < len(partition_key) <= _LONGEST_TEXT and partition_key.isascii() and b"\0" not in partition_key:
        return partition_key.decode("ascii")
    return None


def _message_ids(count: int) -> list[str]:
    """UUIDs of version 7, ascending: those of one call are random in common, and numbered in their last 48 bits.

    Source: RFC 9562, section 5.7, and method 2 of section 6.2.
    """
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    drawn = int.from_bytes(os.urandom(10))
    # The first one is so low that all of them have the same bits above.
    first = drawn & 0x7FFF_FFFF_FFFF
    head = f"{stamp[:8]}-{stamp[8:]}-7{drawn >> 48 & 0xFFF:03x}-{0x8000 | drawn >> 60 & 0x3FFF:04x}-"
    return [f"{head}{number:012x}" for number in range(first, first + count)]


def header_problem(headers: Pairs) -> str | None:
    """What is wrong with headers that are to be stored; None: nothing."""
    if len(headers) > _MOST_HEADERS:
        return f"{len(headers)} headers, at most {_MOST_HEADERS} can be stored in the outbox"
    size = 0
    for name, value in headers:
        if _NAME.fullmatch(name) is None:
            return (
                f"header {name[:128]!r} cannot be stored in the outbox: "
                "a name has 1 to 128 letters, digits, '.', '_' or '-'"
            )
        size += len(name) + (0 if value is None else len(value))
    if size > _MOST_HEADER_BYTES:
        return f"headers of {size} bytes, at most {_MOST_HEADER_BYTES} can be stored in the outbox"
    return None


def encode_headers_text(headers: Pairs) -> str:
    """Headers as the table has them. Order and repeated names are kept; the text is ASCII."""
    return json.dumps([(name, _readable(value)) for name, value in headers], separators=(",", ":"))


def decode_headers(text: str | None) -> list[tuple[str, bytes | None]]:
    """Headers from the table.

    Raises:
        ValueError: It is something else.
    """
    if text is None:
        return []
    try:
        return [(str(name), _raw(value)) for name, value in json.loads(text)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not the headers of a stored message") from error


def _readable(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode("ascii")}


def _raw(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    return b64decode(value["base64"], validate=True)

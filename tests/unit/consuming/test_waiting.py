"""Which keys wait, as a member knows it."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async.consuming.waiting import Waiting, key_hash
from deimos_async.message import InboundRecord


class Record:
    def __init__(self, offset: int, key: bytes | None) -> None:
        self.topic, self.partition, self.offset, self.timestamp = "orders", 0, offset, None
        self.key = key
        self.value: bytes | None = b"v"
        self.headers: Any = ()


def records(*keys: bytes | None) -> list[InboundRecord]:
    return [Record(100 + number, key) for number, key in enumerate(keys)]


@pytest.mark.parametrize(
    ("key", "hash"),
    [(b"", -1970711489451281740), (b"a", 4681665781835383343), (b"order-17", 8712686323074620336)],
)
def test_hash_of_a_key_stays_what_it_is_as_tables_hold_it(key: bytes, hash: int) -> None:
    assert key_hash(key) == hash
    assert -(2**63) <= key_hash(key) < 2**63


def test_only_keys_with_rows_are_held_and_messages_without_a_key_never() -> None:
    waiting = Waiting()
    assert not waiting
    chain, is_new = waiting.add(5, key_hash(b"a"))
    alone, _ = waiting.add(6, None)
    assert (is_new, bool(waiting), waiting.rows, waiting.keys) == (True, True, 2, 2)
    assert [waiting.holds(record) for record in records(b"a", b"b", None, b"")] == [True, False, False, False]
    assert waiting.add(7, key_hash(b"a")) == (chain, False)
    assert waiting.remove(chain, 5)
    assert waiting.holds(records(b"a")[0])
    assert not waiting.remove(chain, 7)
    assert not waiting.holds(records(b"a")[0])
    assert not waiting.remove(alone, 6)
    assert (bool(waiting), waiting.rows, list(waiting.chains())) == (False, 0, [])


def test_key_that_waits_again_has_a_new_chain() -> None:
    waiting = Waiting()
    first, _ = waiting.add(5, 7)
    waiting.remove(first, 5)
    second, is_new = waiting.add(6, 7)
    assert is_new
    assert second is not first
    assert second.offsets == [6]


def test_row_that_is_known_is_not_counted_twice_and_an_earlier_one_comes_first() -> None:
    waiting = Waiting()
    chain, _ = waiting.add(5, 7)
    for offset in (9, 5, 3, 9, 4):
        waiting.add(offset, 7)
    assert (chain.offsets, waiting.rows) == ([3, 4, 5, 9], 4)


def test_room_of_a_key_counts_what_waits_and_what_comes() -> None:
    waiting = Waiting()
    for offset in (1, 2):
        waiting.add(offset, key_hash(b"a"))
    waiting.add(3, key_hash(b"b"))
    assert waiting.fitting(records(b"a", b"b", b"b", b"a"), 4) == 4
    assert waiting.fitting(records(b"a", b"b", b"b", b"a"), 3) == 3
    assert waiting.fitting(records(b"b", b"b", b"b"), 2) == 1
    assert waiting.fitting(records(b"a"), 2) == 0
    assert waiting.fitting([], 2) == 0

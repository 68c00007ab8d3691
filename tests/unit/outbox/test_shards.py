"""Numbers that are part of what is stored must never change."""

from __future__ import annotations

from collections import Counter

import pytest

from deimos_async.brokers.partitioner import murmur2
from deimos_async.outbox.shards import LAYOUT, SHARDS, SLOTS, order_hash, shard_of, shards_of_slot, slot_of


@pytest.mark.parametrize(
    ("key", "partition", "hashed"),
    [
        (b"a", None, b"orders\x00a"),
        (b"", None, b"orders\x00"),
        (b"a", 3, b"orders\x00partition 3"),
        (None, 0, b"orders\x00partition 0"),
    ],
)
def test_order_is_the_hash_of_topic_and_key(key: bytes | None, partition: int | None, hashed: bytes) -> None:
    found = order_hash("orders", key, partition)
    assert found is not None
    assert -(2**31) <= found < 2**31
    assert found & 0xFFFFFFFF == murmur2(hashed)
    assert shard_of(found) == murmur2(hashed) % 64


def test_layout_is_what_databases_have_written_down() -> None:
    assert LAYOUT == "shards=64 slots=8 hash=murmur2"
    assert order_hash("orders", b"a") == 973672615


def test_message_without_a_key_promises_no_order() -> None:
    assert order_hash("orders", None) is None


def test_every_shard_is_in_one_slot() -> None:
    owned = [shard for slot in range(SLOTS) for shard in shards_of_slot(slot)]
    assert sorted(owned) == list(range(SHARDS))
    assert all(slot_of(shard) == slot for slot in range(SLOTS) for shard in shards_of_slot(slot))


def test_keys_spread_over_all_shards() -> None:
    shards = Counter(shard_of(order_hash("orders", b"%d" % number) or 0) for number in range(6400))
    assert len(shards) == SHARDS
    assert max(shards.values()) < 200

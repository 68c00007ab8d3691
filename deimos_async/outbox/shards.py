"""Which shard and slot a stored message belongs to. What must keep its order is in one shard, which has one owner.

The numbers are part of what is stored. A database whose rows were written with others is refused (`LAYOUT`).
"""

from __future__ import annotations

from functools import lru_cache

from deimos_async.brokers.partitioner import murmur2

__all__ = ["LAYOUT", "SHARDS", "SLOTS", "order_hash", "shard_of", "shards_of_slot", "slot_of"]

SHARDS = 64
"""Shards of the table."""
SLOTS = 8
"""Slots, the unit that is leased: `SHARDS / SLOTS` shards each."""
LAYOUT = f"shards={SHARDS} slots={SLOTS} hash=murmur2"
"""What must be the same for everybody who writes to or sends from one table."""

_hash = lru_cache(maxsize=16384)(murmur2)


def order_hash(topic: str, order_key: bytes | None, partition: int | None = None) -> int | None:
    """What keeps its order together, as a number of 32 bits with sign.

    Args:
        topic: Name in Kafka, prefix included.
        order_key: The partition key, else the key.
        partition: Explicit partition; it wins, as messages of one partition keep their order.

    Returns:
        None where no order is promised: any number will do, and random ones spread best.
    """
    if partition is not None:
        order_key = b"partition %d" % partition
    elif order_key is None:
        return None
    found = _hash(b"%b\0%b" % (topic.encode(), order_key))
    return found - 0x1_0000_0000 if found & 0x8000_0000 else found


def shard_of(hash_: int) -> int:
    """Shard of an `order_hash`; its sign does not matter."""
    return hash_ % SHARDS


def slot_of(shard: int) -> int:
    """Slot of a shard."""
    return shard % SLOTS


def shards_of_slot(slot: int) -> range:
    """Shards of a slot."""
    return range(slot, SHARDS, SLOTS)

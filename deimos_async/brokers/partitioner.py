"""Which partition a record goes to, and how large it is: the same rules for every broker.

Pure: no client library, no clock.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache

from deimos_async.message import OutboundRecord

__all__ = ["Partitioner", "murmur2", "size_bound"]

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995
_SEED = 0x9747B28C

_RECORD_OVERHEAD = 61 + 21
"""Header of a record batch, and the most that a record's length, attributes, timestamp and offset take."""
_LENGTH = 5
"""Most bytes of a length (zigzag varint of 32 bits)."""


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bits, unsigned, with the seed of Kafka's Java client.

    Source: A. Appleby's MurmurHash2 (public domain); seed as in org.apache.kafka.common.utils.Utils.
    """
    length = len(data)
    words, rest = divmod(length, 4)
    h = _SEED ^ length
    for k in struct.unpack_from(f"<{words}I", data):
        k = k * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if rest:
        h = ((h ^ int.from_bytes(data[-rest:], "little")) * _M) & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


class Partitioner:
    """Chooses partitions as the Java client does: by key, and for records without one a partition after the other.

    Equal keys repeat a lot, so the last `cache_size` hashes are kept.
    """

    STICKY_RECORDS = 1000
    """Records without a key in one call that share a partition; the next ones go to the next partition."""

    def __init__(self, cache_size: int = 16384) -> None:
        self._hash = lru_cache(maxsize=cache_size)(murmur2)
        self._turns: dict[str, int] = {}

    def keyed(self, key: bytes, partitions: int) -> int:
        """Partition of a key: murmur2, made positive by dropping the sign bit, modulo the count."""
        return (self._hash(key) & 0x7FFFFFFF) % partitions

    def sticky(self, topic: str, partitions: int) -> int:
        """Next partition for records without a key; the first one of a topic is random."""
        turn = self._turns.get(topic)
        turn = random.randrange(partitions) if turn is None else turn + 1  # noqa: S311 - spreads load, no secret
        self._turns[topic] = turn
        return turn % partitions


def size_bound(record: OutboundRecord) -> int:
    """Upper bound of the record's size in a batch of its own, uncompressed, in bytes.

    Source: Kafka's record batch format, magic 2.
    """
    size = _RECORD_OVERHEAD + 3 * _LENGTH
    if record.key is not None:
        size += len(record.key)
    if record.value is not None:
        size += len(record.value)
    for name, value in record.headers:
        size += 2 * _LENGTH + len(name.encode()) + (0 if value is None else len(value))
    return size

"""Which partition a record goes to, and how large it is: the same rules for every broker.

Pure: no client library, no clock.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache

from deimos_async.message import OutboundRecord

__all__ = ["Partitioner", "murmur2", "size_alone"]

_MASK = 0xFFFFFFFF
_M = 0x5BD1E995
_SEED = 0x9747B28C

_BATCH_HEADER = 61
_OTHERS = 3
"""Attributes, and the differences of timestamp and offset to the batch's first ones, which are 0 for a record alone."""


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


def size_alone(record: OutboundRecord) -> int:
    """Size of a batch that holds this record alone, uncompressed, in bytes: what a topic's limit is compared with.

    To the byte: a record that one topic has taken must not be too large for another one with the same limit, however
    many headers it has. Within a larger batch a record never takes more.

    Source: Kafka's record batch format, magic 2.
    """
    size = _OTHERS
    key, value = record.key, record.value
    size += 1 if key is None else _length_size(len(key)) + len(key)
    size += 1 if value is None else _length_size(len(value)) + len(value)
    size += _length_size(len(record.headers))
    for name, data in record.headers:
        # Written out for lengths of one byte, as there may be half a million of these in a megabyte.
        length = len(name) if name.isascii() else len(name.encode())
        size += length + (1 if length < 64 else _length_size(length))
        if data is None:
            size += 1
        else:
            length = len(data)
            size += length + (1 if length < 64 else _length_size(length))
    return _BATCH_HEADER + _length_size(size) + size


def _length_size(number: int) -> int:
    """Bytes that a length takes: seven bits in each, of its double (zigzag)."""
    return max(1, ((2 * number).bit_length() + 6) // 7)

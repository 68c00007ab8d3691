"""Partitions and sizes of records."""

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from deimos_async.brokers.partitioner import Partitioner, murmur2, size_alone
from deimos_async.message import OutboundRecord


@pytest.mark.parametrize(
    ("data", "signed"),
    # The Java client's own test vectors (UtilsTest.testMurmur2), as signed 32-bit numbers.
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_numbers_of_the_java_client(data: bytes, signed: int):
    assert murmur2(data) == signed % 2**32


def test_murmur2_agrees_with_aiokafka_at_every_length():
    for length in range(67):
        for first in (0, 0x7F, 0x80, 0xFF):
            data = bytes((first + 37 * n) % 256 for n in range(length))
            assert murmur2(data) == murmur2_of_aiokafka(data)


def test_key_is_placed_by_the_positive_hash():
    partitioner = Partitioner()
    # murmur2("21") is negative: 3321034988 & 0x7fffffff = 1173551340, and 1173551340 % 7 = 3
    assert partitioner.keyed(b"21", 7) == 1173551340 % 7
    assert [partitioner.keyed(b"21", 7) for _ in range(3)] == [1173551340 % 7] * 3


def test_forgotten_keys_are_placed_as_before():
    partitioner = Partitioner(cache_size=2)
    keys = [b"%d" % n for n in range(50)]
    assert [partitioner.keyed(key, 11) for key in keys] == [partitioner.keyed(key, 11) for key in keys]


def test_sticky_partitions_take_turns_for_each_topic():
    partitioner = Partitioner()
    first = [partitioner.sticky("a", 3) for _ in range(3)]
    partitioner.sticky("b", 3)
    assert sorted(first) == [0, 1, 2]
    assert [partitioner.sticky("a", 3) for _ in range(3)] == first


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (None, None, []),
        (b"", b"", []),
        (b"k" * 300, b"v" * 100_000, [("ü" * 200, b"x" * 5000), ("none", None), ("", b"")]),
        (b"k" * 63, b"v" * 64, [("n" * 63, b"x" * 63), ("n" * 64, b"x" * 64), ("n" * 8191, b"x" * 8192)]),
        (b"k" * 8191, b"v" * (1 << 20), [("ü" * 32, b"x" * (1 << 20)), ("ü" * 31, None)]),
        (None, b"v" * ((1 << 20) - 1), [("", None)] * 8191),
        (None, None, [("", None)] * 8192),
    ],
)
def test_size_alone_is_that_of_a_batch_of_one_to_the_byte(key, value, headers):
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1)
    builder.append(0, 1, key, value, headers)
    assert size_alone(OutboundRecord("t", key=key, value=value, headers=headers)) == builder.size()


def test_record_in_a_larger_batch_never_takes_more_than_alone():
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 30)
    record = OutboundRecord("t", key=b"k", value=b"v", headers=[])
    builder.append(0, 0, b"", b"", [])
    before = builder.size()
    # As far from the first record as a batch may say.
    builder.append((1 << 31) - 1, (1 << 62), record.key, record.value, [])
    assert builder.size() - before <= size_alone(record)

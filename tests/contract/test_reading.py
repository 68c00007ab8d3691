"""The port to a cluster, over every adapter: reading without a group, offsets of a group from outside, deleting."""

import asyncio
from contextlib import aclosing

import pytest

from deimos_async.brokers.protocol import StoredOffset
from deimos_async.errors import BrokerError, CommitError, TopicNotFoundError
from deimos_async.message import OutboundRecord, TopicPartition

from .conftest import DEADLINE, Bench

MANY = 1200
"""More than one list holds."""


async def fill(bench: Bench, count: int, partition: int = 0) -> None:
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"%d" % n, partition=partition) for n in range(count)])


async def read(bench: Bench, ranges, **options) -> dict[TopicPartition, list[int]]:
    """Offsets by partition, in the order in which they came."""
    found: dict[TopicPartition, list[int]] = {}
    async with asyncio.timeout(DEADLINE):
        async for records in bench.broker.read(ranges, **options):
            assert records
            (partition,) = {TopicPartition(record.topic, record.partition) for record in records}
            found.setdefault(partition, []).extend(record.offset for record in records)
    return found


async def test_record_is_read_as_it_was_sent(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    headers = [("a", b"1"), ("b", None), ("a", b"")]
    await producer.send(
        [
            OutboundRecord(bench.topic, key=b"k", value=b"v", headers=headers, timestamp=1_600_000_000_123),
            OutboundRecord(bench.topic, value=None),
        ]
    )
    (first, second) = [record async for records in bench.broker.read({bench.at(0): (0, 2)}) for record in records]
    assert (first.key, first.value, list(first.headers), first.timestamp) == (b"k", b"v", headers, 1_600_000_000_123)
    assert (second.key, second.value, list(second.headers)) == (None, None, [])


async def test_ranges_of_several_partitions_are_read_in_order(bench: Bench):
    await bench.create(3)
    await fill(bench, MANY, 0)
    await fill(bench, 10, 1)
    found = await read(bench, {bench.at(0): (5, MANY), bench.at(1): (2, 4), bench.at(2): (0, 9)})
    assert found == {bench.at(0): list(range(5, MANY)), bench.at(1): [2, 3]}


async def test_range_beyond_what_exists_is_cut(bench: Bench):
    await bench.create()
    await fill(bench, 6)
    await bench.delete_records(bench.at(0), 2)
    assert await read(bench, {bench.at(0): (0, 100)}) == {bench.at(0): [2, 3, 4, 5]}
    assert await read(bench, {bench.at(0): (0, 2)}) == {}
    assert await read(bench, {bench.at(0): (6, 7)}) == {}
    assert await read(bench, {}) == {}


async def test_limit_gives_the_first_records_of_each_partition(bench: Bench):
    await bench.create(2)
    await fill(bench, MANY, 0)
    await fill(bench, MANY, 1)
    ranges = {bench.at(0): (3, MANY), bench.at(1): (0, MANY)}
    assert await read(bench, ranges, limit=1) == {bench.at(0): [3], bench.at(1): [0]}
    assert await read(bench, ranges, limit=0) == {}


async def test_what_is_written_while_reading_is_not_waited_for(bench: Bench):
    await bench.create()
    await fill(bench, MANY)
    count = 0
    async with asyncio.timeout(DEADLINE):
        async for records in bench.broker.read({bench.at(0): (0, 1 << 40)}):
            if not count:
                await fill(bench, 5)
            count += len(records)
    assert count == MANY


async def test_reading_that_is_closed_early_can_begin_again(bench: Bench):
    await bench.create()
    await fill(bench, MANY)
    async with aclosing(bench.broker.read({bench.at(0): (0, MANY)})) as reading:
        first = await anext(reading)
    assert first[0].offset == 0
    assert len((await read(bench, {bench.at(0): (0, MANY)}))[bench.at(0)]) == MANY


async def test_reading_commits_nothing_and_disturbs_no_member(bench: Bench):
    await bench.create()
    await fill(bench, 4)
    member = await bench.member().join()
    await read(bench, {bench.at(0): (0, 4)})
    assert await bench.broker.group_offsets(bench.group) == {}
    assert len(await member.read(4)) == 4
    assert [event for event, _ in member.events] == ["assigned"]


async def test_partition_that_does_not_exist_is_an_error(bench: Bench):
    await bench.create()
    for partition in (bench.at(1), bench.at(0, "no.such.topic")):
        with pytest.raises(TopicNotFoundError, match=partition.topic):
            await read(bench, {partition: (0, 1)})
        with pytest.raises(TopicNotFoundError, match=partition.topic):
            await bench.broker.begin_offsets([partition])
        with pytest.raises(TopicNotFoundError, match=partition.topic):
            await bench.broker.delete_before({partition: 1})


async def test_offsets_are_stored_with_their_texts_and_replaced(bench: Bench):
    await bench.create(2)
    assert await bench.broker.stored_offsets(bench.group) == {}
    await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(3, "one"), bench.at(1): StoredOffset(5)})
    assert await bench.broker.group_offsets(bench.group) == {bench.at(0): 3, bench.at(1): 5}
    await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(2, "two")})
    await bench.broker.store_offsets(bench.group, {})
    assert await bench.broker.stored_offsets(bench.group) == {
        bench.at(0): StoredOffset(2, "two"),
        bench.at(1): StoredOffset(5, ""),
    }


async def test_offset_of_a_member_drops_the_text(bench: Bench):
    await bench.create()
    await fill(bench, 2)
    await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(1, "text")})
    member = await bench.member().join()
    assert [record.offset for record in await member.read(1)] == [1]
    await member.consumer.commit({bench.at(0): 2})
    assert await bench.broker.stored_offsets(bench.group) == {bench.at(0): StoredOffset(2, "")}


async def test_offsets_of_a_group_with_members_cannot_be_stored(bench: Bench):
    await bench.create()
    await bench.member().join()
    with pytest.raises(CommitError) as caught:
        await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(1)})
    assert caught.value.lost
    assert await bench.broker.group_offsets(bench.group) == {}


async def test_text_that_is_too_long_is_refused(bench: Bench):
    await bench.create()
    with pytest.raises(BrokerError):
        await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(1, "x" * 4097)})
    await bench.broker.store_offsets(bench.group, {bench.at(0): StoredOffset(1, "x" * 4096)})


async def test_records_are_deleted_up_to_an_offset(bench: Bench):
    await bench.create(3)
    await fill(bench, 5, 0)
    await fill(bench, 5, 1)
    left = await bench.broker.delete_before({bench.at(0): 3, bench.at(1): 99, bench.at(2): 1})
    assert left == {bench.at(0): 3, bench.at(1): 5, bench.at(2): 0}
    assert await bench.broker.begin_offsets([bench.at(0), bench.at(1), bench.at(2)]) == left
    assert await bench.broker.delete_before({bench.at(0): 1}) == {bench.at(0): 3}
    assert await read(bench, {bench.at(0): (0, 9)}) == {bench.at(0): [3, 4]}
    assert await bench.broker.delete_before({}) == {}

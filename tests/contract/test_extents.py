"""What a member learns of its partitions before it goes on at an offset that is stored elsewhere: memory and Kafka."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import Extent, StoredOffset
from deimos_async.errors import OffsetOutOfRangeError
from deimos_async.message import OutboundRecord

from .conftest import Bench


async def send(bench: Bench, *values: bytes, partition: int = 0, timestamps: Sequence[int | None] = ()) -> None:
    producer = await bench.producer()
    times = timestamps or [None] * len(values)
    await producer.send(
        [
            OutboundRecord(bench.topic, key=None, value=value, partition=partition, timestamp=at)
            for value, at in zip(values, times, strict=True)
        ]
    )


async def test_extent_is_what_the_partition_holds_now(bench: Bench) -> None:
    await bench.create(2)
    await send(bench, b"1", b"2", b"3")
    member = await bench.member().join()
    await bench.delete_records(bench.at(0), 1)
    extents = await member.consumer.extents([bench.at(0), bench.at(1)])
    assert [(extent.begin, extent.end) for extent in (extents[bench.at(0)], extents[bench.at(1)])] == [(1, 3), (0, 0)]


async def test_topic_keeps_its_id_and_one_of_the_same_name_has_another(bench: Bench) -> None:
    await bench.create(2)
    member = await bench.member().join()
    extents = await member.consumer.extents([bench.at(0), bench.at(1)])
    [first] = {extent.topic_id for extent in extents.values()}
    assert (await member.consumer.extents([bench.at(0)]))[bench.at(0)].topic_id == first
    assert first is not None
    await member.consumer.stop()
    await delete(bench)
    await bench.create(2)
    again = await bench.member().join()
    second: Extent = (await again.consumer.extents([bench.at(0)]))[bench.at(0)]
    assert second.topic_id not in (None, first)
    if not isinstance(bench.broker, MemoryBroker):
        assert len(base64.urlsafe_b64decode(first + "==")) == 16


async def delete(bench: Bench) -> None:
    if isinstance(bench.broker, MemoryBroker):
        bench.broker.delete_topic(bench.topic)
        return
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.broker._options.bootstrap_servers)  # type: ignore[attr-defined]
    await admin.start()
    try:
        await admin.delete_topics([bench.topic])
    finally:
        await admin.close()
    while await bench.broker.topics([bench.topic]):
        pass  # each broker hears of it by itself


@pytest.mark.parametrize(
    ("start_from", "begin"),
    [("earliest", 0), ("latest", 3), (datetime.fromtimestamp(2, UTC), 1), (datetime.fromtimestamp(9, UTC), 3)],
)
async def test_starting_point_is_the_stored_offset_else_as_start_from_says(
    bench: Bench, start_from: str | datetime, begin: int
) -> None:
    await bench.create(2)
    await send(bench, b"1", b"2", b"3", timestamps=[1_000, 2_000, 3_000])
    await send(bench, b"1", b"2", b"3", partition=1, timestamps=[1_000, 2_000, 3_000])
    await bench.broker.store_offsets(bench.group, {bench.at(1): StoredOffset(2)})
    member = await bench.member(start_from=start_from).join()
    found = await member.consumer.starting_points([bench.at(0), bench.at(1)])
    assert found == {bench.at(0): begin, bench.at(1): 2}


async def test_position_that_does_not_exist_names_its_partition_and_others_go_on_when_it_is_paused(
    bench: Bench,
) -> None:
    await bench.create(2)
    await send(bench, b"1", b"2")
    await send(bench, b"1", b"2", partition=1)
    await bench.delete_records(bench.at(0), 1)
    member = await bench.member().join()
    member.consumer.seek(bench.at(0), 0)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        while True:
            await member.consumer.fetch(100, 1.0)
    assert caught.value.partition == bench.at(0)
    member.consumer.pause([bench.at(0)])
    member.consumer.seek(bench.at(1), 0)
    assert [record.partition for record in await member.read(2)] == [1, 1]
    member.consumer.seek(bench.at(0), 1)
    member.consumer.resume([bench.at(0)])
    assert [(record.partition, record.offset) for record in await member.read(1)] == [(0, 1)]

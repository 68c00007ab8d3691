"""The port to a cluster (`deimos_async.brokers.protocol`), over every adapter."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from deimos_async.brokers.partitioner import size_alone
from deimos_async.brokers.protocol import NewTopic, ProducerOptions, TopicInfo
from deimos_async.errors import (
    BrokerError,
    CommitError,
    ConfigurationError,
    DeliveryError,
    NotRunningError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from deimos_async.message import Delivery, OutboundRecord

from .conftest import DEADLINE, Bench


def values(records):
    return [record.value for record in records]


def by_partition(records):
    found = {}
    for record in records:
        found.setdefault(record.partition, []).append(record)
    return found


async def fill(bench: Bench, count: int, partition: int = 0, **options) -> None:
    producer = await bench.producer(**options)
    await producer.send([OutboundRecord(bench.topic, value=b"%d" % n, partition=partition) for n in range(count)])


# Topics


async def test_created_topic_is_listed_with_its_partitions(bench: Bench):
    made = await bench.broker.create_topics([NewTopic(bench.topic, 3)])
    assert made == {bench.topic}
    assert await bench.broker.topics([bench.topic, "no.such.topic"]) == {bench.topic: TopicInfo(bench.topic, 3)}
    assert bench.topic in await bench.broker.topics()


async def test_topic_that_exists_is_not_made_again(bench: Bench):
    await bench.create(3)
    other = f"{bench.topic}.other"
    assert await bench.broker.create_topics([NewTopic(bench.topic, 5), NewTopic(other, 1)]) == {other}
    assert (await bench.broker.topics([bench.topic]))[bench.topic].partitions == 3


async def test_asking_for_topics_makes_none(bench: Bench):
    assert await bench.broker.topics([bench.topic]) == {}
    assert await bench.broker.topics([]) == {}
    assert await bench.broker.topics([bench.topic]) == {}


async def test_end_offsets_are_one_past_the_last_record(bench: Bench):
    await bench.create(2)
    await fill(bench, 3, partition=1)
    assert await bench.broker.end_offsets([bench.at(0), bench.at(1)]) == {bench.at(0): 0, bench.at(1): 3}
    assert await bench.broker.end_offsets([]) == {}


async def test_end_offset_of_unknown_partition_is_an_error(bench: Bench):
    await bench.create(1)
    for partition in (bench.at(1), bench.at(0, "no.such.topic")):
        with pytest.raises(TopicNotFoundError, match=partition.topic):
            await bench.broker.end_offsets([partition])


async def test_group_that_never_committed_has_no_offsets(bench: Bench):
    assert await bench.broker.group_offsets(bench.group) == {}


# Sending


async def test_deliveries_come_in_the_order_given(bench: Bench):
    await bench.create(2)
    producer = await bench.producer()
    deliveries = await producer.send([OutboundRecord(bench.topic, value=b"x", partition=n % 2) for n in range(6)])
    assert deliveries == [Delivery(bench.topic, n % 2, n // 2) for n in range(6)]
    assert await producer.send([OutboundRecord(bench.topic, partition=0)]) == [Delivery(bench.topic, 0, 3)]
    assert await producer.send([]) == []


async def test_record_comes_back_as_it_was_sent(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    headers = [("a", b"1"), ("b", None), ("a", b""), ("ü", b"\xff")]
    sent = [
        OutboundRecord(bench.topic, key=b"k", value=b"v", headers=headers, timestamp=1_600_000_000_123),
        OutboundRecord(bench.topic, key=b"k", value=None),
        OutboundRecord(bench.topic, key=None, value=b""),
        OutboundRecord(bench.topic, key=b"", value=None, headers=()),
    ]
    before = datetime.now(UTC)
    await producer.send(sent)
    member = await bench.member().join()
    got = await member.read(4)
    assert [(record.topic, record.partition, record.offset) for record in got] == [
        (bench.topic, 0, n) for n in range(4)
    ]
    assert [(record.key, record.value) for record in got] == [(b"k", b"v"), (b"k", None), (None, b""), (b"", None)]
    assert [list(record.headers) for record in got] == [headers, [], [], []]
    assert got[0].timestamp == 1_600_000_000_123
    now = int(before.timestamp() * 1000)
    assert all(now - 60_000 <= record.timestamp <= now + 60_000 for record in got[1:])


async def test_same_key_goes_to_the_same_partition(bench: Bench):
    await bench.create(4)
    producer = await bench.producer()
    keys = [b"%d" % (n % 7) for n in range(70)]
    deliveries = await producer.send([OutboundRecord(bench.topic, key=key, value=b"x") for key in keys])
    places = {}
    for key, delivery in zip(keys, deliveries, strict=True):
        places.setdefault(key, set()).add(delivery.partition)
    assert all(len(found) == 1 for found in places.values())
    assert len(set.union(*places.values())) > 1


async def test_partition_key_wins_over_key_and_partition_over_both(bench: Bench):
    await bench.create(8)
    producer = await bench.producer()
    plain = await producer.send([OutboundRecord(bench.topic, key=b"%d" % n) for n in range(8)])
    by_key = await producer.send([OutboundRecord(bench.topic, key=b"x", partition_key=b"%d" % n) for n in range(8)])
    assert [d.partition for d in by_key] == [d.partition for d in plain]
    explicit = await producer.send(
        [OutboundRecord(bench.topic, key=b"x", partition_key=b"y", partition=n) for n in range(8)]
    )
    assert [d.partition for d in explicit] == list(range(8))


@pytest.mark.services("kafka")
async def test_keys_are_placed_alike_in_memory_and_in_kafka(both: Mapping[str, Bench]):
    placed = {}
    for name, bench in both.items():
        await bench.create(7)
        producer = await bench.producer()
        keys = [bytes(range(n % 40)) + b"%d" % n for n in range(200)]
        deliveries = await producer.send([OutboundRecord(bench.topic, key=key) for key in keys])
        placed[name] = [delivery.partition for delivery in deliveries]
    assert placed["memory"] == placed["kafka"]
    assert set(placed["memory"]) == set(range(7))


async def test_records_without_key_stay_together_in_a_call_and_move_on_with_the_next(bench: Bench):
    await bench.create(3)
    producer = await bench.producer()
    calls = [await producer.send([OutboundRecord(bench.topic, value=b"x")] * 5) for _ in range(3)]
    assert [len({delivery.partition for delivery in call}) for call in calls] == [1, 1, 1]
    assert {call[0].partition for call in calls} == {0, 1, 2}


async def test_concurrent_sends_keep_the_order_of_the_calls(bench: Bench):
    await bench.create(2)
    producer = await bench.producer()
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(
            *(producer.send([OutboundRecord(bench.topic, value=b"%d" % n, partition=n % 2)]) for n in range(600))
        )
    records = by_partition(await (await bench.member().join()).read(600))
    for partition in (0, 1):
        assert values(records[partition]) == [b"%d" % n for n in range(partition, 600, 2)]


async def test_large_and_small_calls_side_by_side_keep_the_order_of_the_calls(bench: Bench):
    await bench.create(1)
    producer = await bench.producer()
    large = [OutboundRecord(bench.topic, value=b"large %d" % n) for n in range(12_000)]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(producer.send(large), producer.send([OutboundRecord(bench.topic, value=b"small")]))
    assert values(await (await bench.member().join()).read(12_001)) == [record.value for record in large] + [b"small"]


async def test_record_that_is_too_large_fails_alone(bench: Bench):
    await bench.create()
    producer = await bench.producer(max_request_bytes=10_000)
    records = [OutboundRecord(bench.topic, value=value) for value in (b"a", b"x" * 10_000, b"b")]
    with pytest.raises(DeliveryError, match=f"topic '{bench.topic}'.*max_request_bytes") as caught:
        await producer.send(records)
    assert caught.value.indexes == (1,)
    assert caught.value.deliveries == (Delivery(bench.topic, 0, 0), None, Delivery(bench.topic, 0, 1))
    assert (caught.value.unknown, caught.value.retriable) == (False, False)
    assert await producer.send(records[2:]) == [Delivery(bench.topic, 0, 2)]


async def test_largest_record_that_brokers_take_by_themselves_is_sent_without_an_option(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    others = size_alone(OutboundRecord(bench.topic, value=bytes(1_000_000))) - 1_000_000
    record = OutboundRecord(bench.topic, value=bytes(1_048_588 - others))
    assert size_alone(record) == 1_048_588
    assert await producer.send([record]) == [Delivery(bench.topic, 0, 0)]


async def test_record_larger_than_a_batch_is_sent(bench: Bench):
    await bench.create()
    producer = await bench.producer(max_batch_bytes=1000)
    sent = [b"a", b"x" * 5000, b"b"]
    await producer.send([OutboundRecord(bench.topic, value=value) for value in sent])
    assert values(await (await bench.member().join()).read(3)) == sent


async def test_unknown_topic_fails_alone_and_is_not_made(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    missing = f"{bench.topic}.missing"
    with pytest.raises(DeliveryError, match=missing) as caught:
        await producer.send([OutboundRecord(missing), OutboundRecord(bench.topic, value=b"x"), OutboundRecord(missing)])
    assert caught.value.indexes == (0, 2)
    assert caught.value.deliveries[1] == Delivery(bench.topic, 0, 0)
    assert caught.value.unknown is False
    assert await bench.broker.topics([missing]) == {}


async def test_unknown_partition_fails_alone(bench: Bench):
    await bench.create(2)
    producer = await bench.producer()
    for partition in (2, -1):
        with pytest.raises(DeliveryError, match=f"no partition {partition}") as caught:
            await producer.send([OutboundRecord(bench.topic, partition=partition), OutboundRecord(bench.topic)])
        assert caught.value.indexes == (0,)


async def test_producer_that_does_not_run_refuses_to_send(bench: Bench):
    await bench.create()
    producer = bench.broker.producer(ProducerOptions())
    with pytest.raises(NotRunningError):
        await producer.send([OutboundRecord(bench.topic)])
    await producer.start()
    await producer.stop()
    await producer.stop()
    with pytest.raises(NotRunningError):
        await producer.send([OutboundRecord(bench.topic)])


# Joining and fetching


async def test_single_member_gets_every_partition_and_every_record_in_order(bench: Bench):
    await bench.create(3)
    for partition in range(3):
        await fill(bench, 20, partition)
    member = await bench.member().join()
    assert member.events == [("assigned", {bench.at(n) for n in range(3)})]
    assert member.consumer.assignment() == {bench.at(n) for n in range(3)}
    records = by_partition(await member.read(60))
    assert {p: values(found) for p, found in records.items()} == {p: [b"%d" % n for n in range(20)] for p in range(3)}


async def test_fetch_gives_no_more_than_asked_for(bench: Bench):
    await bench.create(2)
    await fill(bench, 10, 0)
    await fill(bench, 10, 1)
    member = await bench.member().join()
    seen = 0
    async with asyncio.timeout(DEADLINE):
        while seen < 20:
            sizes = [len(found) for _, found in await member.consumer.fetch(3, 1.0)]
            assert sum(sizes) <= 3
            seen += sum(sizes)
    assert seen == 20


async def test_fetch_without_records_ends_with_its_timeout(bench: Bench):
    await bench.create()
    member = await bench.member().join()
    async with asyncio.timeout(DEADLINE):
        assert list(await member.consumer.fetch(10, 0.05)) == []
        assert list(await member.consumer.fetch(10, 0)) == []


async def test_waiting_fetch_ends_when_something_is_sent(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    member = await bench.member().join()
    fetching = asyncio.create_task(member.consumer.fetch(10, DEADLINE))
    await producer.send([OutboundRecord(bench.topic, value=b"x")])
    async with asyncio.timeout(DEADLINE / 2):
        [(partition, records)] = await fetching
    assert (partition, values(records)) == (bench.at(0), [b"x"])


async def test_partitions_take_turns_in_small_fetches(bench: Bench):
    await bench.create(3)
    for partition in range(3):
        await fill(bench, 200, partition)
    member = await bench.member().join()
    seen = set()
    for _ in range(6):
        seen |= {record.partition for record in await member.read(10)}
    assert seen == {0, 1, 2}


async def test_wake_ends_a_waiting_fetch_and_loses_nothing(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    member = await bench.member().join()
    async with asyncio.timeout(DEADLINE / 2):
        for _ in range(3):
            fetching = asyncio.create_task(member.consumer.fetch(10, DEADLINE))
            await asyncio.sleep(0)
            member.consumer.wake()
            assert list(await fetching) == []
    await producer.send([OutboundRecord(bench.topic, value=b"%d" % n) for n in range(5)])
    assert values(await member.read(5)) == [b"%d" % n for n in range(5)]


async def test_wake_before_a_fetch_is_not_lost(bench: Bench):
    await bench.create()
    member = await bench.member().join()
    member.consumer.wake()
    async with asyncio.timeout(DEADLINE / 2):
        assert list(await member.consumer.fetch(10, DEADLINE)) == []


async def test_paused_partition_gives_nothing_until_it_is_resumed(bench: Bench):
    await bench.create(2)
    member = await bench.member().join()
    member.consumer.pause([bench.at(0), bench.at(99)])
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"%d" % n, partition=n % 2) for n in range(20)])
    assert {record.partition for record in await member.read(10)} == {1}
    assert list(await member.consumer.fetch(100, 0.05)) == []
    member.consumer.resume([bench.at(0), bench.at(99)])
    records = await member.read(10)
    assert {record.partition for record in records} == {0}
    assert values(records) == [b"%d" % n for n in range(0, 20, 2)]


async def test_partition_paused_after_a_fetch_ended_gives_nothing(bench: Bench):
    await bench.create()
    member = await bench.member().join()
    producer = await bench.producer()
    assert list(await member.consumer.fetch(10, 0.01)) == []
    await producer.send([OutboundRecord(bench.topic, value=b"%d" % n) for n in range(10)])
    member.consumer.pause([bench.at(0)])
    for _ in range(5):
        assert list(await member.consumer.fetch(10, 0.05)) == []
    member.consumer.resume([bench.at(0)])
    assert values(await member.read(10)) == [b"%d" % n for n in range(10)]


async def test_seek_moves_the_next_fetch_in_both_directions(bench: Bench):
    await bench.create()
    await fill(bench, 20)
    member = await bench.member().join()
    assert values(await member.read(5)) == [b"0", b"1", b"2", b"3", b"4"]
    member.consumer.seek(bench.at(0), 2)
    assert values(await member.read(2)) == [b"2", b"3"]
    member.consumer.seek(bench.at(0), 18)
    assert values(await member.read(2)) == [b"18", b"19"]
    with pytest.raises(BrokerError, match="not assigned"):
        member.consumer.seek(bench.at(7), 0)


async def test_seek_within_on_assigned_decides_the_first_record(bench: Bench):
    await bench.create()
    await fill(bench, 20)
    member = bench.member()

    async def seek(partitions):
        member.consumer.seek(bench.at(0), 15)

    member.hooks["assigned"] = seek
    await member.join()
    assert values(await member.read(5)) == [b"15", b"16", b"17", b"18", b"19"]


async def test_nothing_is_fetched_before_on_assigned_has_returned(bench: Bench):
    await bench.create()
    await fill(bench, 5)
    member = bench.member()
    gate = asyncio.Event()
    member.hooks["assigned"] = lambda partitions: gate.wait()
    await member.join()
    for _ in range(5):
        assert list(await member.consumer.fetch(10, 0.05)) == []
    gate.set()
    assert values(await member.read(5)) == [b"0", b"1", b"2", b"3", b"4"]


async def test_missing_topic_stops_the_start_and_is_named(bench: Bench):
    await bench.create()
    member = bench.member([bench.topic, "no.such.topic"])
    with pytest.raises(TopicNotFoundError, match=r"'no\.such\.topic'"):
        await member.consumer.start()
    await member.consumer.stop()
    assert await bench.broker.topics(["no.such.topic"]) == {}


async def test_consumer_that_does_not_run_refuses(bench: Bench):
    await bench.create()
    member = bench.member()
    with pytest.raises(NotRunningError):
        await member.consumer.fetch(1, 0)
    await member.join()
    await member.consumer.stop()
    await member.consumer.stop()
    assert member.consumer.assignment() == frozenset()
    with pytest.raises(NotRunningError):
        await member.consumer.fetch(1, 0)
    with pytest.raises(NotRunningError):
        await member.consumer.start()
    assert [event for event, _ in member.events] == ["assigned"]


async def test_error_of_the_listener_reaches_fetch(bench: Bench):
    await bench.create()
    member = bench.member()

    async def fail(partitions):
        raise RuntimeError("from the listener")

    member.hooks["assigned"] = fail
    await member.join()
    with pytest.raises(RuntimeError, match="from the listener"):
        await member.read(1)


async def test_wrong_start_from_is_refused_at_once(bench: Bench):
    for wrong in ("newest", datetime(2026, 1, 1)):  # noqa: DTZ001 - naive on purpose
        with pytest.raises(ConfigurationError, match="start_from"):
            bench.member(start_from=wrong)


# Offsets


async def test_next_member_goes_on_at_the_committed_offset(bench: Bench):
    await bench.create()
    await fill(bench, 10)
    first = await bench.member().join()
    await first.read(6)
    assert await first.consumer.committed([bench.at(0)]) == {bench.at(0): None}
    await first.consumer.commit({bench.at(0): 4})
    await first.consumer.commit({})
    assert await first.consumer.committed([bench.at(0)]) == {bench.at(0): 4}
    assert await bench.broker.group_offsets(bench.group) == {bench.at(0): 4}
    await first.consumer.stop()
    second = await bench.member().join()
    assert values(await second.read(6)) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_nothing_is_committed_by_itself(bench: Bench):
    await bench.create()
    await fill(bench, 5)
    member = await bench.member().join()
    await member.read(5)
    await member.consumer.stop()
    assert await bench.broker.group_offsets(bench.group) == {}


async def test_start_from_latest_skips_what_was_there(bench: Bench):
    await bench.create()
    await fill(bench, 5)
    member = await bench.member(start_from="latest").join()
    # Sent after on_assigned, and before the first fetch.
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"new")])
    assert values(await member.read(1)) == [b"new"]


async def test_start_from_latest_skips_nothing_when_the_group_rebalances_before_its_first_commit(bench: Bench):
    await bench.create()
    await fill(bench, 5)
    first = await bench.member(start_from="latest").join()
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"new")])
    await first.consumer.stop()
    second = await bench.member(start_from="latest").join()
    assert values(await second.read(1)) == [b"new"]


async def test_start_from_a_moment_begins_at_the_first_record_then_or_later(bench: Bench):
    await bench.create(2)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    base = int(moment.timestamp() * 1000)
    producer = await bench.producer()
    await producer.send(
        [OutboundRecord(bench.topic, value=b"%d" % n, partition=0, timestamp=base + 1000 * n) for n in range(10)]
    )
    await producer.send([OutboundRecord(bench.topic, value=b"old", partition=1, timestamp=base)])
    member = await bench.member(start_from=moment + timedelta(seconds=6.5)).join()
    assert values(await member.read(3)) == [b"7", b"8", b"9"]
    # Partition 1 has nothing that late: it begins at its end.
    await producer.send([OutboundRecord(bench.topic, value=b"next", partition=1, timestamp=base + 8000)])
    assert values(await member.read(1)) == [b"next"]


async def test_committed_offset_wins_over_start_from(bench: Bench):
    await bench.create()
    await fill(bench, 5)
    first = await bench.member().join()
    await first.consumer.commit({bench.at(0): 3})
    await first.consumer.stop()
    second = await bench.member(start_from="latest").join()
    assert values(await second.read(2)) == [b"3", b"4"]


async def test_offset_that_was_deleted_is_an_error_until_sought(bench: Bench):
    await bench.create()
    await fill(bench, 10)
    first = await bench.member().join()
    await first.consumer.commit({bench.at(0): 2})
    await first.consumer.stop()
    await bench.delete_records(bench.at(0), 5)
    second = await bench.member().join()
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError, match=f"offset 2 of topic '{bench.topic}' partition 0"):
            await second.read(1)
    second.consumer.seek(bench.at(0), 5)
    assert values(await second.read(5)) == [b"5", b"6", b"7", b"8", b"9"]


async def test_offset_beyond_the_end_is_an_error(bench: Bench):
    await bench.create()
    await fill(bench, 3)
    member = await bench.member().join()
    member.consumer.seek(bench.at(0), 50)
    with pytest.raises(OffsetOutOfRangeError, match="offset 50"):
        await member.read(1)


async def test_end_offsets_of_a_member_are_current(bench: Bench):
    await bench.create(2)
    await fill(bench, 4, 1)
    member = await bench.member().join()
    await member.read(4)
    assert member.consumer.positions_end()[bench.at(1)] == 4
    assert set(member.consumer.positions_end()) <= {bench.at(0), bench.at(1)}
    assert await member.consumer.end_offsets([bench.at(0), bench.at(1)]) == {bench.at(0): 0, bench.at(1): 4}


async def test_unfetched_counts_what_the_next_fetches_could_give(bench: Bench):
    await bench.create()
    await fill(bench, 4)
    member = bench.member()
    assert member.consumer.unfetched() == {}
    await member.join()
    await member.read(1)
    member.consumer.seek(bench.at(0), 1)
    assert member.consumer.unfetched() == {bench.at(0): 3}
    await member.read(3)
    assert member.consumer.unfetched() == {}


async def test_unfetched_counts_what_came_and_was_not_handed_out(bench: Bench):
    await bench.create()
    member = await bench.member().join()
    assert await member.consumer.fetch(10, 0.01) == []  # asks for as many in the background
    await fill(bench, 4)  # one batch, which comes as a whole
    count = 0
    while not count:
        count = sum(len(records) for _, records in await member.consumer.fetch(1, 5))
    assert count == 1
    assert member.consumer.unfetched() == {bench.at(0): 3}


# Rebalances


async def test_second_member_takes_half_and_every_record_has_one_owner(bench: Bench):
    await bench.create(4)
    first = await bench.member().join()
    second = await bench.member().join()
    await first.until(lambda: [event for event, _ in first.events] == ["assigned", "revoked", "assigned"])
    everything = {bench.at(n) for n in range(4)}
    assert first.events[1] == ("revoked", everything)
    shares = [first.consumer.assignment(), second.consumer.assignment()]
    assert [len(share) for share in shares] == [2, 2]
    assert shares[0] | shares[1] == everything
    for partition in range(4):
        await fill(bench, 5, partition)
    for member, share in zip((first, second), shares, strict=True):
        assert {record.partition for record in await member.read(10)} == {partition.partition for partition in share}


async def test_partitions_move_only_after_on_revoked_has_returned_and_its_commit_counts(bench: Bench):
    await bench.create(2)
    for partition in range(2):
        await fill(bench, 10, partition)
    first = await bench.member().join()
    await first.read(20)
    revoking, drained = asyncio.Event(), asyncio.Event()

    async def drain(partitions):
        revoking.set()
        await drained.wait()
        assert first.consumer.assignment() == partitions
        await first.consumer.commit(dict.fromkeys(partitions, 7))

    first.hooks["revoked"] = drain
    second = bench.member()
    await second.consumer.start()
    async with asyncio.timeout(DEADLINE):
        await revoking.wait()
        for _ in range(5):
            assert list(await second.consumer.fetch(10, 0.05)) == []
            assert list(await first.consumer.fetch(10, 0.05)) == []
    assert second.events == []
    drained.set()
    await second.until(lambda: len(second.events) == 1)
    assert values(await second.read(3)) == [b"7", b"8", b"9"]
    assert await bench.broker.group_offsets(bench.group) == {bench.at(0): 7, bench.at(1): 7}


async def test_commit_for_a_partition_that_moved_is_fenced(bench: Bench):
    await bench.create(2)
    first = await bench.member().join()
    second = await bench.member().join()
    await first.until(lambda: len(first.events) == 3)
    [moved] = second.consumer.assignment()
    [kept] = first.consumer.assignment()
    with pytest.raises(CommitError) as caught:
        await first.consumer.commit({moved: 1, kept: 1})
    assert (caught.value.lost, caught.value.retriable) == (True, False)
    assert await bench.broker.group_offsets(bench.group) == {}
    await first.consumer.commit({kept: 1})


async def test_member_that_leaves_gives_its_partitions_to_the_others(bench: Bench):
    await bench.create(2)
    await fill(bench, 4, 0)
    await fill(bench, 4, 1)
    first = await bench.member().join()
    second = await bench.member().join()
    await first.until(lambda: len(first.events) == 3)
    await second.consumer.stop()
    await first.until(lambda: len(first.events) == 5)
    assert first.consumer.assignment() == {bench.at(0), bench.at(1)}
    assert len(await first.read(8)) == 8
    assert [event for event, _ in second.events] == ["assigned"]


async def test_member_that_leaves_while_the_group_rebalances_does_not_hold_it_up(bench: Bench):
    await bench.create(2)
    first = await bench.member().join()
    revoking, drained = asyncio.Event(), asyncio.Event()

    async def drain(partitions):
        revoking.set()
        await drained.wait()

    first.hooks["revoked"] = drain
    second = bench.member()
    await second.consumer.start()
    async with asyncio.timeout(DEADLINE / 2):
        await revoking.wait()
        await second.consumer.stop()
        drained.set()
        await first.until(lambda: len(first.events) == 3)
    assert first.consumer.assignment() == {bench.at(0), bench.at(1)}


async def test_pause_ends_with_the_assignment(bench: Bench):
    await bench.create(2)
    first = await bench.member().join()
    first.consumer.pause(first.consumer.assignment())
    await bench.member().join()
    await first.until(lambda: len(first.events) == 3)
    [partition] = first.consumer.assignment()
    await fill(bench, 3, partition.partition)
    assert len(await first.read(3)) == 3


async def test_records_come_again_from_the_committed_offset_after_a_rebalance(bench: Bench):
    await bench.create(2)
    await fill(bench, 10, 0)
    await fill(bench, 10, 1)
    first = await bench.member().join()
    await first.read(20)
    await first.consumer.commit({bench.at(0): 8, bench.at(1): 8})
    await bench.member().join()
    await first.until(lambda: len(first.events) == 3)
    assert values(await first.read(2)) == [b"8", b"9"]


async def test_groups_read_independently(bench: Bench):
    await bench.create()
    await fill(bench, 3)
    one = await bench.member().join()
    other = await bench.member(group=f"{bench.group}.other").join()
    assert values(await one.read(3)) == values(await other.read(3)) == [b"0", b"1", b"2"]


async def test_member_reads_several_topics(bench: Bench):
    await bench.create()
    second = await bench.create(topic=f"{bench.topic}.second")
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"a"), OutboundRecord(second, value=b"b")])
    member = await bench.member([bench.topic, second]).join()
    assert {(record.topic, record.value) for record in await member.read(2)} == {(bench.topic, b"a"), (second, b"b")}

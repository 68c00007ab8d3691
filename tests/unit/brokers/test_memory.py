"""What only the broker in memory does; the rest is in the contract suite."""

import asyncio

import pytest

from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import ConsumerOptions, NewTopic, ProducerOptions
from deimos_async.errors import CommitError, ConfigurationError, DeliveryError, TopicNotFoundError
from deimos_async.message import OutboundRecord, TopicPartition

DEADLINE = 10.0


class Listener:
    def __init__(self):
        self.events = []
        self.hooks = {}
        self.consumer = None

    async def on_assigned(self, partitions):
        await self._hear("assigned", partitions)

    async def on_revoked(self, partitions):
        await self._hear("revoked", partitions)

    async def on_lost(self, partitions):
        await self._hear("lost", partitions)

    async def _hear(self, event, partitions):
        self.events.append(event)
        if event in self.hooks:
            await self.hooks[event](partitions)


def member(broker, *topics, group="g", **options):
    listener = Listener()
    listener.consumer = broker.consumer(ConsumerOptions(group, topics or ("t",), **options), listener)
    return listener


async def send(broker, topic, *values, **record):
    producer = broker.producer(ProducerOptions())
    await producer.start()
    return await producer.send([OutboundRecord(topic, value=value, **record) for value in values])


async def until(broker, predicate):
    async with asyncio.timeout(DEADLINE):
        while not predicate():
            await broker.changed()


async def test_topics_are_made_on_first_use():
    broker = MemoryBroker(partitions=2)
    await send(broker, "sent", b"x")
    await member(broker, "read").consumer.start()
    assert {name: info.partitions for name, info in (await broker.topics()).items()} == {"sent": 2, "read": 2}


async def test_topics_are_not_made_without_leave():
    broker = MemoryBroker(auto_create=False)
    with pytest.raises(DeliveryError, match="'sent'"):
        await send(broker, "sent", b"x")
    with pytest.raises(TopicNotFoundError, match="'read'"):
        await member(broker, "read").consumer.start()
    assert await broker.topics() == {}


async def test_records_are_kept_for_tests_to_look_at():
    broker = MemoryBroker(partitions=1)
    await send(broker, "t", b"a", None, key=b"k", headers=[("h", b"1")], timestamp=5)
    assert [(r.offset, r.key, r.value, r.headers, r.timestamp) for r in broker.records("t")] == [
        (0, b"k", b"a", (("h", b"1"),), 5),
        (1, b"k", None, (("h", b"1"),), 5),
    ]
    assert broker.records("other") == []


async def test_lag_counts_what_is_not_committed():
    broker = MemoryBroker(partitions=2)
    await send(broker, "t", b"1", b"2", b"3", partition=0)
    assert broker.lag("g") == {}
    reader = member(broker)
    await reader.consumer.start()
    await until(broker, lambda: reader.events == ["assigned"])
    assert broker.lag("g") == {TopicPartition("t", 0): 3, TopicPartition("t", 1): 0}
    await reader.consumer.commit({TopicPartition("t", 0): 2})
    await send(broker, "t", b"x", partition=1)
    assert broker.lag("g") == {TopicPartition("t", 0): 1, TopicPartition("t", 1): 1}
    broker.delete_records("t", 0, 3)
    assert broker.lag("g")[TopicPartition("t", 0)] == 0


async def test_expired_member_hears_on_lost_cannot_commit_and_joins_again():
    broker = MemoryBroker(partitions=2)
    first, second = member(broker), member(broker)
    await first.consumer.start()
    await second.consumer.start()
    await until(broker, lambda: len(first.consumer.assignment()) == len(second.consumer.assignment()) == 1)
    await until(broker, lambda: second.events[-1] == "assigned")
    lost = second.consumer.assignment()
    heard = []

    async def commit(partitions):
        heard.append(partitions)
        with pytest.raises(CommitError) as caught:
            await second.consumer.commit(dict.fromkeys(partitions, 1))
        heard.append(caught.value.lost)

    second.hooks["lost"] = commit
    broker.expire(second.consumer)
    assert second.consumer.assignment() == frozenset()
    await until(broker, lambda: len(heard) == 2 and len(second.consumer.assignment()) == 1)
    assert heard == [lost, True]
    assert await broker.group_offsets("g") == {}


async def test_member_that_overruns_its_rebalance_timeout_is_out_and_joins_again():
    broker = MemoryBroker(partitions=2)
    slow = member(broker, rebalance_timeout=0.02)
    await slow.consumer.start()
    await until(broker, lambda: slow.events == ["assigned"])
    gate, outcome = asyncio.Event(), []

    async def drain(partitions):
        await gate.wait()
        try:
            await slow.consumer.commit(dict.fromkeys(partitions, 1))
        except CommitError as error:
            outcome.append(error.lost)

    slow.hooks["revoked"] = drain
    quick = member(broker)
    await quick.consumer.start()
    await until(broker, lambda: len(quick.consumer.assignment()) == 2)
    gate.set()
    await until(broker, lambda: len(slow.consumer.assignment()) == 1)
    assert outcome == [True]
    assert len(quick.consumer.assignment()) == 1


async def test_fetch_wakes_at_once_when_something_is_sent():
    broker = MemoryBroker()
    reader = member(broker)
    await reader.consumer.start()
    await until(broker, lambda: reader.events == ["assigned"])
    fetching = asyncio.create_task(reader.consumer.fetch(10, 3600))
    await send(broker, "t", b"x")
    async with asyncio.timeout(DEADLINE):
        [(_, records)] = await fetching
    assert [record.value for record in records] == [b"x"]


async def test_fetch_shares_its_records_among_partitions():
    broker = MemoryBroker(partitions=4)
    for partition in range(4):
        await send(broker, "t", *[b"x"] * 10, partition=partition)
    reader = member(broker)
    await reader.consumer.start()
    await until(broker, lambda: reader.events == ["assigned"])
    assert sorted((p.partition, len(r)) for p, r in await reader.consumer.fetch(8, 1)) == [(n, 2) for n in range(4)]
    # Fewer than there are partitions: the others have the next turn.
    one = await reader.consumer.fetch(2, 1)
    two = await reader.consumer.fetch(2, 1)
    assert {p.partition for p, _ in one} | {p.partition for p, _ in two} == {0, 1, 2, 3}


async def test_slow_on_assigned_of_a_member_that_stops_does_not_hold_up_the_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deimos_async.brokers.memory._STOP_TIMEOUT", 0.01)
    broker = MemoryBroker(partitions=1)
    stuck = member(broker)

    async def never(partitions):
        await asyncio.Event().wait()

    stuck.hooks["assigned"] = never
    await stuck.consumer.start()
    await until(broker, lambda: stuck.events == ["assigned"])
    other = member(broker)
    await other.consumer.start()
    stopping = asyncio.create_task(stuck.consumer.stop())
    await until(broker, lambda: len(other.consumer.assignment()) == 1)
    await stopping


def test_records_and_offsets_outlive_an_event_loop_and_members_die_with_theirs():
    broker = MemoryBroker(partitions=1)

    async def first():
        await send(broker, "t", b"1", b"2")
        reader = member(broker)
        await reader.consumer.start()
        await until(broker, lambda: reader.events == ["assigned"])
        await reader.consumer.commit({TopicPartition("t", 0): 1})
        return asyncio.create_task(broker.changed())  # ended with the loop, not by a change

    async def second():
        await send(broker, "t", b"3")
        reader = member(broker)
        await reader.consumer.start()
        await until(broker, lambda: reader.events == ["assigned"])
        [(_, records)] = await reader.consumer.fetch(10, 1)
        return [record.value for record in records]

    asyncio.run(first())
    broker.delete_records("t", 0, 0)
    assert asyncio.run(second()) == [b"2", b"3"]


async def test_group_members_with_different_topics_get_only_theirs():
    broker = MemoryBroker(partitions=3)
    one, both = member(broker, "a"), member(broker, "a", "b")
    await one.consumer.start()
    await both.consumer.start()
    await until(broker, lambda: bool(one.consumer.assignment()) and bool(both.consumer.assignment()))
    assert {p.topic for p in one.consumer.assignment()} == {"a"}
    everything = {TopicPartition(topic, n) for topic in "ab" for n in range(3)}
    assert one.consumer.assignment() | both.consumer.assignment() == everything
    assert not one.consumer.assignment() & both.consumer.assignment()


async def test_topic_needs_a_partition():
    with pytest.raises(ConfigurationError, match="partitions=0"):
        MemoryBroker(partitions=0)
    with pytest.raises(ConfigurationError, match="topic 't'"):
        await MemoryBroker().create_topics([NewTopic("t", 0)])

"""How far consumer groups are behind, seen from outside: the application need not run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from deimos_async.assembly import Plan
from deimos_async.brokers.protocol import Broker
from deimos_async.errors import TopicNotFoundError
from deimos_async.message import TopicPartition

__all__ = ["PartitionLag", "lags"]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One group and one partition that it reads.

    Attributes:
        consumer: Name of the consumer that reads it.
        committed: Next offset that the group will read; None where it has committed nothing.
        begin, end: What the partition holds.
        messages: How many are not committed, at most: offsets may have gaps.
        seconds: Age of the first message that is not committed; 0 where there is none, None where it has no time.
        is_out_of_range: The committed offset does not exist: the consumer refuses to go on.
    """

    cluster: str
    group: str
    consumer: str
    topic: str
    partition: int
    committed: int | None
    begin: int
    end: int
    messages: int
    seconds: float | None
    is_out_of_range: bool

    def exceeds(self, *, max_messages: int | None, max_seconds: float | None) -> bool:
        """Whether it is above a limit. An offset out of range is above every limit.

        Raises:
            ValueError: `max_seconds` is not a number, so that nothing would be above it.
        """
        if max_seconds is not None and math.isnan(max_seconds):
            raise ValueError("max_seconds=nan: nothing is above it")
        if max_messages is None and max_seconds is None:
            return False
        return (
            self.is_out_of_range
            or (max_messages is not None and self.messages > max_messages)
            or (max_seconds is not None and self.seconds is not None and self.seconds > max_seconds)
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    group: str
    consumer: str
    topic: str
    starts_at_end: bool


async def lags(
    brokers: Mapping[str, Broker], plan: Plan, *, now: float, groups: Sequence[str] = ()
) -> list[PartitionLag]:
    """Lag of every consumer of the application, by group, topic and partition, retry topics included.

    A group without a committed offset is taken to begin where its consumer would: at the end with
    `start_from="latest"`, else with the first message (also with a datetime, which gives the most it can be).

    Args:
        brokers: Connected ones, by the cluster's name.
        now: Seconds since the epoch.
        groups: Only these, by their names in Kafka; empty: all.

    Raises:
        TopicNotFoundError: A topic does not exist.
    """
    by_cluster: dict[str, list[_Reader]] = {}
    for consumer in plan.consumers:
        if not groups or consumer.kafka_group in groups:
            readers = by_cluster.setdefault(consumer.topic.options.cluster, [])
            name, starts_at_end = consumer.spec.name, consumer.spec.start_from == "latest"
            readers.append(_Reader(consumer.kafka_group, name, consumer.topic.kafka_name, starts_at_end))
            # Nothing in a retry topic is older than the group: it begins at the first message.
            readers += [_Reader(consumer.kafka_group, name, topic, False) for topic in consumer.retry_topics]
    found = []
    for cluster, readers in by_cluster.items():
        found += await _lags_in(cluster, brokers[cluster], readers, now)
    return sorted(found, key=lambda lag: (lag.cluster, lag.group, lag.topic, lag.partition))


async def _lags_in(cluster: str, broker: Broker, readers: Sequence[_Reader], now: float) -> list[PartitionLag]:
    names = {reader.topic for reader in readers}
    topics = await broker.topics(names)
    if missing := sorted(names - topics.keys()):
        raise TopicNotFoundError(f"cluster {cluster!r} has no topic {', '.join(map(repr, missing))}")
    ids = [TopicPartition(name, number) for name in topics for number in range(topics[name].partitions)]
    # Offsets first: what is committed and written between the questions must not show as negative lag.
    stored = {group: await broker.group_offsets(group) for group in {reader.group for reader in readers}}
    begins, ends = await broker.begin_offsets(ids), await broker.end_offsets(ids)
    positions: dict[tuple[_Reader, TopicPartition], tuple[int | None, int]] = {}
    for reader in readers:
        for number in range(topics[reader.topic].partitions):
            id = TopicPartition(reader.topic, number)
            committed = stored[reader.group].get(id)
            start = ends[id] if reader.starts_at_end else begins[id]
            positions[reader, id] = committed, start if committed is None else committed
    times = await _times(broker, {(id, position) for (_, id), (_, position) in positions.items()}, begins, ends)
    found = []
    for (reader, id), (committed, position) in positions.items():
        begin, end = begins[id], ends[id]
        messages = max(0, end - max(position, begin))
        time = times.get((id, max(position, begin)))
        found.append(
            PartitionLag(
                cluster=cluster,
                group=reader.group,
                consumer=reader.consumer,
                topic=id.topic,
                partition=id.partition,
                committed=committed,
                begin=begin,
                end=end,
                messages=messages,
                seconds=0.0 if not messages else None if time is None else max(0.0, now - time),
                is_out_of_range=committed is not None and not begin <= committed <= end,
            )
        )
    return found


async def _times(
    broker: Broker,
    places: set[tuple[TopicPartition, int]],
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> dict[tuple[TopicPartition, int], float]:
    """When the first record at or after each place was written, in seconds; reads one record for each place.

    Several groups may stand at different places of a partition, and one reading covers a partition once: so there are
    as many readings as groups at most, usually one.
    """
    waiting: dict[TopicPartition, list[int]] = {}
    for id, position in places:
        at = max(position, begins[id])
        if at < ends[id] and at not in waiting.setdefault(id, []):
            waiting[id].append(at)
    times = {}
    while waiting := {id: left for id, left in waiting.items() if left}:
        starts = {id: left.pop() for id, left in waiting.items()}
        ranges = {id: (start, ends[id]) for id, start in starts.items()}
        async with aclosing(broker.read(ranges, limit=1)) as reading:
            async for (record,) in reading:
                id = TopicPartition(record.topic, record.partition)
                if record.timestamp is not None and record.timestamp >= 0:
                    times[id, starts[id]] = record.timestamp / 1000
    return times

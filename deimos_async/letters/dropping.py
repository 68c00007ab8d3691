"""Deleting dead letters. Kafka deletes from the beginning of a partition up to an offset, and in no other way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deimos_async.errors import ConfigurationError
from deimos_async.letters.desk import LetterDesk, LetterTopic
from deimos_async.letters.letter import LetterAddress
from deimos_async.message import TopicPartition

__all__ = ["Drop", "drop", "drops_all", "drops_before", "drops_replayed"]


@dataclass(frozen=True, slots=True)
class Drop:
    """What is to be deleted of one partition: its letters below an offset.

    Attributes:
        count: Offsets from the first letter to there; letters at most.
        unreplayed: How many of these no replay has sent back.
    """

    cluster: str
    id: TopicPartition
    before: int
    count: int
    unreplayed: int


async def drops_all(desk: LetterDesk, topics: Sequence[LetterTopic]) -> list[Drop]:
    """Everything that the topics hold now."""
    return await _drops(desk, topics, replayed=False)


async def drops_replayed(desk: LetterDesk, topics: Sequence[LetterTopic]) -> list[Drop]:
    """The letters before the first one of each partition that was not replayed."""
    return await _drops(desk, topics, replayed=True)


async def drops_before(desk: LetterDesk, addresses: Sequence[LetterAddress]) -> list[Drop]:
    """The letters below each address, in its partition.

    Raises:
        ConfigurationError: An address is in no dead-letter topic of the application, in a partition that the topic has
            not, or beyond its end.
    """
    drops, problems = [], []
    for address in addresses:
        fitting = [topic for topic in await desk.topics([address.topic]) if address.topic in desk.own_names(topic)]
        for topic in fitting:
            id = TopicPartition(topic.name, address.partition)
            if id not in topic.ids():
                problems.append(f"{topic.name!r} has no partition {address.partition}, it has {topic.partitions}")
                continue
            found = await _drops(desk, [topic], replayed=False, before={id: address.offset})
            if any(drop.before < address.offset for drop in found if drop.id == id):
                problems.append(f"{address}: the partition ends before that offset")
            drops += found
        if not fitting:
            problems.append(f"{address.topic!r} is no dead-letter topic of the application")
    if problems:
        raise ConfigurationError(*problems)
    return drops


async def _drops(
    desk: LetterDesk,
    topics: Sequence[LetterTopic],
    *,
    replayed: bool,
    before: dict[TopicPartition, int] | None = None,
) -> list[Drop]:
    drops = []
    for cluster, bounds in (await desk.bounds(topics)).items():
        progress = await desk.progress(cluster, bounds)
        for id, (begin, end) in bounds.items():
            if before is not None and id not in before:
                continue
            done = progress[id]
            stop = done.position if replayed else end if before is None else before[id]
            stop = min(stop, end)
            if stop > begin:
                drops.append(Drop(cluster, id, stop, stop - begin, done.missing(begin, stop)))
    return drops


async def drop(desk: LetterDesk, drops: Sequence[Drop]) -> None:
    """Delete. What several drops say of one partition adds up to the highest of them.

    Raises:
        BrokerError: Refused; some may be deleted.
    """
    by_cluster: dict[str, dict[TopicPartition, int]] = {}
    for one in drops:
        below = by_cluster.setdefault(one.cluster, {})
        below[one.id] = max(one.before, below.get(one.id, 0))
    for cluster, below in by_cluster.items():
        await desk.brokers[cluster].delete_before(below)

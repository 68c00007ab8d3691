"""What is committed, and what never goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from deimos_async.consuming.commit import Committer
from deimos_async.consuming.lanes import Partition
from deimos_async.consuming.measuring import Measurements
from deimos_async.errors import BrokerUnavailableError, CommitError
from deimos_async.message import TopicPartition
from deimos_async.telemetry.none import NoTelemetry

P0 = TopicPartition("orders", 0)


class Consumer:
    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, int]] = []
        self.error: Exception | None = None
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self.entered.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error
        self.commits.append(dict(offsets))


class Record:
    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.timestamp = 1_000
        self.key = None


def partition_with(*offsets: int) -> tuple[Partition, Any]:
    partition = Partition(P0, "partition")
    [lane] = partition.add([Record(offset) for offset in offsets], 0.0)  # type: ignore[misc]
    return partition, lane


async def test_only_what_has_ended_is_committed_and_only_once() -> None:
    consumer = Consumer()
    committer = Committer("bill", consumer, Measurements(NoTelemetry(), topic="orders", group="g", consumer="bill"))  # type: ignore[arg-type]
    partition, lane = partition_with(4, 5)
    assert await committer.commit([partition])
    partition.finished(lane, [lane.records[0]])
    assert await committer.commit([partition])
    assert await committer.commit([partition])
    assert consumer.commits == [{P0: 5}]


async def test_commit_ahead_is_never_moved_back_by_what_ends_later() -> None:
    consumer = Consumer()
    committer = Committer("bill", consumer, Measurements(NoTelemetry(), topic="orders", group="g", consumer="bill"))  # type: ignore[arg-type]
    partition, lane = partition_with(0, 1, 2)
    assert await committer.commit_ahead(partition, 3)
    partition.finished(lane, [lane.records[0]])
    assert await committer.commit([partition])
    assert consumer.commits == [{P0: 3}]


async def test_failed_commit_is_repeated_and_a_lost_partition_is_closed() -> None:
    consumer = Consumer()
    committer = Committer("bill", consumer, Measurements(NoTelemetry(), topic="orders", group="g", consumer="bill"))  # type: ignore[arg-type]
    partition, lane = partition_with(0)
    partition.finished(lane, [lane.records[0]])
    consumer.error = BrokerUnavailableError("away")
    assert not await committer.commit([partition])
    consumer.error = None
    assert await committer.commit([partition])
    assert consumer.commits == [{P0: 1}]
    other, lane = partition_with(0)
    other.finished(lane, [lane.records[0]])
    consumer.error = CommitError("gone", lost=True)
    assert not await committer.commit([other])
    assert other.halted


async def test_commits_go_one_after_another() -> None:
    consumer = Consumer()
    committer = Committer("bill", consumer, Measurements(NoTelemetry(), topic="orders", group="g", consumer="bill"))  # type: ignore[arg-type]
    partition, lane = partition_with(0, 1)
    partition.finished(lane, [lane.records[0]])
    consumer.release.clear()
    first = asyncio.create_task(committer.commit([partition]))
    await consumer.entered.wait()
    partition.finished(lane, [lane.records[0]])
    second = asyncio.create_task(committer.commit([partition]))
    consumer.release.set()
    assert await first
    assert await second
    assert consumer.commits == [{P0: 1}, {P0: 2}]

"""How much of a partition is taken in hand, and when fetching it goes on."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from deimos_async.consuming.fetch import Fetcher, _largest
from deimos_async.consuming.lanes import Partition
from deimos_async.message import TopicPartition


class Consumer:
    def __init__(self) -> None:
        self.paused: set[TopicPartition] = set()

    def pause(self, partitions: Any) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Any) -> None:
        self.paused -= set(partitions)


@pytest.mark.parametrize(
    ("buffered", "record_bytes", "paused"),
    [
        (499, 1, False),
        (500, 1, True),  # half of 1000 messages, as there are two partitions
        (49, 10_000, False),
        (50, 10_000, True),  # half of a million bytes
        (1, 5_000_000, True),  # a single one is above the limit, and taken all the same
        (0, 5_000_000, False),
    ],
)
def test_partition_is_paused_by_messages_and_by_bytes(buffered: int, record_bytes: int, paused: bool) -> None:
    ids = [TopicPartition("orders", number) for number in (0, 1)]
    partitions = {id: Partition(id, "partition") for id in ids}
    work = SimpleNamespace(max_buffered=1000, max_buffered_bytes=1_000_000, max_batch=1, batch=False)
    consumer = Consumer()
    dispatcher: Any = SimpleNamespace(partitions=partitions, work=work)
    fetcher = Fetcher(consumer, dispatcher, None, max_records=500)  # type: ignore[arg-type]
    partition = partitions[ids[0]]
    partition.buffered, partition.record_bytes = buffered, record_bytes
    fetcher.adjust_pauses()
    assert consumer.paused == ({ids[0]} if paused else set())
    partition.buffered = 0
    fetcher.adjust_pauses()
    assert consumer.paused == set()


def test_size_of_a_fetch_is_judged_by_its_largest_sampled_record() -> None:
    def record(value: bytes | None, *headers: tuple[str, bytes | None]) -> Any:
        return SimpleNamespace(key=b"k", value=value, headers=headers)

    assert _largest([record(None)]) == 1
    assert _largest([record(b"x" * 9), record(b"x" * 99), record(b"")]) == 100
    assert _largest([record(b"x", ("name", b"y" * 1000), ("none", None))]) == 1210


async def test_records_are_not_kept_while_the_next_fetch_waits() -> None:
    """An application of thousands of quiet topics would else hold the last fetch of each."""
    id = TopicPartition("orders", 0)
    seen: list[weakref.ref[Any]] = []
    alive_while_waiting: list[bool] = []

    class Record:
        key = value = b"bytes"
        headers = ()

    class Once(Consumer):
        async def fetch(self, max_records: int, timeout: float) -> Any:
            if seen:
                alive_while_waiting.append(seen[0]() is not None)
                fetcher._stopped = True
                return []
            record = Record()
            seen.append(weakref.ref(record))
            return [(id, [record])]

    dispatcher: Any = SimpleNamespace(
        partitions={id: Partition(id, "partition")},
        work=SimpleNamespace(
            max_buffered=1000, max_buffered_bytes=1_000_000, max_batch=1, batch=False, delivery="at_least_once"
        ),
        failure=None,
        add=lambda partition, records: None,
    )
    fetcher = Fetcher(Once(), dispatcher, None, max_records=500)  # type: ignore[arg-type]
    await fetcher.run()
    assert alive_while_waiting == [False]

"""A partition given up with order by key: what ended out of order is made a whole, so that it can be committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deimos_async.consuming.dispatch import Dispatcher, Work
from deimos_async.consuming.lanes import Partition
from deimos_async.message import Message, OutboundRecord, TopicPartition
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.topics import Backoff, OnError

DEADLINE = 20.0
P0 = TopicPartition("orders", 0)


class Record:
    def __init__(self, offset: int, key: bytes) -> None:
        self.topic, self.partition, self.timestamp = "orders", 0, 1_000
        self.offset, self.key, self.value = offset, key, b"v"
        self.headers: Sequence[tuple[str, bytes | None]] = ()


class Decoding:
    unknown: type[Exception] = LookupError

    def payload(self, data: bytes | None) -> Any:
        return data

    def key(self, data: bytes | None) -> Any:
        return data

    async def learn(self, unknown: Any) -> None: ...


async def publish(record: OutboundRecord) -> None: ...


@asynccontextmanager
async def working(call: Callable[[Any], Any], *, concurrency: int) -> AsyncIterator[Dispatcher]:
    """Workers on a dispatcher; each key is a lane."""
    work = Work(
        name="bill",
        group="billing",
        topic="orders",
        batch=False,
        max_batch=100,
        max_wait=0.0,
        concurrency=concurrency,
        ordering="key",
        delivery="at_least_once",
        max_buffered=1000,
        max_buffered_bytes=10**9,
        call=call,
        decoding=Decoding(),
        policy=OnError(attempts=2, backoff=Backoff(1000.0, 1000.0)),
        reraise=False,
        fatal=(),
        dead_letter_topic="orders-dlt",
        publish=publish,
        metrics=NoTelemetry(),
        tracing=NoTelemetry(),
        payload_log="full",
    )
    dispatcher = Dispatcher(work)
    dispatcher.assign([P0])
    tasks = [asyncio.create_task(dispatcher.work_on()) for _ in range(concurrency)]
    try:
        yield dispatcher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Handler:
    """Sees messages; some wait until they may end, and some fail."""

    def __init__(self, *, waits_at: set[int], fails_at: set[int] | None = None) -> None:
        self.seen: list[int] = []
        self.begun = {offset: asyncio.Event() for offset in range(10)}
        self.may_end = {offset: asyncio.Event() for offset in waits_at}
        self._fails_at = fails_at or set()

    async def __call__(self, message: Message[Any]) -> None:
        offset = message.offset
        self.begun[offset].set()
        if offset in self.may_end:
            await self.may_end[offset].wait()
        if offset in self._fails_at:
            raise ValueError("not now")
        self.seen.append(offset)


def records(keys: str) -> list[Any]:
    """One for each letter, which is its key; offsets from 0."""
    return [Record(offset, key.encode()) for offset, key in enumerate(keys)]


RAN_AHEAD = "abccbbcb"
"""Two workers: one waits at 0 (a), the other has handled 1 and 4 (b) and waits at 5; c (2, 3, 6) has not begun."""


async def ran_ahead(dispatcher: Dispatcher, handler: Handler) -> Partition:
    partition = dispatcher.partitions[P0]
    dispatcher.add(partition, records(RAN_AHEAD))
    await handler.begun[0].wait()
    await handler.begun[5].wait()
    assert handler.seen == [1, 4]
    return partition


@pytest.mark.parametrize("how", ["revoked", "stopped"])
async def test_what_lies_below_a_message_that_has_ended_is_handled_before_the_partition_goes(how: str) -> None:
    handler = Handler(waits_at={0, 5})
    async with working(handler, concurrency=2) as dispatcher:
        partition = await ran_ahead(dispatcher, handler)
        if how == "revoked":
            dispatcher.close([P0])
        else:
            dispatcher.request_stop()
        for may_end in handler.may_end.values():
            may_end.set()
        assert await dispatcher.ended([partition], DEADLINE)
    assert sorted(handler.seen) == [0, 1, 2, 3, 4, 5], "6 and 7 lie above what had begun"
    assert partition.to_commit == 6


async def test_lost_partition_begins_nothing_more() -> None:
    handler = Handler(waits_at={0, 5})
    async with working(handler, concurrency=2) as dispatcher:
        partition = await ran_ahead(dispatcher, handler)
        dispatcher.close([P0], lost=True)
        for may_end in handler.may_end.values():
            may_end.set()
        assert await dispatcher.ended([partition], DEADLINE)
    assert sorted(handler.seen) == [0, 1, 4, 5]


async def test_message_that_waits_for_its_next_attempt_is_not_waited_for() -> None:
    handler = Handler(waits_at={2}, fails_at={0})
    async with working(handler, concurrency=2) as dispatcher:
        partition = dispatcher.partitions[P0]
        dispatcher.add(partition, records("abbcb"))
        await handler.begun[2].wait()
        await handler.begun[3].wait()
        dispatcher.close([P0])
        handler.may_end[2].set()
        assert await dispatcher.ended([partition], DEADLINE)
    assert sorted(handler.seen) == [1, 2, 3], "0 is tried again much later, by whoever has the partition then"
    assert partition.to_commit is None


async def test_gap_that_takes_longer_than_the_deadline_is_left() -> None:
    handler = Handler(waits_at={0, 2, 5})
    async with working(handler, concurrency=2) as dispatcher:
        partition = await ran_ahead(dispatcher, handler)
        dispatcher.close([P0])
        handler.may_end[0].set()
        handler.may_end[5].set()
        await handler.begun[2].wait()
        assert not await dispatcher.ended([partition], 0.01)
        handler.may_end[2].set()
        assert await dispatcher.ended([partition], DEADLINE)
    assert 3 not in handler.seen
    assert partition.to_commit == 3

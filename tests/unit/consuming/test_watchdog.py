"""A stalled member is replaced; if that does not help, the consumer fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deimos_async.consuming.runner import RunnerStatus
from deimos_async.consuming.watchdog import WatchedConsumer
from deimos_async.errors import BrokerError

DEADLINE = 20.0


class Member:
    """A member whose numbers the test sets."""

    name = "consumer bill orders"

    def __init__(self, *, stalled: bool = False, handling: bool = False, fetched: bool = False) -> None:
        self.stalled, self.is_handling, self.has_fetched = stalled, handling, fetched
        self.started = False
        self.looks = 0
        self.looked = asyncio.Event()
        self.stopped = asyncio.Event()
        self.error: Exception | None = None

    async def run(self, started: asyncio.Event) -> None:
        self.started = True
        started.set()
        await self.stopped.wait()
        if self.error is not None:
            raise self.error

    def request_stop(self) -> None:
        self.stopped.set()

    def status(self) -> RunnerStatus:
        self.looked.set()
        return RunnerStatus("bill", "g", "orders", frozenset(), 0, 0, failed=False, stalled=self.stalled)


def watching(*members: Member) -> tuple[WatchedConsumer, Callable[[], int]]:
    made = iter(members)
    count = 0

    def make() -> Any:
        nonlocal count
        count += 1
        return next(made)

    return WatchedConsumer(make, interval=0.001), lambda: count


async def test_stalled_member_is_stopped_and_another_one_takes_over() -> None:
    stuck, fresh = Member(stalled=True), Member(fetched=True)
    consumer, made = watching(stuck, fresh)
    task = asyncio.create_task(consumer.run(asyncio.Event()))
    async with asyncio.timeout(DEADLINE):
        await fresh.looked.wait()
        assert stuck.stopped.is_set()
        consumer.request_stop()
        await task
    assert made() == 2
    assert fresh.stopped.is_set()


async def test_second_member_that_fetches_nothing_either_fails_the_consumer() -> None:
    consumer, made = watching(Member(stalled=True), Member(stalled=True))
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(BrokerError, match="a new member made none either"):
            await consumer.run(asyncio.Event())
    assert made() == 2


async def test_member_that_got_on_before_it_stalled_again_is_replaced_again() -> None:
    fresh = Member()
    consumer, made = watching(Member(stalled=True), Member(stalled=True, fetched=True), fresh)
    task = asyncio.create_task(consumer.run(asyncio.Event()))
    async with asyncio.timeout(DEADLINE):
        await fresh.looked.wait()
        consumer.request_stop()
        await task
    assert made() == 3


async def test_running_handler_is_never_taken_for_a_stall() -> None:
    busy = Member(stalled=True, handling=True)
    consumer, made = watching(busy)
    task = asyncio.create_task(consumer.run(asyncio.Event()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not busy.stopped.is_set()
    consumer.request_stop()
    async with asyncio.timeout(DEADLINE):
        await task
    assert made() == 1


async def test_what_the_member_raises_is_the_consumers_failure() -> None:
    broken = Member()
    broken.error = BrokerError("fenced")
    broken.stopped.set()
    consumer, _ = watching(broken)
    with pytest.raises(BrokerError, match="fenced"):
        await consumer.run(asyncio.Event())


async def test_stop_before_the_run_is_not_lost_and_cancellation_ends_the_member() -> None:
    member = Member()
    consumer, _ = watching(member)
    consumer.request_stop()
    async with asyncio.timeout(DEADLINE):
        await consumer.run(asyncio.Event())
    other = Member()
    consumer, _ = watching(other)
    started = asyncio.Event()
    task = asyncio.create_task(consumer.run(started))
    await started.wait()
    task.cancel()
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([task])
    assert task.cancelled()
    assert other.stopped.is_set()

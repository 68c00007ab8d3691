"""What a consumer says about itself: status, and the metrics that it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import ConsumerOptions, NewTopic, ProducerOptions
from deimos_async.consuming.dispatch import Work
from deimos_async.consuming.on_error import DeadLetter, Skip
from deimos_async.consuming.runner import ConsumerRunner, RunnerOptions
from deimos_async.errors import BrokerUnavailableError
from deimos_async.message import Message, OutboundRecord, TopicPartition
from deimos_async.telemetry import names
from deimos_async.telemetry.mock import Mock
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.topics import Backoff, OnError

DEADLINE = 20.0
P0 = TopicPartition("orders", 0)
TAGS = {"topic": "orders", "consumer_group": "billing", "consumer": "bill"}


class Decoding:
    unknown: type[Exception] = LookupError

    def payload(self, data: bytes | None) -> Any:
        return data

    def key(self, data: bytes | None) -> Any:
        return data

    async def learn(self, unknown: Any) -> None:
        raise AssertionError("nothing is unknown")


class Telling(Mock):
    """Says when something was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    def increment(self, name: str, **more: Any) -> None:
        super().increment(name, **more)
        self.told.set()

    def gauge(self, name: str, value: float, **more: Any) -> None:
        super().gauge(name, value, **more)
        self.told.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self.told.clear()
                await self.told.wait()


class Trial:
    """A consumer of a broker in memory, with a clock that only the test moves."""

    def __init__(self, call: Callable[[Any], Awaitable[None]], **options: Any) -> None:
        self.partitions: int = options.pop("partitions", 1)
        self.now = 1_000.0
        self.mock = Telling()
        self.broker = MemoryBroker(partitions=self.partitions)
        given: dict[str, Any] = {
            "name": "bill",
            "group": "billing",
            "topic": "orders",
            "batch": False,
            "max_batch": 100,
            "max_wait": 0.0,
            "concurrency": 1,
            "ordering": "partition",
            "delivery": "at_least_once",
            "max_buffered": 1000,
            "max_buffered_bytes": 10**9,
            "call": call,
            "decoding": Decoding(),
            "policy": OnError(attempts=2, backoff=Backoff(0.001, 0.002)),
            "reraise": False,
            "fatal": (),
            "dead_letter_topic": "orders-dlt",
            "publish": self._publish,
            "metrics": self.mock,
            "tracing": NoTelemetry(),
            "payload_log": "full",
        }
        self.work = Work(**(given | options))
        self.runner = ConsumerRunner(
            self.broker,
            ConsumerOptions(group="billing", topics=("orders",)),
            self.work,
            RunnerOptions(commit_interval=0.01, stall_timeout=120.0),
            clock=lambda: self.now,
        )
        self._changed = asyncio.Event()
        self.runner.on_change = self._changed.set

    async def _publish(self, record: OutboundRecord) -> None:
        pass

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @asynccontextmanager
    async def running(self, *values: bytes) -> AsyncIterator[None]:
        """With these messages in the topic; drained at the end."""
        await self.broker.start()
        await self.broker.create_topics([NewTopic("orders", self.partitions)])
        producer = self.broker.producer(ProducerOptions())
        await producer.start()
        await producer.send([OutboundRecord("orders", key=None, value=value) for value in values])
        started = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.runner.run(started))
            await started.wait()
            try:
                yield
            finally:
                self.runner.request_stop()
        await producer.stop()
        await self.broker.stop()


class Gate:
    """A handler that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, message: Message[Any]) -> None:
        self.entered.set()
        await self.opened.wait()


async def test_handler_that_takes_long_is_no_stall_and_its_quiet_is_told() -> None:
    gate = Gate()
    trial = Trial(gate)
    async with trial.running(b"1", b"2"):
        await gate.entered.wait()
        first = trial.runner.status()
        trial.now += 119.0
        quiet = trial.runner.status()
        trial.now += 1.0
        longer = trial.runner.status()
        gate.opened.set()
        await trial.until(lambda: trial.runner.status().in_flight == 0)
        after = trial.runner.status()
    assert (first.stalled, first.last_progress, first.in_flight) == (False, 0.0, 2)
    assert (quiet.stalled, quiet.last_progress) == (False, 119.0)
    assert (longer.stalled, longer.last_progress) == (False, 120.0)
    assert (after.stalled, after.last_progress) == (False, 0.0)


async def test_idle_consumer_is_never_stalled() -> None:
    trial = Trial(Gate())
    async with trial.running():
        trial.runner.status()
        trial.now += 100_000.0
        status = trial.runner.status()
    assert (status.stalled, status.last_progress) == (False, 100_000.0)


async def test_message_that_waits_for_its_surroundings_is_no_stall() -> None:
    async def call(message: Message[Any]) -> None:
        raise BrokerUnavailableError("away")

    trial = Trial(call, policy=OnError(backoff=Backoff(3_600.0, 3_600.0)))
    async with trial.running(b"1"):
        await trial.until(lambda: sum(part.parked for part in trial.runner._dispatcher.partitions.values()) == 1)
        trial.runner.status()
        trial.now += 1_000.0
        status = trial.runner.status()
    assert (status.stalled, status.in_flight, status.last_progress) == (False, 1, 1_000.0)
    assert trial.mock.count(names.WAITS, **TAGS) == 1
    assert trial.mock.count(names.FAILED) == 0


async def test_partition_that_is_stuck_is_seen_beside_a_message_that_waits_and_a_handler_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuck = TopicPartition("orders", 1)
    gate = Gate()

    async def call(message: Message[Any]) -> None:
        if message.partition == 0:
            raise BrokerUnavailableError("away")
        await gate(message)

    trial = Trial(call, policy=OnError(backoff=Backoff(3_600.0, 3_600.0)), partitions=3, concurrency=2)
    async with trial.running():
        producer = trial.broker.producer(ProducerOptions())
        await producer.start()
        await producer.send([OutboundRecord("orders", value=b"v", partition=number) for number in (0, 2)])
        await gate.entered.wait()
        partitions = trial.runner._dispatcher.partitions
        await trial.until(lambda: partitions[P0].parked == 1)
        # A fetch that hangs without telling: the ends are known, and nothing comes.
        monkeypatch.setattr(trial.runner._consumer, "unfetched", lambda: {stuck: 5})
        trial.runner.status()
        trial.now += 120.0
        status = trial.runner.status()
        gate.opened.set()
        await producer.stop()
    assert (status.stalled, status.stalled_partitions) == (True, {stuck})


async def test_batch_that_waits_for_more_is_no_stall() -> None:
    gate = Gate()
    trial = Trial(gate, batch=True, max_wait=1_000.0)
    async with trial.running(b"1"):
        await trial.mock.until(lambda: trial.mock.count(names.CONSUMED) == 1)
        trial.now += 1_000.0
        waiting = trial.runner.status()
        trial.now += 120.0
        stalled = trial.runner.status()
    assert (waiting.stalled, stalled.stalled) == (False, True)


async def test_what_became_of_each_message_is_counted() -> None:
    last = asyncio.Event()

    async def call(message: Message[Any]) -> None:
        match message.payload:
            case b"last":
                last.set()
            case b"bad":
                raise KeyError("x")
            case b"skip":
                raise Skip("no")
            case b"letter":
                raise DeadLetter("no")

    trial = Trial(call)
    async with trial.running(b"good", b"bad", b"skip", b"letter", b"last"):
        async with asyncio.timeout(DEADLINE):
            await last.wait()
    count = trial.mock.count
    assert count(names.CONSUMED, **{"messaging.destination.name": "orders"}) == 5
    assert count(names.HANDLED, **TAGS) == 2
    assert count(names.FAILED, **TAGS, **{"error.type": "KeyError"}) == 2  # two attempts
    assert count(names.RETRIES, **TAGS) == 1
    assert count(names.SKIPPED, **TAGS) == 1
    assert count(names.DEAD_LETTERED, **TAGS) == 2
    assert count(names.REBALANCES, **TAGS) >= 1
    assert [call.name for call in trial.mock.histograms if call.name == names.PROCESS_DURATION]


async def test_batches_tell_the_time_of_decoding_and_of_the_whole_call() -> None:
    handled = asyncio.Event()

    async def call(messages: list[Message[Any]]) -> None:
        handled.set()

    trial = Trial(call, batch=True)
    async with trial.running(b"1", b"2", b"3"):
        await handled.wait()
    assert trial.mock.count(names.HANDLED, **TAGS) == 3
    told = [call.name for call in trial.mock.histograms]
    assert told.count(names.DECODE_TIME) == 1
    assert told.count(names.PROCESS_DURATION) == 1
    assert names.OPERATION_DURATION in told  # the commit


async def test_gauges_of_a_partition_are_cleared_when_it_goes() -> None:
    gate = Gate()
    trial = Trial(gate)
    async with trial.running(b"1", b"2", b"3"):
        await gate.entered.wait()
        await trial.mock.until(lambda: any(call.name == names.LAG_TIME for call in trial.mock.gauges))
        during = _last(trial.mock)
        gate.opened.set()
    after = _last(trial.mock)
    assert (during[names.LAG], during[names.IN_FLIGHT]) == (3, 3)
    assert during[names.LAG_TIME] > 0
    assert after == {names.LAG: 0, names.LAG_TIME: 0, names.IN_FLIGHT: 0, names.COMMIT_AGE: 0}
    lags = [call for call in trial.mock.gauges if call.name == names.LAG]
    assert lags[0].tags == {**TAGS, "partition": "0"}


def _last(mock: Mock) -> dict[str, float]:
    return {call.name: call.value for call in mock.gauges}

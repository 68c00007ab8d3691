"""Replays of the same dead letters at the same time: the one that began last goes on, and little is sent twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from deimos_async import Deimos, Key, Message
from deimos_async.brokers.protocol import Broker, NewTopic, ProducerOptions
from deimos_async.errors import CommitError
from deimos_async.letters import replay as replaying
from deimos_async.letters.desk import LetterDesk
from deimos_async.letters.replay import Replay, ReplayOptions
from deimos_async.message import OutboundRecord, TopicPartition

DEADLINE = 60.0
COUNT = 9
LIST = 3


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.services("kafka"))])
async def desk(
    request: pytest.FixtureRequest, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LetterDesk]:
    """Of an application with nine dead letters, in two partitions. Lists of a replay have three messages."""
    monkeypatch.setattr(replaying, "_CHUNK", LIST)
    where = (
        {"embedded": True}
        if request.param == "memory"
        else {"kafka.bootstrap_servers": request.getfixturevalue("kafka_bootstrap")}
    )
    app = Deimos(where | {"producers.topic_prefix": f"{unique_name}."}, metrics=None, tracing=None)

    @app.consumer(app.topic("orders", schema_backend="plain", key=Key.plain()), group="billing")
    async def bill(message: Message) -> None:
        raise AssertionError("no consumer runs")

    async with app.administration() as opened:
        broker = opened.brokers["default"]
        topic = f"{unique_name}.orders"
        await broker.create_topics([NewTopic(topic, 2), NewTopic(f"{topic}-dlt", 2)])
        producer = broker.producer(ProducerOptions())
        await producer.start()
        await producer.send(
            [
                OutboundRecord(f"{topic}-dlt", key=None, value=b"%d" % number, headers=[], partition=number % 2)
                for number in range(COUNT)
            ]
        )
        await producer.stop()
        yield LetterDesk(opened.brokers, opened.plan, opened.settings)


async def sent_back(desk: LetterDesk) -> Counter[bytes]:
    """How often each message lies in the topic that it came from."""
    (topic,) = await desk.topics()
    name = topic.source.kafka_name
    ids = [TopicPartition(name, number) for number in range(2)]
    ranges = {id: (0, end) for id, end in (await desk.brokers["default"].end_offsets(ids)).items()}
    found: Counter[bytes] = Counter()
    async for records in desk.brokers["default"].read(ranges):
        found.update(record.value or b"" for record in records)
    return found


async def replay(desk: LetterDesk) -> Replay:
    one = Replay(desk, await desk.topics(), ReplayOptions())
    await one.run()
    return one


class Halt:
    """Holds a replay at a call of its producer's `send`: before the records are sent, or after."""

    def __init__(self, broker: Broker, at: int, *, before: bool) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._make = broker.producer
        self._left, self._before = at, before

    def producer(self, options: ProducerOptions) -> Any:
        producer = self._make(options)
        producer.send = self._halting(producer.send)  # type: ignore[method-assign]
        return producer

    def _halting(self, send: Callable[..., Any]) -> Callable[..., Any]:
        async def halting(records: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._before:
                await self._wait()
            deliveries = await send(records)
            if self._left == 0 and not self._before:
                await self._wait()
            return deliveries

        return halting

    async def _wait(self) -> None:
        self.reached.set()
        await self.go_on.wait()


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("before", [True, False])
async def test_replay_that_another_overtakes_ends_and_repeats_one_list_at_most(
    desk: LetterDesk, monkeypatch: pytest.MonkeyPatch, at: int, before: bool
) -> None:
    broker = desk.brokers["default"]
    halt = Halt(broker, at, before=before)
    older = Replay(desk, await desk.topics(), ReplayOptions())
    async with asyncio.timeout(DEADLINE):
        with monkeypatch.context() as patched:
            patched.setattr(broker, "producer", halt.producer)
            running = asyncio.create_task(older.run())
            await halt.reached.wait()
        newer = await replay(desk)
        halt.go_on.set()
        with pytest.raises(CommitError, match=r"another replay of .* has begun") as caught:
            await running
    assert caught.value.lost
    noted = older.report.replayed.total()
    assert (noted > 0) == (at > 1)
    assert newer.report.replayed.total() == COUNT - noted
    found = await sent_back(desk)
    assert set(found) == {b"%d" % number for number in range(COUNT)}
    assert COUNT < found.total() <= COUNT + LIST
    assert (await replay(desk)).report.replayed.total() == 0, "all is noted"


async def test_replay_that_another_overtakes_between_two_lists_sends_nothing_twice(
    desk: LetterDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = desk.brokers["default"]
    store = broker.store_offsets
    noted, go_on = asyncio.Event(), asyncio.Event()

    async def storing(group: str, offsets: Any) -> None:
        await store(group, offsets)
        if group == desk.progress_group:
            noted.set()
            await go_on.wait()

    older = Replay(desk, await desk.topics(), ReplayOptions())
    async with asyncio.timeout(DEADLINE):
        with monkeypatch.context() as patched:
            patched.setattr(broker, "store_offsets", storing)
            running = asyncio.create_task(older.run())
            await noted.wait()
        await replay(desk)
        go_on.set()
        with pytest.raises(CommitError):
            await running
    assert await sent_back(desk) == {b"%d" % number: 1 for number in range(COUNT)}


async def test_dry_run_disturbs_no_replay(desk: LetterDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = desk.brokers["default"]
    halt = Halt(broker, 2, before=True)
    older = Replay(desk, await desk.topics(), ReplayOptions())
    async with asyncio.timeout(DEADLINE):
        with monkeypatch.context() as patched:
            patched.setattr(broker, "producer", halt.producer)
            running = asyncio.create_task(older.run())
            await halt.reached.wait()
        await Replay(desk, await desk.topics(), ReplayOptions(dry_run=True)).run()
        halt.go_on.set()
        await running
    assert await sent_back(desk) == {b"%d" % number: 1 for number in range(COUNT)}

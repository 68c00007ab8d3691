"""Lanes, workers, and what follows an error, without any broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deimos_async.consuming.dispatch import Dispatcher, NextRetry, Work
from deimos_async.consuming.lanes import Partition
from deimos_async.consuming.on_error import DeadLetter, Retry, Skip
from deimos_async.errors import (
    BrokerUnavailableError,
    DecodeError,
    DeliveryError,
    HandlerError,
    RegistryUnavailableError,
)
from deimos_async.message import Message, OutboundRecord, TopicPartition
from deimos_async.telemetry.none import NoTelemetry
from deimos_async.topics import Backoff, OnError

DEADLINE = 20.0
QUICK = OnError(attempts=3, backoff=Backoff(0.001, 0.002))
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


class Record:
    def __init__(self, offset: int, value: bytes | None = b"v", key: bytes | None = None, partition: int = 0) -> None:
        self.topic = "orders"
        self.partition = partition
        self.offset = offset
        self.timestamp = 1_000
        self.key = key
        self.value = value
        self.headers: Sequence[tuple[str, bytes | None]] = ()


class Unknown(Exception): ...


class Decoding:
    """Bytes as they are; `undecodable` raises, `unlearned` must be learned first."""

    unknown: type[Exception] = Unknown

    def __init__(self) -> None:
        self.learned = 0
        self.registry_failures = 0
        self.unknowable = False

    def payload(self, data: bytes | None) -> Any:
        if data == b"undecodable":
            raise DecodeError("no")
        if data == b"unlearned" and not self.learned:
            raise Unknown
        return data

    def key(self, data: bytes | None) -> Any:
        return data

    async def learn(self, unknown: Any) -> None:
        if self.unknowable:
            raise DecodeError("nobody knows that id")
        if self.registry_failures:
            self.registry_failures -= 1
            raise RegistryUnavailableError("away")
        self.learned += 1


class Trial:
    """A dispatcher with workers, and what came out of it."""

    def __init__(self, call: Callable[[Any], Any], **options: Any) -> None:
        self.buried: list[OutboundRecord] = []
        self.broker_failures = 0
        self.most_headers = 1000
        self.decoding = Decoding()
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
            "decoding": self.decoding,
            "policy": QUICK,
            "reraise": False,
            "fatal": (),
            "dead_letter_topic": "orders-dlt",
            "publish": self._publish,
            "metrics": NoTelemetry(),
            "tracing": NoTelemetry(),
            "payload_log": "full",
        }
        self.dispatcher = Dispatcher(Work(**(given | options)))

    async def _publish(self, record: OutboundRecord) -> None:
        if self.broker_failures:
            self.broker_failures -= 1
            raise BrokerUnavailableError("away")
        if len(record.headers) > self.most_headers:
            raise DeliveryError("too large", indexes=[0])
        self.buried.append(record)

    def add(self, records: Sequence[Any], id: TopicPartition = P0) -> Partition:
        if id not in self.dispatcher.partitions:
            self.dispatcher.assign([id])
        partition = self.dispatcher.partitions[id]
        self.dispatcher.add(partition, records)
        return partition

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            changed = asyncio.Event()
            self.dispatcher.on_change = changed.set
            while not condition():
                changed.clear()
                await changed.wait()

    async def handled(self, partition: Partition) -> None:
        await self.until(lambda: partition.buffered == 0)


@asynccontextmanager
async def working(trial: Trial) -> AsyncIterator[Trial]:
    tasks = [asyncio.create_task(trial.dispatcher.work_on()) for _ in range(trial.dispatcher.work.concurrency)]
    try:
        yield trial
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_messages_of_a_partition_are_handled_in_order_and_commit_the_prefix() -> None:
    seen: list[int] = []

    async def handle(message: Message) -> None:
        seen.append(message.offset)

    async with working(Trial(handle)) as trial:
        partition = trial.add([Record(offset) for offset in (3, 4, 9)])
        await trial.handled(partition)
    assert seen == [3, 4, 9]
    assert partition.to_commit == 10


async def test_failing_message_is_tried_again_in_its_place_then_dead_lettered_unchanged() -> None:
    seen: list[int] = []

    async def handle(message: Message) -> None:
        seen.append(message.offset)
        if message.offset == 1:
            raise ValueError("card 4111 refused\nsecond line")

    async with working(Trial(handle)) as trial:
        partition = trial.add([Record(0), Record(1, b"bad", b"key"), Record(2)])
        await trial.handled(partition)
    assert seen == [0, 1, 1, 1, 2]
    [letter] = trial.buried
    assert (letter.topic, letter.partition, letter.key, letter.value) == ("orders-dlt", 0, b"key", b"bad")
    headers = dict(letter.headers)
    assert headers["deimos-dlq-topic"] == b"orders"
    assert headers["deimos-dlq-offset"] == b"1"
    assert headers["deimos-dlq-attempts"] == b"3"
    assert headers["deimos-dlq-error-class"] == b"builtins.ValueError"
    assert headers["deimos-dlq-error-message"] == b"card 4111 refused second line"
    assert partition.to_commit == 3


async def test_message_that_succeeds_in_its_last_attempt_is_not_dead_lettered() -> None:
    attempts = 0

    async def handle(message: Message) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError

    async with working(Trial(handle)) as trial:
        await trial.handled(trial.add([Record(0)]))
    assert (attempts, trial.buried) == (3, [])


async def test_other_partitions_flow_while_one_waits_for_its_next_attempt() -> None:
    seen: list[tuple[int, int]] = []

    async def handle(message: Message) -> None:
        seen.append((message.partition, message.offset))
        if message.partition == 0:
            raise Retry(after=3600)

    async with working(Trial(handle)) as trial:
        waiting = trial.add([Record(0), Record(1)])
        other = trial.add([Record(0, partition=1), Record(1, partition=1)], P1)
        await trial.handled(other)
    assert seen == [(0, 0), (1, 0), (1, 1)]
    assert waiting.buffered == 2
    assert waiting.to_commit is None


@pytest.mark.parametrize(("error", "letters"), [(Skip("known"), 0), (DeadLetter("broken"), 1)])
async def test_handler_decides_itself_at_once(error: Exception, letters: int) -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise error

    async with working(Trial(handle)) as trial:
        partition = trial.add([Record(0)])
        await trial.handled(partition)
    assert (calls, len(trial.buried), partition.to_commit) == (1, letters, 1)


async def test_undecodable_bytes_are_dead_lettered_unchanged_and_never_reach_the_handler() -> None:
    seen: list[Any] = []

    async def handle(message: Message) -> None:
        seen.append(message.payload)

    async with working(Trial(handle)) as trial:
        await trial.handled(trial.add([Record(0, b"a"), Record(1, b"undecodable"), Record(2, b"b")]))
    assert seen == [b"a", b"b"]
    assert [(letter.value, dict(letter.headers)["deimos-dlq-attempts"]) for letter in trial.buried] == [
        (b"undecodable", b"0")
    ]


async def test_surroundings_wait_without_counting_an_attempt() -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls <= 10:
            raise BrokerUnavailableError("away")

    async with working(Trial(handle, policy=OnError(attempts=1, backoff=Backoff(0.001, 0.002)))) as trial:
        await trial.handled(trial.add([Record(0)]))
    assert (calls, trial.buried) == (11, [])


async def test_registry_away_while_learning_a_schema_waits_and_goes_on() -> None:
    seen: list[Any] = []

    async def handle(message: Message) -> None:
        seen.append(message.payload)

    async with working(Trial(handle)) as trial:
        trial.decoding.registry_failures = 3
        await trial.handled(trial.add([Record(0, b"unlearned"), Record(1, b"unlearned")]))
    assert (seen, trial.decoding.learned, trial.buried) == ([b"unlearned"] * 2, 1, [])


async def test_brokers_away_while_burying_wait_without_calling_the_handler_again() -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        raise ValueError

    async with working(Trial(handle)) as trial:
        trial.broker_failures = 4
        await trial.handled(trial.add([Record(0)]))
    assert (calls, len(trial.buried)) == (3, 1)


async def test_stop_leaves_the_message_and_everything_after_it_uncommitted() -> None:
    seen: list[int] = []

    async def handle(message: Message) -> None:
        seen.append(message.offset)
        if message.offset == 1:
            raise ValueError("no")

    async with working(Trial(handle, policy=OnError(attempts=1, then="stop"))) as trial:
        partition = trial.add([Record(0), Record(1), Record(2)])
        await trial.until(lambda: trial.dispatcher.failure is not None)
        assert await trial.dispatcher.ended([partition], DEADLINE)
    assert seen == [0, 1]
    assert partition.to_commit == 1
    failure = trial.dispatcher.failure
    assert isinstance(failure, HandlerError)
    assert (failure.topic, failure.partition, failure.offset, failure.attempt) == ("orders", 0, 1, 1)
    assert isinstance(failure.__cause__, ValueError)


@pytest.mark.parametrize("batch", [False, True])
async def test_fatal_error_stops_before_any_retry(batch: bool) -> None:
    calls: list[int] = []
    asked: list[tuple[BaseException, int]] = []

    async def handle(message: Any) -> None:
        calls.append(1)
        raise KeyError("no")

    def fatal(error: BaseException, messages: list[Any]) -> bool:
        asked.append((error, len(messages)))
        return isinstance(error, KeyError)

    async with working(Trial(handle, fatal=(fatal,), batch=batch)) as trial:
        trial.add([Record(0), Record(1)])
        await trial.until(lambda: trial.dispatcher.failure is not None)
    assert len(calls) == 1
    assert [count for _, count in asked] == [2 if batch else 1]


async def test_fatal_error_that_is_broken_itself_stops_and_loses_nothing() -> None:
    async def handle(message: Any) -> None:
        raise KeyError("no")

    def fatal(error: BaseException, messages: list[Any]) -> bool:
        raise RuntimeError("broken")

    async with working(Trial(handle, fatal=(fatal,))) as trial:
        partition = trial.add([Record(0)])
        await trial.until(lambda: trial.dispatcher.failure is not None)
    assert partition.to_commit is None


async def test_same_key_stays_in_order_while_different_keys_run_side_by_side() -> None:
    order: dict[bytes, list[int]] = {}
    running = 0
    most = 0
    gate = asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            gate.set()
        await gate.wait()
        order.setdefault(message.raw_key or b"", []).append(message.offset)
        running -= 1

    keys = [b"a", b"a", b"b", b"c", b"d", b"a", b"b"]
    async with working(Trial(handle, concurrency=4, ordering="key")) as trial:
        partition = trial.add([Record(offset, key=key) for offset, key in enumerate(keys)])
        await trial.handled(partition)
    assert most == 4
    assert order == {b"a": [0, 1, 5], b"b": [2, 6], b"c": [3], b"d": [4]}
    assert partition.to_commit == 7


async def test_commit_is_the_contiguous_prefix_while_an_early_message_is_still_handled() -> None:
    release = asyncio.Event()
    done: list[int] = []

    async def handle(message: Message) -> None:
        if message.offset == 0:
            await release.wait()
        done.append(message.offset)

    async with working(Trial(handle, concurrency=2, ordering="none")) as trial:
        partition = trial.add([Record(offset) for offset in range(5)])
        await trial.until(lambda: len(done) == 4)
        assert partition.to_commit is None
        release.set()
        await trial.handled(partition)
    assert partition.to_commit == 5


async def test_full_batch_does_not_wait_and_an_incomplete_one_goes_after_max_wait() -> None:
    batches: list[list[int]] = []

    async def handle(messages: list[Message]) -> None:
        batches.append([message.offset for message in messages])

    async with working(Trial(handle, batch=True, max_batch=3, max_wait=0.05)) as trial:
        partition = trial.add([Record(offset) for offset in range(7)])
        await trial.handled(partition)
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert partition.to_commit == 7


async def test_records_that_complete_a_waiting_batch_send_it_at_once() -> None:
    batches: list[int] = []

    async def handle(messages: list[Message]) -> None:
        batches.append(len(messages))

    async with working(Trial(handle, batch=True, max_batch=4, max_wait=3600)) as trial:
        trial.add([Record(0), Record(1)])
        partition = trial.add([Record(2), Record(3)])
        await trial.handled(partition)
    assert batches == [4]


async def test_failing_batch_is_cut_until_only_the_bad_message_goes() -> None:
    good: list[int] = []
    calls: list[list[int]] = []

    async def handle(messages: list[Message]) -> None:
        calls.append([message.offset for message in messages])
        if any(message.payload == b"bad" for message in messages):
            raise ValueError("bad")
        good.extend(message.offset for message in messages)

    async with working(Trial(handle, batch=True, max_batch=8, max_wait=0)) as trial:
        partition = trial.add([Record(offset, b"bad" if offset == 5 else b"v") for offset in range(8)])
        await trial.handled(partition)
    assert calls[:3] == [list(range(8))] * 3  # the attempts of the whole batch
    assert good == [0, 1, 2, 3, 4, 6, 7]
    assert [letter.value for letter in trial.buried] == [b"bad"]
    assert partition.to_commit == 8


async def test_undecodable_record_in_a_batch_goes_alone() -> None:
    batches: list[list[int]] = []

    async def handle(messages: list[Message]) -> None:
        batches.append([message.offset for message in messages])

    async with working(Trial(handle, batch=True, max_batch=10, max_wait=0)) as trial:
        values = [b"v", b"v", b"undecodable", b"unlearned", b"v"]
        partition = trial.add([Record(offset, value) for offset, value in enumerate(values)])
        await trial.handled(partition)
    assert batches == [[0, 1], [3, 4]]
    assert [letter.value for letter in trial.buried] == [b"undecodable"]


async def test_closed_partition_ends_its_running_message_and_begins_nothing_new() -> None:
    started, release = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def handle(message: Message) -> None:
        started.set()
        await release.wait()
        seen.append(message.offset)

    async with working(Trial(handle)) as trial:
        partition = trial.add([Record(0), Record(1)])
        await started.wait()
        [closed] = trial.dispatcher.close([P0])
        assert not await trial.dispatcher.ended([closed], 0.0)
        release.set()
        assert await trial.dispatcher.ended([closed], DEADLINE)
    assert seen == [0]
    assert partition.to_commit == 1


async def test_cancellation_inside_the_handlers_own_work_is_its_error_not_the_workers_end() -> None:
    calls = 0

    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        if message.offset == 0:
            raise asyncio.CancelledError

    async with working(Trial(handle)) as trial:
        partition = trial.add([Record(0), Record(1)])
        await trial.handled(partition)
    assert calls == 4  # three attempts, then the next message
    assert len(trial.buried) == 1


async def test_at_most_once_handles_what_was_committed_ahead_before_it_stops() -> None:
    seen: list[int] = []
    first, release = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> None:
        first.set()
        await release.wait()
        seen.append(message.offset)

    async with working(Trial(handle, delivery="at_most_once")) as trial:
        partition = trial.add([Record(0), Record(1), Record(2)])
        await first.wait()
        trial.dispatcher.request_stop()
        release.set()
        assert await trial.dispatcher.ended([partition], DEADLINE)
    assert seen == [0, 1, 2]


# --- messages that are not for the group -----------------------------------------------------------------------------


def replayed(offset: int, group: bytes, value: bytes = b"v") -> Record:
    record = Record(offset, value)
    record.headers = [("a", b"1"), ("deimos-replay-group", group), ("deimos-replay-topic", record.topic.encode())]
    return record


@pytest.mark.parametrize("ordering", ["partition", "key", "none"])
async def test_message_replayed_for_another_group_ends_without_being_handled(ordering: str) -> None:
    seen: list[int] = []

    async def call(message: Message[Any]) -> None:
        seen.append(message.offset)

    trial = Trial(call, ordering=ordering, concurrency=1)
    async with working(trial):
        partition = trial.add(
            [
                replayed(0, b"other", b"undecodable"),
                Record(1),
                replayed(2, b"billing"),
                replayed(3, b"other"),
                Record(4),
            ]
        )
        await trial.handled(partition)
        assert (seen, partition.position) == ([1, 2, 4], 5)
        trial.add([replayed(5, b"other")])
        await trial.handled(partition)
    assert (seen, partition.position, trial.buried) == ([1, 2, 4], 6, [])
    assert partition.passed_over == set()


async def test_batch_leaves_out_messages_replayed_for_another_group() -> None:
    seen: list[list[int]] = []

    async def call(messages: list[Message[Any]]) -> None:
        seen.append([message.offset for message in messages])

    trial = Trial(call, batch=True, max_batch=4)
    async with working(trial):
        partition = trial.add(
            [
                replayed(0, b"other"),
                replayed(1, b"other", b"undecodable"),
                Record(2),
                Record(3),
                replayed(4, b"other"),
                replayed(5, b"billing"),
                replayed(6, b"other"),
            ]
        )
        await trial.handled(partition)
    assert (seen, partition.position, trial.buried) == ([[2, 3], [5]], 7, [])


async def test_failing_batch_is_cut_apart_beside_messages_for_another_group() -> None:
    seen: list[int] = []

    async def call(messages: list[Message[Any]]) -> None:
        if any(message.payload == b"bad" for message in messages):
            raise ValueError("bad")
        seen.extend(message.offset for message in messages)

    trial = Trial(call, batch=True, policy=OnError(attempts=1))
    async with working(trial):
        partition = trial.add([Record(0), replayed(1, b"other"), Record(2), Record(3, b"bad"), replayed(4, b"other")])
        await trial.handled(partition)
    assert (sorted(seen), partition.position) == ([0, 2], 5)
    assert [record.headers[-1][0].startswith("deimos-dlq-") for record in trial.buried] == [True]


async def test_unknown_schema_id_at_the_head_of_a_batch_goes_alone() -> None:
    batches: list[list[int]] = []

    async def handle(messages: list[Message]) -> None:
        batches.append([message.offset for message in messages])

    async with working(Trial(handle, batch=True, max_batch=10, max_wait=0)) as trial:
        trial.decoding.unknowable = True
        partition = trial.add([Record(offset, b"unlearned" if offset in (0, 3) else b"v") for offset in range(6)])
        await trial.handled(partition)
    assert batches == [[1, 2], [4, 5]]
    assert [letter.value for letter in trial.buried] == [b"unlearned"] * 2
    assert partition.to_commit == 6


async def test_good_message_beside_a_bad_one_has_attempts_of_its_own() -> None:
    failures_left = {4: 1, 5: 1000}

    async def handle(messages: list[Message]) -> None:
        if len(messages) > 1:
            raise ValueError("one of them")
        [message] = messages
        if failures_left.get(message.offset, 0) > 0:
            failures_left[message.offset] -= 1
            raise ValueError("this one")

    async with working(Trial(handle, batch=True, max_batch=8, max_wait=0)) as trial:
        await trial.handled(trial.add([Record(offset) for offset in range(8)]))
    assert [dict(letter.headers)["deimos-dlq-offset"] for letter in trial.buried] == [b"5"]


async def test_dead_letter_that_is_too_large_goes_without_headers_of_ours() -> None:
    async def handle(message: Message) -> None:
        raise ValueError("no")

    async with working(Trial(handle, policy=OnError(attempts=1))) as trial:
        trial.most_headers = 0
        partition = trial.add([Record(0)])
        await trial.handled(partition)
    assert [letter.headers for letter in trial.buried] == [[]]
    assert partition.to_commit == 1


async def test_message_waits_in_retry_topics_then_becomes_a_dead_letter_of_its_origin() -> None:
    async def handle(message: Message) -> None:
        raise ValueError("no")

    record: Any = Record(7, b"v", b"k", 2)
    for stage, (retry, is_retry) in enumerate([(NextRetry("orders-retry-1", 5.0), False), (None, True)]):
        trial = Trial(handle, policy=OnError(attempts=1), retry=retry, is_retry=is_retry)
        async with working(trial):
            await trial.handled(trial.add([record], TopicPartition(record.topic, record.partition)))
        [letter] = trial.buried
        headers = dict(letter.headers)
        if stage == 0:
            assert letter.topic == "orders-retry-1"
            assert headers["deimos-retry-group"] == b"billing"
            assert int(headers["deimos-retry-due"] or b"0") > 1_700_000_000_000
            due_now = [(n, b"0" if n == "deimos-retry-due" else v) for n, v in letter.headers]
            record = Record(0, letter.value, letter.key, letter.partition)
            record.topic, record.headers = letter.topic, due_now
    assert letter.topic == "orders-dlt"
    assert (headers["deimos-dlq-topic"], headers["deimos-dlq-partition"], headers["deimos-dlq-offset"]) == (
        b"orders",
        b"2",
        b"7",
    )
    assert headers["deimos-dlq-attempts"] == b"2"
    assert not any(name.startswith("deimos-retry-") for name in headers)


async def test_message_of_a_retry_topic_is_not_handled_before_it_is_due_and_not_for_another_group() -> None:
    seen: list[int] = []

    async def handle(message: Message) -> None:
        seen.append(message.offset)

    later = str(round((time.time() + 3600) * 1000)).encode()
    async with working(Trial(handle, is_retry=True)) as trial:
        records = [Record(offset) for offset in range(3)]
        records[0].headers = [("deimos-retry-group", b"others"), ("deimos-retry-due", later)]
        records[2].headers = [("deimos-retry-group", b"billing"), ("deimos-retry-due", later)]
        partition = trial.add(records)
        await trial.until(lambda: partition.buffered == 1)
    assert seen == [1]
    assert partition.to_commit == 2


async def test_worker_whose_handler_swallows_its_cancellation_ends_all_the_same() -> None:
    started = asyncio.Event()

    async def handle(message: Message) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    trial = Trial(handle)
    worker = asyncio.create_task(trial.dispatcher.work_on())
    trial.add([Record(0)])
    await started.wait()
    worker.cancel()
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait([worker])


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error", [Wordless(), ValueError("half of a pair: \ud800"), ValueError("line\nforged \x1b]0;owned\x07")]
)
async def test_text_of_an_error_never_stops_the_consumer(error: Exception) -> None:
    async def handle(message: Message) -> None:
        raise error

    async with working(Trial(handle, policy=OnError(attempts=1))) as trial:
        await trial.handled(trial.add([Record(0)]))
    [letter] = trial.buried
    said = dict(letter.headers)["deimos-dlq-error-message"]
    assert said is not None
    assert said.decode().isprintable()


async def test_what_nobody_expects_stops_in_front_of_the_message_and_names_it() -> None:
    async def publish(record: OutboundRecord) -> None:
        raise ZeroDivisionError("a defect")

    async def handle(message: Message) -> None:
        raise ValueError("bad")

    async with working(Trial(handle, policy=OnError(attempts=1), publish=publish)) as trial:
        partition = trial.add([Record(7)])
        await trial.until(lambda: trial.dispatcher.failure is not None)
        assert "orders[0]@7" in str(trial.dispatcher.failure)
        assert partition.to_commit is None


async def test_dead_letter_says_the_same_under_springs_names_where_that_is_set() -> None:
    async def handle(message: Message) -> None:
        raise DeadLetter("too old")

    async with working(Trial(handle, spring_headers=True)) as trial:
        await trial.handled(trial.add([Record(258, partition=0)]))
    [letter] = trial.buried
    headers = dict(letter.headers)
    assert headers["kafka_dlt-original-topic"] == b"orders"
    assert headers["kafka_dlt-original-partition"] == b"\x00\x00\x00\x00"
    assert headers["kafka_dlt-original-offset"] == b"\x00\x00\x00\x00\x00\x00\x01\x02"  # 258 = 0x0102
    assert headers["kafka_dlt-original-timestamp"] == (1_000).to_bytes(8, "big")
    assert headers["kafka_dlt-original-consumer-group"] == b"billing"
    assert headers["kafka_dlt-exception-fqcn"] == headers["deimos-dlq-error-class"] == b"deimos_async.DeadLetter"
    assert headers["kafka_dlt-exception-message"] == b"too old"

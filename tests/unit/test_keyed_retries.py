"""`then="retry_keyed"`, on the memory broker and SQLite: what fails waits with its key, and nothing else waits."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import (
    Backoff,
    ConfigurationError,
    DeadLetter,
    Deimos,
    HandlerError,
    Key,
    Message,
    Mock,
    ModelConsumer,
    OnError,
    Retry,
    Skip,
    TopicPartition,
)
from deimos_async.brokers.memory import MemoryBroker, MemoryConsumer
from deimos_async.brokers.protocol import NewTopic, ProducerOptions
from deimos_async.consuming.waiting import key_hash
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import kafka_offsets, kafka_retries
from deimos_async.message import OutboundRecord
from deimos_async.telemetry import names
from deimos_async.testing.harness import DeimosHarness

DEADLINE = 20.0
KEYED = OnError(attempts=2, backoff=Backoff(0.001, 0.01), then="retry_keyed")

metadata = sa.MetaData()
seen = sa.Table(
    "seen", metadata, sa.Column("n", sa.Integer, primary_key=True), sa.Column("word", sa.String(20), nullable=False)
)

Handle = Callable[[Message[Any]], Awaitable[None]]


class Log(logging.Handler):
    """What was logged, and waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"
        self._said.set()

    async def until(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while text not in self.text:
                self._said.clear()
                await self._said.wait()


@pytest.fixture
def log() -> Iterator[Log]:
    logger, log = logging.getLogger("deimos_async"), Log()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)
    logger.setLevel(before)


class Stage:
    """One broker and one database for the applications of a test. Words are `a1`, `a2`, ...: the letter is the key."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.engines: list[AsyncEngine] = []
        self.broker = MemoryBroker(partitions=2)
        self.members: list[MemoryConsumer] = []
        self.statements: list[str] = []
        made = self.broker.consumer

        def consumer(*args: Any) -> MemoryConsumer:
            self.members.append(made(*args))
            return self.members[-1]

        self.broker.consumer = consumer  # type: ignore[method-assign]

    def app(self, *, metrics: Any = None, tracing: Any = None, **settings: Any) -> Deimos:
        given = {
            "embedded": True,
            "consumers.commit_interval": 0.01,
            "consumers.shutdown_timeout": 5.0,
            "consumers.keyed_retries.backoff_initial": 0.001,
            "consumers.keyed_retries.backoff_maximum": 0.01,
            "consumers.keyed_retries.attempts": 1_000_000,
        }
        # An engine of its own: at its stop an application disposes of the pool.
        engine = create_async_engine(self.engine.url)
        self.engines.append(engine)
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._executes)
        app = Deimos(given | settings, engine=engine, metrics=metrics, tracing=tracing)
        app._broker_factory = lambda cluster, settings: self.broker
        return app

    def _executes(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.statements.append(statement)

    async def send(self, *words: str, partition: int = 0, keyless: bool = False) -> None:
        records = [
            OutboundRecord(
                "words",
                key=None if keyless else word[:1].encode(),
                value=word.encode(),
                headers=[("word", word.encode()), ("none", None)],
                partition=partition,
                timestamp=1_700_000_000_000,
            )
            for word in words
        ]
        await self.send_records(*records)

    async def send_records(self, *records: OutboundRecord) -> None:
        await self.broker.create_topics([NewTopic("words", 2), NewTopic("words-dlt", 2)])
        producer = self.broker.producer(ProducerOptions())
        await producer.start()
        await producer.send(records)

    async def seen(self) -> list[str]:
        async with self.engine.connect() as connection:
            return list((await connection.execute(sa.select(seen.c.word).order_by(seen.c.n))).scalars())

    async def waiting(self) -> list[Any]:
        rows = sa.select(kafka_retries).order_by(kafka_retries.c.topic_partition, kafka_retries.c.record_offset)
        async with self.engine.connect() as connection:
            return list((await connection.execute(rows)).all())

    async def words_waiting(self) -> list[str]:
        return [(row.record_value or b"").decode(errors="replace") for row in await self.waiting()]

    async def stored(self) -> dict[int, int]:
        rows = sa.select(kafka_offsets.c.topic_partition, kafka_offsets.c.next_offset)
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(rows)}

    async def until_waiting(self, *words: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while await self.words_waiting() != list(words):
                pass

    async def until_seen(self, *words: str) -> None:
        """In any order, but nothing else."""
        async with asyncio.timeout(DEADLINE):
            while sorted(await self.seen()) != sorted(words):
                pass

    async def until_stored(self, partition: int, offset: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while (await self.stored()).get(partition) != offset:
                pass

    def letters(self) -> list[bytes | None]:
        return [record.value for record in self.broker.records("words-dlt")]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await create_framework_tables(engine)
    yield Stage(engine)
    await engine.dispose()


def writing(app: Deimos, handle: Handle, *, batch: bool = False, **options: Any) -> None:
    """A consumer of `words` that writes down each word after `handle` has let it through."""
    words = app.topic("words", key=Key.plain(), on_error=KEYED)
    options = {"group": "g", "delivery": "effectively_once"} | options

    async def one(message: Message[Any], session: AsyncSession) -> None:
        await handle(message)
        await session.execute(sa.insert(seen).values(word=message.payload.decode()))

    if batch:

        @app.consumer(words, batch=True, max_wait=0.0, **options)
        async def write_all(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await one(message, session)
    else:

        @app.consumer(words, **options)
        async def write(message: Message, session: AsyncSession) -> None:
            await one(message, session)


class Door:
    """Lets no message of some keys through until it is opened for them."""

    def __init__(self, *shut: str, error: Callable[[], BaseException] = lambda: ValueError("shut")) -> None:
        self.shut = set(shut)
        self.error = error
        self.calls: Counter[str] = Counter()
        self._called = asyncio.Event()

    async def __call__(self, message: Message[Any]) -> None:
        word = message.payload.decode()
        self.calls[word] += 1
        self._called.set()
        if word[0] in self.shut or word in self.shut:
            raise self.error()

    async def until_called(self, word: str, times: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.calls[word] < times:
                self._called.clear()
                await self._called.wait()


async def through(message: Message[Any]) -> None:
    """Lets everything through."""


BOTH = pytest.mark.parametrize("batch", [False, True], ids=["messages", "batches"])


def of_key(key: str, words: list[str]) -> list[str]:
    return [word for word in words if word[0] == key]


# --- order, and who waits ------------------------------------------------------------------------------------------


@BOTH
async def test_message_that_fails_waits_with_its_key_while_others_flow_and_is_handled_in_order(
    stage: Stage, batch: bool
) -> None:
    door = Door("a")
    app = stage.app()
    writing(app, door, batch=batch)
    await stage.send("b1", "a1", "b2", "a2", "c1", "a3", "b3")
    async with app.running():
        await stage.until_stored(0, 7)
        await stage.until_seen("b1", "b2", "c1", "b3")
        assert await stage.words_waiting() == ["a1", "a2", "a3"]
        await stage.send("a4", "c2")
        await stage.until_waiting("a1", "a2", "a3", "a4")
        await stage.until_seen("b1", "b2", "c1", "b3", "c2")
        door.shut.clear()
        await stage.until_waiting()
        await stage.send("a5")
        await stage.until_stored(0, 10)
        assert await stage.words_waiting() == []
    assert of_key("a", await stage.seen()) == ["a1", "a2", "a3", "a4", "a5"]
    assert of_key("b", await stage.seen()) == ["b1", "b2", "b3"]
    assert stage.letters() == []
    assert door.calls["a2"] == 1  # it queued up, and was not tried before a1 was through


@BOTH
async def test_row_holds_the_message_byte_by_byte_and_why_it_waits(stage: Stage, batch: bool) -> None:
    app = stage.app(
        **{"consumers.keyed_retries.backoff_initial": 300.0, "consumers.keyed_retries.backoff_maximum": 900}
    )
    writing(app, Door("a"), batch=batch)
    key, value = b"a" + bytes(range(128)), b"a\x00\xff"
    headers = [("twice", b"\x00"), ("twice", b"\xff"), ("none", None), ("", b"")]
    await stage.send_records(
        OutboundRecord("words", key=key, value=b"ax", headers=headers, partition=1, timestamp=5),
        OutboundRecord("words", key=key, value=value, partition=1, timestamp=6),
        OutboundRecord("words", key=key, value=None, partition=1, timestamp=7),
    )
    async with app.running():
        await stage.until_stored(1, 3)
    failed, behind, tombstone = await stage.waiting()
    assert (failed.consumer_group, failed.topic, failed.topic_partition, failed.record_offset) == ("g", "words", 1, 0)
    assert failed.topic_id == stage.broker._topic_ids["words"]
    assert (failed.key_hash, failed.record_key, failed.record_value, failed.record_timestamp) == (
        key_hash(key),
        key,
        b"ax",
        5,
    )
    assert failed.attempts == 2
    assert (failed.error_class, failed.error_message) == ("builtins.ValueError", "shut")
    assert failed.first_failed_at < failed.next_at
    assert (behind.record_value, behind.attempts, behind.first_failed_at, behind.error_class) == (value, 0, None, None)
    assert (tombstone.record_key, tombstone.record_value) == (key, None)
    again = stage.app()
    came: list[Any] = []

    async def note(message: Message[Any]) -> None:
        came.append((message.raw_key, message.raw_payload, list(message.headers), message.offset))

    words = again.topic("words", key=Key.plain(), on_error=KEYED)

    @again.consumer(words, group="g", delivery="effectively_once")
    async def write(message: Message, session: AsyncSession) -> None:
        await note(message)

    async with stage.engine.begin() as connection:
        await connection.execute(
            sa.update(kafka_retries).values(next_at=kafka_retries.c.first_failed_at).where(kafka_retries.c.attempts > 0)
        )
    async with again.running():
        await stage.until_waiting()
    assert came == [(key, b"ax", headers, 0), (key, value, [], 1), (key, None, [], 2)]


@BOTH
async def test_messages_without_a_key_wait_alone(stage: Stage, batch: bool) -> None:
    door = Door("x1")
    app = stage.app()
    writing(app, door, batch=batch)
    await stage.send("x1", "x2", "x3", keyless=True)
    async with app.running():
        await stage.until_seen("x2", "x3")
        assert await stage.words_waiting() == ["x1"]
        assert [row.key_hash for row in await stage.waiting()] == [None]
        door.shut.clear()
        await stage.until_seen("x1", "x2", "x3")
        assert await stage.words_waiting() == []


@BOTH
async def test_any_failures_and_restarts_keep_the_order_of_each_key_and_handle_each_message_once(
    stage: Stage, batch: bool
) -> None:
    dice = random.Random(7)

    async def fail_at_random(message: Message[Any]) -> None:
        if dice.random() < 0.3:
            raise ValueError("bad luck")

    keys, sent = "abcdef", [0] * 6
    for round in range(4):
        words = []
        for _ in range(30):
            key = dice.randrange(6)
            sent[key] += 1
            words.append(f"{keys[key]}{sent[key]}")
        await stage.send(*words)
        app = stage.app()
        options: dict[str, Any] = {"max_batch": 7} if batch else {}
        writing(app, fail_at_random, batch=batch, concurrency=3, **options)
        async with app.running():
            if round == 3:
                await stage.until_stored(0, 120)
                await stage.until_waiting()
            else:
                async with asyncio.timeout(DEADLINE):
                    while len(await stage.seen()) < 25 * (round + 1):
                        pass
    found = await stage.seen()
    for key, count in zip(keys, sent, strict=True):
        assert of_key(key, found) == [f"{key}{n}" for n in range(1, count + 1)]
    assert stage.letters() == []


async def test_keys_are_tried_side_by_side_but_one_worker_is_there_for_the_topic(stage: Stage) -> None:
    hang, opened = asyncio.Event(), asyncio.Event()
    inside: set[str] = set()
    entered = asyncio.Event()

    async def handle(message: Message[Any]) -> None:
        word = message.payload.decode()
        if word[0] not in "abc":
            return
        if not hang.is_set():
            raise ValueError("no")
        inside.add(word)
        entered.set()
        await opened.wait()

    app = stage.app(**{"consumers.keyed_retries.backoff_maximum": 0.001})
    writing(app, handle, concurrency=3)
    await stage.send("a1", "b1", "c1")
    async with app.running():
        await stage.until_waiting("a1", "b1", "c1")
        hang.set()
        async with asyncio.timeout(DEADLINE):
            while len(inside) < 2:
                entered.clear()
                await entered.wait()
        await stage.send("x1", "x2")
        await stage.until_seen("x1", "x2")
        assert len(inside) == 2
        opened.set()
        await stage.until_seen("x1", "x2", "a1", "b1", "c1")


# --- what becomes of a message that waits --------------------------------------------------------------------------


@BOTH
async def test_message_out_of_attempts_becomes_a_dead_letter_and_its_key_goes_on(
    stage: Stage, batch: bool, log: Log
) -> None:
    door = Door("a1")
    app = stage.app(**{"consumers.keyed_retries.attempts": 3})
    writing(app, door, batch=batch)
    await stage.send("a1", "a2", "b1", "a3")
    async with app.running():
        await stage.until_seen("b1", "a2", "a3")
    assert of_key("a", await stage.seen()) == ["a2", "a3"]
    [letter] = stage.broker.records("words-dlt")
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.partition, letter.timestamp) == (b"a", b"a1", 0, 1_700_000_000_000)
    assert headers["word"] == b"a1"
    assert (headers["deimos-dlq-offset"], headers["deimos-dlq-group"]) == (b"0", b"g")
    assert headers["deimos-dlq-attempts"] == b"5"  # two in place, three later
    assert headers["deimos-dlq-error-class"] == b"builtins.ValueError"
    assert headers["deimos-dlq-first-failed-at"] is not None
    assert await stage.words_waiting() == []
    assert "words[0]@0 sent to words-dlt: ValueError: shut" in log.text


async def test_message_that_queued_up_has_as_many_attempts_as_the_one_before_it(stage: Stage) -> None:
    door = Door("a")
    app = stage.app(**{"consumers.keyed_retries.attempts": 3})
    writing(app, door)
    await stage.send("a1", "a2")
    async with app.running(), asyncio.timeout(DEADLINE):
        while stage.letters() != [b"a1", b"a2"]:
            await stage.broker.changed()
    assert (door.calls["a1"], door.calls["a2"]) == (5, 5)


@BOTH
async def test_error_that_is_not_retried_becomes_a_dead_letter_at_once(stage: Stage, batch: bool) -> None:
    policy = OnError(attempts=2, backoff=Backoff(0.001, 0.01), then="retry_keyed", exclude=(KeyError,))
    door = Door("a", error=lambda: KeyError("no"))
    app = stage.app()
    writing(app, door, batch=batch, on_error=policy)
    await stage.send("a1", "b1")
    async with app.running():
        await stage.until_seen("b1")
        await stage.until_stored(0, 2)
    assert stage.letters() == [b"a1"]
    assert await stage.words_waiting() == []


async def test_error_that_is_not_retried_ends_the_waiting(stage: Stage) -> None:
    policy = OnError(attempts=2, backoff=Backoff(0.001, 0.01), then="retry_keyed", include=(ValueError,))
    door = Door("a1")
    app = stage.app()
    writing(app, door, on_error=policy)
    await stage.send("a1", "a2")
    async with app.running():
        await door.until_called("a1", 4)
        door.error = lambda: KeyError("no")
        await stage.until_seen("a2")
    assert stage.letters() == [b"a1"]


@BOTH
@pytest.mark.parametrize("way", ["skip", "dead_letter"])
async def test_handler_decides_about_a_message_that_waits(stage: Stage, batch: bool, way: str) -> None:
    door = Door("a1")
    app = stage.app()
    writing(app, door, batch=batch)
    await stage.send("a1", "a2")
    async with app.running():
        await door.until_called("a1", 4)
        door.error = lambda: Skip("enough") if way == "skip" else DeadLetter("enough")
        await stage.until_seen("a2")
    assert stage.letters() == ([] if way == "skip" else [b"a1"])
    assert await stage.words_waiting() == []


async def test_skip_of_a_batch_does_not_take_along_what_queues_up_among_it(stage: Stage) -> None:
    door = Door("a")
    app = stage.app()
    writing(app, door, batch=True)
    await stage.send("a1")
    async with app.running():
        await stage.until_waiting("a1")
        skipping = Door("b", error=lambda: Skip("not wanted"))
        door.shut, door.error = {"a"}, door.error
    again = stage.app(**{"consumers.keyed_retries.backoff_initial": 1.0, "consumers.keyed_retries.backoff_maximum": 9})

    async def handle(message: Message[Any]) -> None:
        await door(message)
        await skipping(message)

    writing(again, handle, batch=True)
    await stage.send("b1", "a2", "b2", "a3", "c1")
    async with again.running():
        await stage.until_stored(0, 6)
        assert await stage.words_waiting() == ["a1", "a2", "a3"]
    assert await stage.seen() == ["c1"]
    assert stage.letters() == []


async def test_retry_says_itself_when_the_message_is_tried_again(stage: Stage) -> None:
    app = stage.app()
    calls = 0

    async def handle(message: Message[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise Retry(after=3600.0)

    writing(app, handle)
    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        await stage.send("a1")
        await deimos.run_until_idle(advance=False)
        assert calls == 1  # in place
        await deimos.run_until_idle()
        assert (calls, await stage.seen()) == (5, ["a1"])


@BOTH
async def test_undecodable_message_is_a_dead_letter_at_once_unless_its_key_waits(
    stage: Stage, batch: bool, tmp_path: Path
) -> None:
    fields = [{"name": "word", "type": "string"}]
    schema = {"type": "record", "name": "Word", "namespace": "com.acme", "fields": fields}
    file = tmp_path / "schemas" / "com" / "acme" / "Word.avsc"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(schema))
    app = stage.app(**{"schema.path": str(tmp_path / "schemas")})
    words = app.topic("words", schema="com.acme.Word", schema_backend="avro_validation", key=Key.plain())
    is_shut = True

    async def one(message: Message[Any], session: AsyncSession) -> None:
        if is_shut and message.key == "a":
            raise ValueError("shut")
        await session.execute(sa.insert(seen).values(word=message.payload["word"]))

    options: dict[str, Any] = {"group": "g", "delivery": "effectively_once", "on_error": KEYED}
    if batch:

        @app.consumer(words, batch=True, max_wait=0.0, **options)
        async def write_all(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await one(message, session)
    else:

        @app.consumer(words, **options)
        async def write(message: Message, session: AsyncSession) -> None:
            await one(message, session)

    def record(word: str) -> OutboundRecord:
        value = f"bad {word}" if word.endswith("!") else json.dumps({"word": word})
        return OutboundRecord("words", key=word[:1].encode(), value=value.encode(), partition=0)

    await stage.send_records(*map(record, ["b1!", "a1", "c1", "a2!", "a3", "b2!", "c2"]))
    async with app.running():
        await stage.until_stored(0, 7)
        await stage.until_seen("c1", "c2")
        assert stage.letters() == [b"bad b1!", b"bad b2!"]
        assert [row.record_offset for row in await stage.waiting()] == [1, 3, 4]
        is_shut = False
        await stage.until_seen("c1", "c2", "a1", "a3")
    assert stage.letters() == [b"bad b1!", b"bad b2!", b"bad a2!"]
    attempts = [dict(letter.headers)["deimos-dlq-attempts"] for letter in stage.broker.records("words-dlt")]
    assert attempts == [b"0", b"0", b"0"]
    assert of_key("a", await stage.seen()) == ["a1", "a3"]


async def test_error_that_fatal_error_selects_stops_and_the_message_goes_on_waiting(stage: Stage) -> None:
    door = Door("a")
    app = stage.app()
    told: list[BaseException] = []

    def fatal(error: BaseException, messages: list[Any]) -> bool:
        return str(error) == "fatal"

    writing(app, door, fatal_error=fatal)
    await stage.send("a1", "a2")
    async with app.running():
        await stage.until_waiting("a1", "a2")
        door.error = lambda: ValueError("fatal")
        async with asyncio.timeout(DEADLINE):
            await app.wait_failed()
        told += app.failures.values()
    [error] = told
    assert isinstance(error, HandlerError)
    assert (error.partition, error.offset) == (0, 0)
    assert await stage.words_waiting() == ["a1", "a2"]


async def test_row_that_somebody_deletes_is_done_with(stage: Stage) -> None:
    door = Door("a1")
    app = stage.app()
    writing(app, door)
    await stage.send("a1", "a2")
    async with app.running():
        await stage.until_waiting("a1", "a2")
        async with stage.engine.begin() as connection:
            await connection.execute(sa.delete(kafka_retries).where(kafka_retries.c.record_offset == 0))
        await stage.until_seen("a2")
    assert await stage.words_waiting() == []


# --- surroundings, crashes, members that come and go ---------------------------------------------------------------


class Commits:
    """Breaks commits of an engine that have touched a table: the connection seems to be lost with them."""

    def __init__(self, engine: AsyncEngine, touching: str) -> None:
        self.dialect = engine.sync_engine.dialect
        self.really = self.dialect.do_commit
        self.plan: list[str] = []
        """What becomes of the next such commits: "lost" after or "refused" before they have gone through."""
        self.touching = touching
        self.touches = False
        self.dialect.do_commit = self._commit  # type: ignore[method-assign]
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._before)

    def _before(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.touches |= statement.startswith(self.touching)

    def _commit(self, connection: Any) -> None:
        touches, self.touches = self.touches, False
        what = self.plan.pop(0) if touches and self.plan else "fine"
        if what != "refused":
            self.really(connection)
        if what != "fine":
            raise ConnectionResetError("cut")


@BOTH
@pytest.mark.parametrize("touching", ["INSERT INTO kafka_retries", "UPDATE kafka_retries", "DELETE FROM kafka_retries"])
async def test_commit_with_unknown_outcome_loses_doubles_and_reorders_nothing(
    stage: Stage, batch: bool, touching: str
) -> None:
    door = Door("a")
    app = stage.app()
    commits = Commits(stage.engines[-1], touching)
    commits.plan = ["refused", "lost", "refused", "refused", "lost"]
    writing(app, door, batch=batch, **({"max_batch": 3} if batch else {}))
    await stage.send("a1", "b1", "a2", "b2", "a3", "c1", "a4", "a5", "b3", "a6")
    async with app.running():
        await stage.until_stored(0, 10)
        await door.until_called("a1", 12)
        door.shut.clear()
        await stage.until_waiting()
        await stage.until_seen("a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "b3", "c1")
    assert commits.plan == []
    assert of_key("a", await stage.seen()) == ["a1", "a2", "a3", "a4", "a5", "a6"]
    assert stage.letters() == []


def locked() -> BaseException:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorname = "SQLITE_BUSY"
    return sa.exc.OperationalError("UPDATE", None, error)


class ServiceDownError(Exception): ...


@pytest.mark.parametrize("error", [locked, ServiceDownError])
async def test_surroundings_are_no_attempt_of_a_message_that_waits(
    stage: Stage, error: Callable[[], BaseException]
) -> None:
    policy = OnError(attempts=2, backoff=Backoff(0.001, 0.01), then="retry_keyed", wait_on=(ServiceDownError,))
    door = Door("a")
    door.error = lambda: ValueError("shut") if door.calls["a1"] <= 4 else error()
    app = stage.app(**{"consumers.keyed_retries.attempts": 3})
    writing(app, door, on_error=policy)
    await stage.send("a1")
    async with app.running():
        await door.until_called("a1", 20)
        [row] = await stage.waiting()
        assert row.attempts == 4
        door.shut.clear()
        await stage.until_seen("a1")
    assert stage.letters() == []


async def test_brokers_away_while_burying_wait_without_calling_the_handler_again(
    stage: Stage, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deimos_async.brokers.memory import MemoryProducer
    from deimos_async.errors import BrokerUnavailableError

    really, refusals = MemoryProducer.send, 5

    async def send(self: Any, records: Any) -> Any:
        nonlocal refusals
        if records[0].topic == "words-dlt" and refusals:
            refusals -= 1
            raise BrokerUnavailableError("away")
        return await really(self, records)

    monkeypatch.setattr(MemoryProducer, "send", send)
    door = Door("a1")
    app = stage.app(**{"consumers.keyed_retries.attempts": 2})
    writing(app, door)
    await stage.send("a1", "a2")
    async with app.running():
        await stage.until_seen("a2")
    assert (refusals, stage.letters(), door.calls["a1"]) == (0, [b"a1"], 4)
    assert "words[0]@0 goes on waiting for" in log.text


@BOTH
async def test_next_member_goes_on_with_what_waits(stage: Stage, batch: bool) -> None:
    first = stage.app()
    writing(first, Door("a"), batch=batch)
    await stage.send("a1", "b1", "a2")
    async with first.running():
        await stage.until_waiting("a1", "a2")
        await stage.until_stored(0, 3)
    second = stage.app()
    writing(second, through, batch=batch)
    await stage.send("a3")
    async with second.running():
        await stage.until_seen("b1", "a1", "a2", "a3")
    assert of_key("a", await stage.seen()) == ["a1", "a2", "a3"]


@BOTH
async def test_member_that_lost_its_partition_does_not_handle_a_waiting_message_twice(
    stage: Stage, batch: bool
) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()
    hangs = False

    async def fail_then_hang(message: Message[Any]) -> None:
        if message.payload[:1] == b"a":
            if not hangs:
                raise ValueError("no")
            entered.set()
            await opened.wait()

    zombie, owner = stage.app(), stage.app()
    writing(zombie, fail_then_hang, batch=batch)
    writing(owner, through, batch=batch)
    await stage.send("a1", "b1", "a2")
    async with zombie.running():
        await stage.until_waiting("a1", "a2")
        hangs = True
        await entered.wait()
        [member] = stage.members
        # It does not hear that it was thrown out, as if it were frozen.
        assert member._group is not None
        member._group.members.remove(member)
        async with owner.running():
            await stage.until_seen("b1", "a1", "a2")
            await stage.send("a3")
            await stage.until_seen("b1", "a1", "a2", "a3")
            opened.set()
            await stage.send("a4", "b2")
            await stage.until_seen("b1", "a1", "a2", "a3", "a4", "b2")
        stage.broker.expire(member)
        member._lose()
        await stage.send("a5")
        await stage.until_stored(0, 7)
    assert of_key("a", await stage.seen()) == ["a1", "a2", "a3", "a4", "a5"]
    assert stage.letters() == []


@BOTH
async def test_partition_that_moves_ends_the_attempt_that_runs_first(stage: Stage, batch: bool) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()
    hangs = False

    async def fail_then_hang(message: Message[Any]) -> None:
        if message.payload[:1] == b"a":
            if not hangs:
                raise ValueError("no")
            entered.set()
            await opened.wait()

    first, second = stage.app(), stage.app()
    writing(first, fail_then_hang, batch=batch)
    calls: list[bytes] = []

    async def note(message: Message[Any]) -> None:
        calls.append(message.payload)

    writing(second, note, batch=batch)
    await stage.send("a1", "b1", "a2")
    await stage.send("a9", partition=1)
    async with first.running():
        await stage.until_waiting("a1", "a2", "a9")
        hangs = True
        await entered.wait()
        async with second.running():
            opened.set()
            await stage.until_seen("a1", "b1", "a2", "a9")
    found = await stage.seen()
    assert found.index("a1") < found.index("a2")


async def test_attempt_cut_off_by_a_stop_is_rolled_back_and_made_by_the_next_member(stage: Stage) -> None:
    entered = asyncio.Event()
    hangs = False

    async def fail_then_hang(message: Message[Any]) -> None:
        if not hangs:
            raise ValueError("no")
        entered.set()
        await asyncio.Event().wait()

    first = stage.app(**{"consumers.shutdown_timeout": 0.01})
    writing(first, fail_then_hang)
    await stage.send("a1")
    async with first.running():
        await stage.until_waiting("a1")
        hangs = True
        await entered.wait()
    assert (await stage.seen(), await stage.words_waiting()) == ([], ["a1"])
    second = stage.app()
    writing(second, through)
    async with second.running():
        await stage.until_seen("a1")


async def test_offset_set_back_by_hand_puts_no_message_into_the_table_twice(stage: Stage) -> None:
    first = stage.app()
    writing(first, Door("a"))
    await stage.send("a1", "a2")
    async with first.running():
        await stage.until_waiting("a1", "a2")
    async with stage.engine.begin() as connection:
        await connection.execute(sa.update(kafka_offsets).values(next_offset=0))
        await connection.execute(sa.delete(kafka_retries).where(kafka_retries.c.record_offset == 0))
    second = stage.app()
    writing(second, Door("a2"))
    async with second.running():
        await stage.until_seen("a1")
        assert await stage.words_waiting() == ["a2"]


async def test_message_of_an_earlier_topic_of_the_same_name_is_not_overwritten(stage: Stage, log: Log) -> None:
    door = Door("a")
    first = stage.app()
    writing(first, door)
    await stage.send("a1", "a2")
    async with first.running():
        await stage.until_waiting("a1", "a2")
    stage.broker.delete_topic("words")
    await stage.send("a3", "a4")
    second = stage.app(**{"consumers.on_lost_offset": "earliest"})
    writing(second, door)
    async with second.running():
        await log.until("a message of an earlier topic of this name waits at the same offset")
        assert await stage.words_waiting() == ["a1", "a2"]
        door.shut.clear()
        await stage.until_seen("a1", "a2", "a3", "a4")
    assert await stage.seen() == ["a1", "a2", "a3", "a4"]


# --- bounds --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("bound", ["max_per_key", "max_per_group"])
async def test_partition_waits_where_there_is_no_room_and_goes_on_by_itself(
    stage: Stage, batch: bool, bound: str, log: Log
) -> None:
    door = Door("a")
    app = stage.app(**{f"consumers.keyed_retries.{bound}": 2})
    writing(app, door, batch=batch)
    await stage.send("a1", "b1", "a2", "b2", "a3", "b3")
    async with app.running():
        await stage.until_stored(0, 4)
        of = "key" if bound == "max_per_key" else "group"
        await log.until(f"words[0]@4 waits, and its partition with it: 2 messages of its {of} wait")
        [status] = app.health().consumers
        assert (status.waiting, status.waiting_keys, status.held_up) == (2, 1, {TopicPartition("words", 0)})
        assert app.health().alive
        await stage.send("b9", partition=1)
        await stage.until_seen("b1", "b2", "b9")
        assert await stage.words_waiting() == ["a1", "a2"]
        door.shut.clear()
        await stage.until_seen("a1", "a2", "a3", "b1", "b2", "b3", "b9")
        assert "there is room in kafka_retries" in log.text or "no message of the key" in log.text
        [status] = app.health().consumers
        assert (status.waiting, status.held_up) == (0, frozenset())
    assert of_key("a", await stage.seen()) == ["a1", "a2", "a3"]


async def test_message_that_fails_waits_in_its_place_while_the_group_has_no_room(stage: Stage, log: Log) -> None:
    door = Door("a", "b")
    app = stage.app(**{"consumers.keyed_retries.max_per_group": 1})
    writing(app, door)
    await stage.send("a1", "b1", "c1")
    async with app.running():
        await log.until("words[0]@1 waits, and its partition with it")
        calls = door.calls["b1"]
        door.shut.remove("a")
        await stage.until_seen("a1", "c1")
        assert await stage.words_waiting() == ["b1"]
        assert calls == 2
        door.shut.clear()
        await stage.until_seen("a1", "b1", "c1")


# --- cost, telling, testing ----------------------------------------------------------------------------------------


@BOTH
async def test_nothing_is_asked_of_the_table_while_nothing_fails(stage: Stage, batch: bool) -> None:
    app = stage.app()
    writing(app, through, batch=batch)
    await stage.send("a1")
    await stage.send("a2", partition=1)
    async with app.running():
        await stage.until_stored(0, 1)
        await stage.until_stored(1, 1)
        asked = [text for text in stage.statements if text.startswith("SELECT") and "kafka_retries" in text]
        assert len(asked) == 1  # for both partitions, when they came
        stage.statements.clear()
        words = [f"{key}{n}" for n in range(3, 23) for key in "abc"]
        await stage.send(*words)
        await stage.until_seen("a1", "a2", *words)
    assert [text for text in stage.statements if "kafka_retries" in text] == []


async def test_counts_and_gauges_tell_of_messages_that_wait(stage: Stage) -> None:
    mock = Mock()
    calls: Counter[str] = Counter()

    async def handle(message: Message[Any]) -> None:
        word = message.payload.decode()
        calls[word] += 1
        if word[0] == "a" or (word == "b1" and calls[word] <= 3):
            raise ValueError("no")

    app = stage.app(metrics=mock, **{"consumers.keyed_retries.attempts": 2})
    writing(app, handle)
    await stage.send("a1", "a2", "c1", "b1")
    async with app.running():
        async with asyncio.timeout(DEADLINE):
            while stage.letters() != [b"a1", b"a2"]:
                await stage.broker.changed()
        await stage.until_seen("c1", "b1")
    assert mock.count(names.KEYED_STORED) == 3
    assert mock.count(names.KEYED_HANDLED) == 1
    assert mock.count(names.KEYED_GIVEN_UP) == mock.count(names.DEAD_LETTERED) == 2
    assert mock.count(names.HANDLED) == 2


@BOTH
async def test_each_attempt_of_a_message_that_waits_has_a_span(stage: Stage, batch: bool) -> None:
    mock = Mock()
    door = Door("a1")
    app = stage.app(tracing=mock)
    writing(app, door, batch=batch)
    await stage.send("a1", "a2")
    async with app.running():
        await door.until_called("a1", 4)
        door.shut.clear()
        await stage.until_seen("a1", "a2")
    spans = [span for span in mock.spans if span.kind == "consumer"]
    failed = [span for span in spans if span.error is not None]
    assert len(failed) == len(spans) - 2
    assert len(spans) == sum(door.calls.values())


@BOTH
async def test_run_until_idle_says_what_waits_when_its_time_is_up(stage: Stage, batch: bool) -> None:
    app = stage.app()
    writing(app, Door("a"), batch=batch, on_error=OnError(attempts=1, then="retry_keyed"))
    await stage.send("a1", "a2")
    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        with pytest.raises(TimeoutError, match=r"2 messages of consumer 'write(_all)?' wait in kafka_retries"):
            await deimos.run_until_idle(timeout=3.0)


@BOTH
async def test_run_until_idle_goes_on_until_nothing_waits(stage: Stage, batch: bool) -> None:
    failures = Counter({"a1": 6, "b1": 4})

    async def handle(message: Message[Any]) -> None:
        word = message.payload.decode()
        failures[word] -= 1
        if failures[word] >= 0:
            raise ValueError("not yet")

    app = stage.app(
        **{"consumers.keyed_retries.backoff_initial": 600.0, "consumers.keyed_retries.backoff_maximum": 3600.0}
    )
    writing(app, handle, batch=batch, on_error=OnError(attempts=1, then="retry_keyed"))
    await stage.send("a1", "b1", "a2", "c1")
    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        await deimos.run_until_idle(advance=False)
        assert await stage.words_waiting() == ["a1", "b1", "a2"]
        assert await stage.seen() == ["c1"]
        await deimos.run_until_idle()
    found = await stage.seen()
    assert sorted(found) == ["a1", "a2", "b1", "c1"]
    assert of_key("a", found) == ["a1", "a2"]
    assert await stage.words_waiting() == []


class Base(DeclarativeBase): ...


class WordRow(Base):
    __tablename__ = "word_rows"

    letter: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    word: Mapped[str] = mapped_column(sa.String(20))


@BOTH
async def test_model_consumer_keeps_the_last_message_of_a_key_that_has_waited(stage: Stage, batch: bool) -> None:
    failing = Counter({"a1": 5})

    class Save(ModelConsumer[WordRow]):
        compacted = False

        def record_key(self, key: Any) -> dict[str, Any]:
            return {"letter": key}

        def record_attributes(self, payload: Any, key: Any) -> dict[str, Any]:
            word = payload.decode()
            failing[word] -= 1
            if failing[word] >= 0:
                raise ValueError("not yet")
            return {"word": word}

    async with stage.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app = stage.app()
    words = app.topic("words", key=Key.plain(), on_error=KEYED)
    app.consumer(words, group="g", delivery="effectively_once", batch=batch)(Save)
    await stage.send("b1", "a1", "b2", "a2", "a3", "c1")
    async with app.running():
        await stage.until_stored(0, 6)
        await stage.until_waiting()
    async with stage.engine.connect() as connection:
        rows = (await connection.execute(sa.select(WordRow.letter, WordRow.word).order_by(WordRow.letter))).all()
    assert rows == [("a", "a3"), ("b", "b2"), ("c", "c1")]
    assert stage.letters() == []


# --- mistakes that are seen at start -------------------------------------------------------------------------------


async def refused(app: Deimos) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with app.running():
            pass
    return str(caught.value)


async def test_what_is_missing_for_it_is_reported_at_start() -> None:
    app = Deimos(metrics=None, tracing=None)

    @app.consumer(app.topic("words", on_error=KEYED), group="g")
    async def handle(message: Message) -> None: ...

    said = await refused(app)
    assert "'handle': on_error says then='retry_keyed'" in said
    assert "set 'database.url', or give Deimos(engine=...)" in said
    assert "give delivery='effectively_once'" in said
    assert "topic 'words' has no keys; give its key=" in said


async def test_topic_without_keys_is_reported(stage: Stage) -> None:
    app = stage.app()

    @app.consumer(app.topic("words", key=Key.none()), group="g", delivery="effectively_once", on_error=KEYED)
    async def handle(message: Message, session: AsyncSession) -> None: ...

    said = await refused(app)
    assert "topic 'words' has no keys" in said
    assert "effectively_once" not in said


async def test_missing_table_is_reported_with_the_command_that_makes_it(stage: Stage) -> None:
    async with stage.engine.begin() as connection:
        await connection.run_sync(kafka_retries.drop)
    app = stage.app()
    writing(app, through)
    said = await refused(app)
    assert "no table 'kafka_retries', which then='retry_keyed' needs" in said
    assert "deimos_async migrate APP" in said


async def test_consumer_of_dead_letters_stops_where_the_general_policy_is_retry_keyed(stage: Stage) -> None:
    app = stage.app(**{"consumers.on_error.then": "retry_keyed"})
    letters = app.topic("words-dlt", schema_backend="plain", key=Key.none())

    @app.consumer(letters, group="g")
    async def handle(message: Message) -> None: ...

    await stage.send("a1")
    async with app.running():
        assert app._running is not None
        assert app._running.plan is not None
        [planned] = app._running.plan.consumers
        assert planned.policy.then == "stop"

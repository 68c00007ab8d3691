"""Effectively once, on the memory broker and SQLite: what is handled is counted, and counting is not idempotent."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from deimos_async import (
    Backoff,
    ConfigurationError,
    Deimos,
    DeliveryError,
    Depends,
    HandlerError,
    Key,
    Message,
    OffsetOutOfRangeError,
    OnError,
    Skip,
    TopicPartition,
)
from deimos_async.brokers.memory import MemoryBroker, MemoryConsumer
from deimos_async.brokers.protocol import NewTopic, ProducerOptions, StoredOffset
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.tables import kafka_offsets
from deimos_async.message import OutboundRecord
from deimos_async.testing.harness import DeimosHarness

DEADLINE = 20.0
QUICK = OnError(attempts=2, backoff=Backoff(0.001, 0.01))

metadata = sa.MetaData()
counts = sa.Table("counts", metadata, sa.Column("word", sa.String(20), primary_key=True), sa.Column("n", sa.Integer))


async def add(session: AsyncSession, word: str) -> None:
    """Count one more. Twice the same message would be seen."""
    changed = await session.execute(sa.update(counts).where(counts.c.word == word).values(n=counts.c.n + 1))
    assert isinstance(changed, sa.CursorResult)
    if not changed.rowcount:
        await session.execute(sa.insert(counts).values(word=word, n=1))


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
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)


class Stage:
    """One broker and one database for the applications of a test."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        self.engine = engine
        self.options = options
        self.engines: list[AsyncEngine] = []
        self.broker = MemoryBroker(partitions=2)
        self.members: list[MemoryConsumer] = []
        made = self.broker.consumer

        def consumer(*args: Any) -> MemoryConsumer:
            self.members.append(made(*args))
            return self.members[-1]

        self.broker.consumer = consumer  # type: ignore[method-assign]

    def app(self, **settings: Any) -> Deimos:
        given = {"embedded": True, "consumers.commit_interval": 0.01, "consumers.shutdown_timeout": 5.0}
        # An engine of its own: at its stop an application disposes of the pool.
        self.engines.append(create_async_engine(self.engine.url, **self.options))
        app = Deimos(given | settings, engine=self.engines[-1], metrics=None, tracing=None)
        app._broker_factory = lambda cluster, settings: self.broker
        return app

    async def send(self, *words: str, partition: int = 0, topic: str = "words") -> None:
        await self.broker.create_topics([NewTopic(topic, 2), NewTopic(f"{topic}-dlt", 2)])
        producer = self.broker.producer(ProducerOptions())
        await producer.start()
        await producer.send(
            [OutboundRecord(topic, key=b"k", value=word.encode(), partition=partition) for word in words]
        )

    async def counted(self) -> dict[str, int]:
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(sa.select(counts))}

    async def stored(self) -> dict[int, int]:
        rows = sa.select(kafka_offsets.c.topic_partition, kafka_offsets.c.next_offset)
        async with self.engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(rows)}

    async def store(self, partition: int, **values: Any) -> None:
        async with self.engine.begin() as connection:
            changed = await connection.execute(
                sa.update(kafka_offsets).where(kafka_offsets.c.topic_partition == partition).values(**values)
            )
            assert changed.rowcount == 1

    async def until(self, *, committed: Mapping[int, int], topic: str = "words", group: str = "g") -> None:
        """Wait until Kafka's own offsets, which follow the stored ones, are these."""
        wanted = {TopicPartition(topic, partition): offset for partition, offset in committed.items()}
        async with asyncio.timeout(DEADLINE):
            while not wanted.items() <= (await self.broker.group_offsets(group)).items():
                await self.broker.changed()

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


def counting(app: Deimos, *, batch: bool, handle: Callable[..., Awaitable[None]] | None = None, **options: Any) -> Any:
    """A consumer of `words` that counts them; `handle` is called before, for each word."""
    words = app.topic("words", key=Key.plain(), on_error=QUICK)
    options = {"group": "g", "delivery": "effectively_once"} | options

    async def one(message: Message[Any], session: AsyncSession) -> None:
        if handle is not None:
            await handle(message)
        await add(session, message.payload.decode())

    if batch:

        @app.consumer(words, batch=True, max_wait=0.0, **options)
        async def count(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await one(message, session)
    else:

        @app.consumer(words, **options)
        async def count(message: Message, session: AsyncSession) -> None:
            await one(message, session)

    return count


BOTH = pytest.mark.parametrize("batch", [False, True], ids=["messages", "batches"])


@asynccontextmanager
async def failing(app: Deimos) -> AsyncIterator[list[BaseException]]:
    """Run until a consumer fails; the block gets what broke."""
    broken: list[BaseException] = []
    async with app.running():
        async with asyncio.timeout(DEADLINE):
            await app.wait_failed()
        broken += app.failures.values()
    yield broken


@BOTH
async def test_rows_and_offset_are_committed_together_and_kafkas_offsets_follow(stage: Stage, batch: bool) -> None:
    app = stage.app()
    counting(app, batch=batch, concurrency=2)
    await stage.send("a", "b", "a")
    await stage.send("c", partition=1)
    async with app.running():
        await stage.until(committed={0: 3, 1: 1})
    assert await stage.counted() == {"a": 2, "b": 1, "c": 1}
    assert await stage.stored() == {0: 3, 1: 1}


@BOTH
async def test_stored_offset_counts_and_not_that_of_kafka(stage: Stage, batch: bool, log: Log) -> None:
    await stage.send("a", "b")
    first = stage.app()
    counting(first, batch=batch)
    async with first.running():
        await stage.until(committed={0: 2})
    await stage.send("c")
    await stage.broker.store_offsets("g", {TopicPartition("words", 0): StoredOffset(0)})
    second = stage.app()
    counting(second, batch=batch)
    async with second.running():
        await stage.until(committed={0: 3})
    await stage.send("d")
    await stage.broker.store_offsets("g", {TopicPartition("words", 0): StoredOffset(4)})
    third = stage.app()
    counting(third, batch=batch)
    async with third.running(), asyncio.timeout(DEADLINE):
        while (await stage.stored())[0] != 4:
            pass
    assert await stage.counted() == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert "goes on at the stored offset 3, though 4 is committed in Kafka" in log.text


async def test_group_without_row_begins_at_kafkas_offset_else_as_start_from_says(stage: Stage) -> None:
    await stage.send("a", "b", "c")
    await stage.send("d", partition=1)
    await stage.broker.store_offsets("g", {TopicPartition("words", 0): StoredOffset(2)})
    app = stage.app()
    counting(app, batch=False, start_from="latest")
    async with app.running():
        await stage.until(committed={0: 3, 1: 1})
        await stage.send("e", partition=1)
        await stage.until(committed={1: 2})
    assert await stage.counted() == {"c": 1, "e": 1}


@BOTH
async def test_message_that_always_fails_is_dead_lettered_and_the_others_are_counted_once(
    stage: Stage, batch: bool
) -> None:
    attempts: Counter[bytes] = Counter()

    async def handle(message: Message[Any]) -> None:
        attempts[message.payload] += 1
        if message.payload == b"bad":
            raise ValueError("bad")

    app = stage.app()
    counting(app, batch=batch, handle=handle)
    await stage.send("a", "b", "bad", "c", "a")
    async with app.running():
        await stage.until(committed={0: 5})
    assert await stage.counted() == {"a": 2, "b": 1, "c": 1}
    assert stage.letters() == [b"bad"]
    assert await stage.stored() == {0: 5, 1: 0}
    assert attempts[b"bad"] >= 2


@BOTH
async def test_skipped_and_foreign_messages_move_the_stored_offset(stage: Stage, batch: bool) -> None:
    async def handle(message: Message[Any]) -> None:
        if message.payload == b"skip":
            raise Skip("not wanted")

    app = stage.app()
    counting(app, batch=batch, handle=handle)
    await stage.send("skip")
    producer = stage.broker.producer(ProducerOptions())
    await producer.start()
    only_others = (("deimos-replay-group", b"another"), ("deimos-replay-topic", b"words"))
    async with app.running():
        await stage.until(committed={0: 1})
        await producer.send([OutboundRecord("words", key=None, value=b"x", headers=only_others, partition=0)])
        await stage.until(committed={0: 2})
    assert await stage.stored() == {0: 2, 1: 0}
    assert await stage.counted() == {}


class Commits:
    """Breaks commits of an engine: the connection seems to be lost with them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.dialect = engine.sync_engine.dialect
        self.really = self.dialect.do_commit
        self.plan: list[str] = []
        """What becomes of the next commits of rows: "lost" after or "refused" before they have gone through."""
        self.writes = False
        self.dialect.do_commit = self._commit  # type: ignore[method-assign]
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._before)

    def _before(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.writes |= "counts" in statement

    def _commit(self, connection: Any) -> None:
        writes, self.writes = self.writes, False
        what = self.plan.pop(0) if writes and self.plan else "fine"
        if what != "refused":
            self.really(connection)
        if what != "fine":
            raise ConnectionResetError("cut")


@BOTH
async def test_commit_with_unknown_outcome_is_looked_up_and_no_attempt_is_counted(stage: Stage, batch: bool) -> None:
    app = stage.app()
    commits = Commits(stage.engines[-1])
    commits.plan = ["refused", "lost", "refused", "refused", "refused", "lost"]
    counting(app, batch=batch, max_batch=2) if batch else counting(app, batch=False)
    await stage.send("a", "b", "a", "c")
    async with app.running():
        await stage.until(committed={0: 4})
    assert commits.plan == []
    assert await stage.counted() == {"a": 2, "b": 1, "c": 1}
    assert stage.letters() == []


@BOTH
async def test_member_that_lost_its_partition_is_rolled_back_and_not_dead_lettered(
    stage: Stage, batch: bool, log: Log
) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()

    async def wait(message: Message[Any]) -> None:
        entered.set()
        await opened.wait()

    zombie = stage.app()
    counting(zombie, batch=batch, handle=wait)
    await stage.send("a", "b")
    owner = stage.app()
    counting(owner, batch=batch)
    async with zombie.running():
        await entered.wait()
        [member] = stage.members
        # It does not hear that it was thrown out, as if it were frozen.
        assert member._group is not None
        member._group.members.remove(member)
        async with owner.running():
            await stage.until(committed={0: 2})
            opened.set()
            await log.until("read again from the stored offset")
            assert await stage.counted() == {"a": 1, "b": 1}
        stage.broker.expire(member)
        member._lose()
        await stage.send("c")
        async with asyncio.timeout(DEADLINE):
            while (await stage.stored())[0] != 3:
                pass
    assert await stage.counted() == {"a": 1, "b": 1, "c": 1}
    assert stage.letters() == []


@BOTH
async def test_partition_that_moves_during_a_handler_is_drained_first(stage: Stage, batch: bool) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()

    async def wait(message: Message[Any]) -> None:
        entered.set()
        await opened.wait()

    first, second = stage.app(), stage.app()
    counting(first, batch=batch, handle=wait)
    counting(second, batch=batch)
    await stage.send("a", "b", "c")
    await stage.send("d", partition=1)
    async with first.running():
        await entered.wait()
        async with second.running():
            opened.set()
            await stage.until(committed={0: 3, 1: 1})
    assert await stage.counted() == {"a": 1, "b": 1, "c": 1, "d": 1}


@BOTH
async def test_handler_cut_off_by_a_stop_is_rolled_back(stage: Stage, batch: bool) -> None:
    entered = asyncio.Event()

    async def wait(message: Message[Any]) -> None:
        entered.set()
        await asyncio.Event().wait()

    first = stage.app(**{"consumers.shutdown_timeout": 0.01})
    counting(first, batch=batch, handle=wait)
    await stage.send("a")
    async with first.running():
        await entered.wait()
    assert (await stage.counted(), await stage.stored()) == ({}, {0: 0, 1: 0})
    second = stage.app()
    counting(second, batch=batch)
    async with second.running():
        await stage.until(committed={0: 1})
    assert await stage.counted() == {"a": 1}


async def test_offset_that_retention_has_deleted_stops_with_an_error_that_says_what_to_do(stage: Stage) -> None:
    await stage.send("a", "b", "c")
    first = stage.app()
    counting(first, batch=False)
    async with first.running():
        await stage.until(committed={0: 3})
    await stage.store(0, next_offset=1)
    stage.broker.delete_records("words", 0, 2)
    second = stage.app()
    told: list[BaseException | None] = []
    second.events.subscribe("deimos.error", lambda event: told.append(event.error))
    counting(second, batch=False)
    async with failing(second) as [error]:
        assert isinstance(error, OffsetOutOfRangeError)
    assert told == [error]
    assert str(error).startswith(
        "group 'g': topic 'words' partition 0: the stored offset 1 does not exist, the partition holds 2 to 3. "
    )
    assert "'consumers.on_lost_offset'" in str(error)
    assert (await stage.counted(), (await stage.stored())[0]) == ({"a": 1, "b": 1, "c": 1}, 1)


@pytest.mark.parametrize(("choice", "handled"), [("earliest", {"b": 1, "c": 1, "d": 1}), ("latest", {"d": 1})])
async def test_offset_that_does_not_exist_is_replaced_where_the_setting_says_so(
    stage: Stage, choice: str, handled: dict[str, int], log: Log
) -> None:
    await stage.send("a", "b", "c")
    await stage.broker.store_offsets("g", {TopicPartition("words", 0): StoredOffset(0)})
    stage.broker.delete_records("words", 0, 1)
    app = stage.app(**{"consumers.on_lost_offset": choice})
    counting(app, batch=False)
    async with app.running():
        await stage.until(committed={0: 3})
        await stage.send("d")
        await stage.until(committed={0: 4})
    assert await stage.counted() == handled
    assert "the stored offset 0 does not exist, the partition holds 1 to 3" in log.text


async def test_records_deleted_while_it_runs_are_noticed(stage: Stage) -> None:
    entered, opened = asyncio.Event(), asyncio.Event()

    async def wait(message: Message[Any]) -> None:
        entered.set()
        await opened.wait()

    app = stage.app(**{"consumers.max_records": 1, "consumers.max_buffered": 1, "consumers.on_lost_offset": "earliest"})
    counting(app, batch=False, handle=wait)
    await stage.send("a", "b", "c")
    async with app.running():
        await entered.wait()
        stage.broker.delete_records("words", 0, 2)
        opened.set()
        await stage.until(committed={0: 3})
    assert await stage.counted() == {"a": 1, "c": 1}


async def test_topic_that_was_deleted_and_made_again_stops_the_consumer(stage: Stage) -> None:
    await stage.send("a", "b")
    first = stage.app()
    counting(first, batch=False)
    async with first.running():
        await stage.until(committed={0: 2})
    stage.broker.delete_topic("words")
    await stage.send("c", "d", "e")
    second = stage.app()
    counting(second, batch=False)
    async with failing(second) as [error]:
        assert isinstance(error, OffsetOutOfRangeError)
    assert "the topic was deleted and made again: the stored offset 2 is of topic id " in str(error)
    assert await stage.counted() == {"a": 1, "b": 1}
    third = stage.app(**{"consumers.on_lost_offset": "earliest"})
    counting(third, batch=False)
    async with third.running():
        await stage.until(committed={0: 3})
    assert await stage.counted() == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}


async def test_offset_that_another_member_moves_while_a_partition_is_placed_is_not_taken_for_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """As by a member that was frozen between asking where the topic ends and reading where the group is."""
    await stage.send("a")
    first = stage.app()
    counting(first, batch=False)
    async with first.running():
        await stage.until(committed={0: 1})
    extents = MemoryConsumer.extents
    is_first = True

    async def late(consumer: MemoryConsumer, partitions: Any) -> Any:
        nonlocal is_first
        found = await extents(consumer, partitions)
        if is_first:
            is_first = False
            await stage.send("b", "c")
            await stage.store(0, next_offset=3)  # by the other member, which has handled them
        return found

    monkeypatch.setattr(MemoryConsumer, "extents", late)
    second = stage.app()
    counting(second, batch=False)
    async with second.running():
        await log.until("somebody else has moved it")
        await stage.send("d")
        await stage.until(committed={0: 4})
    assert await stage.counted() == {"a": 1, "d": 1}


async def test_row_without_topic_id_gets_it_and_goes_on(stage: Stage) -> None:
    await stage.send("a")
    first = stage.app()
    counting(first, batch=False)
    async with first.running():
        await stage.until(committed={0: 1})
    await stage.store(0, topic_id=None)
    await stage.send("b")
    second = stage.app()
    counting(second, batch=False)
    async with second.running():
        await stage.until(committed={0: 2})
    async with stage.engine.connect() as connection:
        ids = set((await connection.execute(sa.select(kafka_offsets.c.topic_id))).scalars())
    assert ids == {stage.broker._topic_ids["words"]}
    assert await stage.counted() == {"a": 1, "b": 1}


async def test_database_away_is_waited_for_and_no_attempt_is_counted(tmp_path: Path, log: Log) -> None:
    elsewhere, place = tmp_path / "now", tmp_path / "later"
    elsewhere.mkdir()
    made = create_async_engine(f"sqlite+aiosqlite:///{elsewhere / 'test.sqlite3'}")
    async with made.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.run_sync(kafka_offsets.metadata.create_all)
    await made.dispose()
    engine = create_async_engine(f"sqlite+aiosqlite:///{place / 'test.sqlite3'}", poolclass=sa.NullPool)
    stage = Stage(engine)
    app = stage.app()
    counting(app, batch=False)
    await stage.send("a")
    async with app.running():
        await log.until("where 2 partitions go on cannot be read, next try in")
        elsewhere.rename(place)
        await stage.until(committed={0: 1})
    assert await stage.counted() == {"a": 1}
    assert stage.letters() == []
    await engine.dispose()


async def test_connection_refused_by_a_server_that_starts_or_stops_is_no_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy has no class of its own for what asyncpg raises then: it is a bare `DBAPIError`."""
    connection = AsyncSession.connection
    refusals = 5

    async def refusing(session: AsyncSession, *arguments: Any, **options: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise DBAPIError(None, None, Exception("the database system is shutting down"))
        return await connection(session, *arguments, **options)

    monkeypatch.setattr(AsyncSession, "connection", refusing)
    app = stage.app()
    counting(app, batch=False)
    await stage.send("a")
    async with app.running():
        await stage.until(committed={0: 1})
    assert refusals == 0
    assert await stage.counted() == {"a": 1}


async def test_lost_conflict_with_another_transaction_is_no_attempt(stage: Stage) -> None:
    calls = 0

    async def handle(message: Message[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls <= 5:
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorname = "SQLITE_BUSY"
            raise sa.exc.OperationalError("UPDATE", None, locked)

    app = stage.app()
    counting(app, batch=False, handle=handle)
    await stage.send("a")
    async with app.running():
        await stage.until(committed={0: 1})
    assert (await stage.counted(), stage.letters(), calls) == ({"a": 1}, [], 6)


# --- what a handler must not do ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["kafka", "kafka_async"])
@pytest.mark.parametrize("is_caught", [False, True], ids=["raised", "caught"])
async def test_producing_by_a_direct_backend_rolls_back_and_stops_whatever_on_error_says(
    stage: Stage, backend: str, is_caught: bool
) -> None:
    app = stage.app()
    results = app.producer(app.topic("results", key=Key.none()), backend=backend)

    async def handle(message: Message[Any]) -> None:
        try:
            await results.produce(b"x")
        except ConfigurationError:
            if not is_caught:
                raise

    counting(app, batch=False, handle=handle, on_error=OnError(attempts=5, then="skip"))
    await stage.send("a")
    async with failing(app) as [error]:
        assert isinstance(error, HandlerError)
        assert isinstance(error.__cause__, ConfigurationError)
    assert "allow_loss=True" in str(error)
    assert (await stage.counted(), await stage.stored()) == ({}, {0: 0, 1: 0})
    assert stage.broker.records("results") == []


async def test_producer_that_allows_loss_sends_after_the_commit(stage: Stage) -> None:
    app = stage.app()
    results = app.producer(app.topic("results", key=Key.none()), allow_loss=True)

    async def handle(message: Message[Any]) -> None:
        assert await results.produce(message.payload) is None

    counting(app, batch=False, handle=handle)
    await stage.send("a")
    async with app.running():
        await stage.until(committed={0: 1})
    assert [record.value for record in stage.broker.records("results")] == [b"a"]
    assert await stage.counted() == {"a": 1}


async def test_message_whose_sending_fails_after_the_commit_is_not_handled_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    app = stage.app()
    results = app.producer(app.topic("results", key=Key.none()), allow_loss=True)
    calls = 0

    async def handle(message: Message[Any]) -> None:
        nonlocal calls
        calls += 1
        await results.produce(b"x" * 2_000_000)

    counting(app, batch=False, handle=handle)
    await stage.send("a")
    with caplog.at_level(logging.ERROR):
        async with app.running():
            await stage.until(committed={0: 1})
    assert (await stage.counted(), stage.letters(), calls) == ({"a": 1}, [], 1)
    [told] = [record for record in caplog.records if "what follows a commit failed" in record.getMessage()]
    assert told.exc_info is not None
    assert isinstance(told.exc_info[1], DeliveryError)


@pytest.mark.parametrize("way", ["commit", "begin"])
async def test_handler_that_commits_by_itself_is_refused_and_stops(stage: Stage, way: str) -> None:
    app = stage.app()
    words = app.topic("words", key=Key.plain(), on_error=QUICK)

    @app.consumer(words, group="g", delivery="effectively_once")
    async def count(message: Message, session: AsyncSession) -> None:
        if way == "commit":
            await add(session, "a")
            await session.commit()
        else:
            await session.rollback()
            async with session.begin():
                await add(session, "a")

    await stage.send("a")
    async with failing(app) as [error]:
        assert isinstance(error.__cause__, ConfigurationError)
    assert "must not commit its session" in str(error)
    assert (await stage.counted(), await stage.stored()) == ({}, {0: 0, 1: 0})


async def test_savepoints_and_rollbacks_are_the_handlers_own_business(stage: Stage) -> None:
    app = stage.app()
    words = app.topic("words", key=Key.plain(), on_error=QUICK)

    @app.consumer(words, group="g", delivery="effectively_once")
    async def count(message: Message, session: AsyncSession) -> None:
        await add(session, "undone")
        await session.rollback()
        async with session.begin_nested():
            await add(session, "kept")
        async with app.transaction() as same:
            await add(same, "kept")

    await stage.send("a")
    async with app.running():
        await stage.until(committed={0: 1})
    assert await stage.counted() == {"kept": 2}


async def opened_session(session: AsyncSession) -> AsyncSession:
    return session


async def test_session_may_come_through_a_provider(stage: Stage) -> None:
    app = stage.app()
    words = app.topic("words", key=Key.plain())

    @app.consumer(words, group="g", delivery="effectively_once")
    async def count(message: Message, session: Annotated[AsyncSession, Depends(opened_session)]) -> None:
        await add(session, "a")

    await stage.send("a")
    async with app.running():
        await stage.until(committed={0: 1})
    assert (await stage.counted(), (await stage.stored())[0]) == ({"a": 1}, 1)


async def test_message_handed_over_by_a_test_is_handled_and_no_offset_is_stored(stage: Stage) -> None:
    app = stage.app()
    results = app.producer(app.topic("results", key=Key.none()))

    async def handle(message: Message[Any]) -> None:
        if message.payload == b"bad":
            await results.produce(b"x")

    count = counting(app, batch=False, handle=handle)
    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_message(count, b"a", key="k")
        with pytest.raises(ConfigurationError, match="allow_loss=True"):
            await deimos.consume_message(count, b"bad", key="k")
    assert (await stage.counted(), await stage.stored()) == ({"a": 1}, {})


async def test_everything_is_idle_after_run_until_idle(stage: Stage) -> None:
    app = stage.app()
    words = app.topic("words", key=Key.plain())
    producer = app.producer(words)

    @app.consumer(words, group="g", delivery="effectively_once")
    async def count(message: Message, session: AsyncSession) -> None:
        await add(session, message.payload.decode())

    async with DeimosHarness.running(app) as deimos:
        await producer.produce(b"a", key="k")
        await deimos.run_until_idle()
        await producer.produce(b"b", key="k")
        await deimos.run_until_idle()
    assert await stage.counted() == {"a": 1, "b": 1}


# --- mistakes that are seen at start -----------------------------------------------------------------------------


async def refused(app: Deimos) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with app.running():
            pass
    return str(caught.value)


async def test_handler_without_session_and_a_name_that_is_too_long_are_reported(stage: Stage) -> None:
    app = stage.app()
    words = app.topic("words", key=Key.plain())

    @app.consumer(words, group="g" * 192, delivery="effectively_once")
    async def handle(message: Message) -> None: ...

    said = await refused(app)
    assert "consumer 'handle': delivery='effectively_once' holds for what is written through the handler's" in said
    assert "has at most 191 characters" in said


async def test_retry_topics_are_refused_as_a_copy_in_one_would_count_again(stage: Stage) -> None:
    app = stage.app()
    counting(app, batch=False, on_error=OnError(retry_topics=(1.0,)))
    assert "it would count twice; give on_error=OnError(...) without retry_topics" in await refused(app)


async def test_effectively_once_without_database_is_reported() -> None:
    app = Deimos(metrics=None, tracing=None)
    words = app.topic("words", key=Key.plain())

    @app.consumer(words, group="g", delivery="effectively_once")
    async def handle(message: Message, session: AsyncSession) -> None: ...

    assert "there is no database" in await refused(app)


@pytest.mark.parametrize("ordering", ["key", "none"])
def test_effectively_once_in_another_order_than_the_partitions_is_refused(stage: Stage, ordering: Any) -> None:
    with pytest.raises(ConfigurationError, match="delivery='effectively_once' keeps one offset a partition"):
        counting(stage.app(), batch=False, ordering=ordering)


async def test_missing_table_is_reported_with_the_command_that_makes_it(stage: Stage) -> None:
    async with stage.engine.begin() as connection:
        await connection.run_sync(kafka_offsets.drop)
    app = stage.app()
    counting(app, batch=False)
    assert "no table 'kafka_offsets'" in (said := await refused(app))
    assert "deimos_async migrate APP" in said


@pytest.mark.parametrize(
    ("url", "options", "problem"),
    [
        ("sqlite+aiosqlite://", {}, "share one connection"),
        ("sqlite+aiosqlite:///{}", {"isolation_level": "AUTOCOMMIT"}, "isolation_level='AUTOCOMMIT'"),
    ],
    ids=["memory", "autocommit"],
)
async def test_engine_without_transactions_is_reported(
    tmp_path: Path, url: str, options: dict[str, Any], problem: str
) -> None:
    engine = create_async_engine(url.format(tmp_path / "test.sqlite3"), **options)
    async with engine.begin() as connection:
        await connection.run_sync(kafka_offsets.metadata.create_all)
    app = Stage(engine, **options).app()
    counting(app, batch=False)
    assert problem in await refused(app)
    await engine.dispose()

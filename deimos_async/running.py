"""One run of an application: what is opened at start, in order, and closed at stop, in reverse.

Order of a start: plan (every mistake at once), database, brokers, topics, producers, schema ids in the background,
consumers. A stop follows the data the other way: consumers drain and commit, buffered messages are flushed, then
clients and the database are closed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deimos_async.assembly import Codecs, Plan, PlannedConsumer, RequiredTopic, make_plan, required_topics
from deimos_async.brokers.protocol import Broker, BrokerProducer, ConsumerOptions, ProducerOptions
from deimos_async.consuming.clock import Clock, LoopClock
from deimos_async.consuming.dead_letters import is_dead_letter_topic
from deimos_async.consuming.dispatch import NextRetry, Work
from deimos_async.consuming.handling import Call, FencedCall, build_call, build_fenced_call
from deimos_async.consuming.keyed import KeyedRetries
from deimos_async.consuming.runner import ConsumerRunner, RunnerOptions, RunnerStatus
from deimos_async.consuming.stored_offsets import StoredOffsets
from deimos_async.consuming.watchdog import WatchedConsumer
from deimos_async.errors import ConfigurationError, DatabaseError, DeimosError
from deimos_async.events import EventBus
from deimos_async.loop_lag import LoopLag
from deimos_async.message import OutboundRecord
from deimos_async.outbox.signal import OutboxSignal
from deimos_async.producing.backends import DeliveryErrorHandler, KafkaAsyncBackend, KafkaBackend, TestBackend
from deimos_async.producing.measuring import SendMeasurements
from deimos_async.producing.outlet import Outlets, ProducerBackend, TopicOutlet
from deimos_async.provisioning import check_topics, create_topics
from deimos_async.router import Declarations
from deimos_async.schemas.codec import TopicCodec, UnknownWriter
from deimos_async.service import Service, Supervisor
from deimos_async.telemetry.protocol import Metrics, Tracing
from deimos_async.topics import UNSET, Backoff, FatalError, TopicOptions

if TYPE_CHECKING:  # start-up time: SQLAlchemy and pydantic are loaded where they are used
    from sqlalchemy.ext.asyncio import AsyncEngine

    from deimos_async.database.engines import Database
    from deimos_async.database.offsets import SqlOffsetStore
    from deimos_async.database.retries import SqlRetryStore
    from deimos_async.outbox.pump import OutboxPump, PumpStatus
    from deimos_async.polling.scheduler import Pollers, PollerStatus
    from deimos_async.producing.outbox_backend import OutboxBackend
    from deimos_async.schemas.registry import SchemaRegistry
    from deimos_async.settings import KafkaSettings, Settings

__all__ = ["PARTS", "Administration", "Ingredients", "Running"]

logger = logging.getLogger("deimos_async")

PARTS = ("producers", "consumers", "outbox", "pollers")
"""Parts of an application that this version has. Producers always run: handlers and dead letters need them. Unless it
is asked for by itself, the outbox is sent only where a producer uses it."""

_STOP_MARGIN = 10.0
"""Seconds that a service has beyond its own deadline before it is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What the application gives to a run."""

    owner: object
    declared: Declarations
    options: Mapping[str, TopicOptions]
    settings: Settings
    engine: AsyncEngine | None
    events: EventBus
    metrics: Metrics
    tracing: Tracing
    fatal_error: FatalError | None
    on_delivery_error: DeliveryErrorHandler | None
    mock_backends: bool
    broker_factory: Callable[[str, Settings], Broker] | None = None
    """Makes the broker of a cluster; None: as the settings say."""
    registry: SchemaRegistry | None = None
    """A registry that every topic uses, whoever opened it closes it; None: as the settings say."""


@dataclass(frozen=True, slots=True)
class Administration:
    """What commands look at and change while the application need not run. Brokers, by cluster, are connected."""

    brokers: Mapping[str, Broker]
    plan: Plan
    settings: Settings


class _SchemaPreparation:
    """Looks up the ids of schemas that are written, before the first message needs them, and asks every registry once.

    A registry that is away is waited for; until then the application is not ready.
    """

    name = "schema preparation"

    def __init__(self, questions: Sequence[Callable[[], Awaitable[None]]]) -> None:
        self._waiting = list(questions)
        self._stop = asyncio.Event()

    @property
    def done(self) -> bool:
        return not self._waiting

    def request_stop(self) -> None:
        self._stop.set()

    async def run(self, started: asyncio.Event) -> None:
        started.set()
        asking = asyncio.ensure_future(self._ask_all())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([asking, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (asking, stopped):
                task.cancel()
            await asyncio.wait([asking, stopped])
        if not asking.cancelled():
            asking.result()

    async def _ask_all(self) -> None:
        delay = 0.1
        while self._waiting:
            try:
                await self._waiting[0]()
                self._waiting.pop(0)
            except DeimosError as error:
                # Whoever produces gets this error too; here it only delays being ready.
                logger.warning("schemas are not prepared yet, next try in %.1f s: %s", delay, error)
                self._waiting.append(self._waiting.pop(0))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 10.0)


class _Decoding:
    """How the bytes of one consumer's topic are read (port `Decoding` of the dispatcher)."""

    unknown: type[Exception] = UnknownWriter

    def __init__(self, codec: TopicCodec, convert: Callable[[Any], Any] | None) -> None:
        self.key = codec.key_decoder
        self.learn = codec.learn
        decode = codec.payload_decoder
        if convert is None:
            self.payload = decode
        else:

            def converted(data: bytes | None) -> Any:
                payload = decode(data)
                return None if payload is None else convert(payload)

            self.payload = converted


class _NamedAsyncBackend:
    """The buffering backend as a service."""

    name = "buffered producer"

    def __init__(self, backend: KafkaAsyncBackend) -> None:
        self._backend = backend
        self.run = backend.run
        self.request_stop = backend.request_stop


class Running:
    """One run. `start` and `stop` are called by the application, once each, in one event loop."""

    def __init__(self, ingredients: Ingredients, parts: Sequence[str]) -> None:
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise ConfigurationError(
                f"part {unknown[0]!r} does not exist in this version; parts are {', '.join(map(repr, PARTS))}"
            )
        self._given = ingredients
        self._parts = frozenset(parts)
        self._stack = AsyncExitStack()
        self.supervisor = Supervisor()
        self.brokers: dict[str, Broker] = {}
        self.database: Database | None = None
        self._offset_store: SqlOffsetStore | None = None
        self._retry_store: SqlRetryStore | None = None
        self.outlets: Outlets | None = None
        self.buffered: KafkaAsyncBackend | None = None
        self.test_backend = TestBackend()
        self.outbox_signal = OutboxSignal()
        """Told of what is committed to the outbox in this process."""
        self.pump: OutboxPump | None = None
        self.pollers: Pollers | None = None
        self.plan: Plan | None = None
        self.codecs: Codecs | None = None
        self.clock: Clock = LoopClock()
        """What messages that failed wait by."""
        self.letter_producers: dict[str, BrokerProducer] = {}
        """By cluster: what sends dead letters, and messages to retry topics."""
        self._runners: list[WatchedConsumer] = []
        self._preparation: _SchemaPreparation | None = None
        self.stopping = False

    # --- start and stop ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything. Raises what keeps the application from starting, with everything closed again."""
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close everything that was opened, also when parts of it fail; any number of times."""
        self.stopping = True
        await self._stack.aclose()

    @asynccontextmanager
    async def brokers_only(self) -> AsyncIterator[tuple[Mapping[str, Broker], list[RequiredTopic]]]:
        """Plan and brokers alone, for administration: topics may be missing."""
        try:
            plan = self.plan = self._make_plan(self._stack)
            await self._start_brokers(plan, self._stack)
            yield self.brokers, required_topics(plan, self._given.settings)
        finally:
            await self.stop()

    @asynccontextmanager
    async def administration(self) -> AsyncIterator[Administration]:
        """As `brokers_only`, with the whole plan."""
        async with self.brokers_only():
            assert self.plan is not None
            yield Administration(self.brokers, self.plan, self._given.settings)

    @asynccontextmanager
    async def database_only(self) -> AsyncIterator[Database]:
        """The database alone, for administration; raises ConfigurationError where there is none that lasts."""
        given = self._given
        if given.settings.embedded and given.engine is None:
            raise ConfigurationError("an embedded application's database lasts as long as its run; unset 'embedded'")
        try:
            self._open_database(self._stack)
            if self.database is None:
                raise ConfigurationError("there is no database; set 'database.url', or give Deimos(engine=...)")
            yield self.database
        finally:
            await self.stop()

    async def _open(self) -> None:
        stack = self._stack
        self.plan = self._make_plan(stack)
        await self._provide_tables()
        if not self._only_stores:
            await self._start_brokers(self.plan, stack)
            await self._provide_topics(self.plan)
        await self._open_producers(stack)
        await self._open_services(stack)

    def _make_plan(self, stack: AsyncExitStack) -> Plan:
        given = self._given
        settings = given.settings
        embedded = given.registry
        if embedded is None and settings.embedded:
            from deimos_async.schemas.memory_registry import MemorySchemaRegistry  # only needed embedded

            embedded = MemorySchemaRegistry()
        self.codecs = Codecs(settings, embedded=embedded, mock=given.mock_backends)
        stack.push_async_callback(self.codecs.close)
        self._open_database(stack)
        return make_plan(
            given.declared,
            given.options,
            settings,
            self.codecs,
            fatal_error=given.fatal_error,
            dialect=None if self.database is None else self.database.engine.dialect,
            events=given.events,
        )

    def _open_database(self, stack: AsyncExitStack) -> None:
        given = self._given
        url = given.settings.database.url
        if given.engine is None and url is None and not given.settings.embedded:
            return
        from deimos_async.database.engines import Database  # start-up time: loads SQLAlchemy

        if given.engine is not None:
            self.database = Database(given.engine)
        elif given.settings.embedded:
            folder = Path(tempfile.mkdtemp(prefix="deimos-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self.database = Database.from_url(f"sqlite+aiosqlite:///{folder / 'embedded.sqlite3'}")
        elif url is not None:
            limit = given.settings.database.idle_transaction_timeout
            self.database = Database.from_url(url.get_secret_value(), idle_transaction_timeout=limit)
        assert self.database is not None
        stack.push_async_callback(self.database.close)

    async def _provide_tables(self) -> None:
        if self.database is None or self._given.engine is not None or not self._given.settings.embedded:
            return
        from deimos_async.database.creation import create_framework_tables  # start-up time: loads SQLAlchemy

        await create_framework_tables(self.database.engine)
        assert self.plan is not None
        for metadata in dict.fromkeys(self._model_tables(self.plan)):
            async with self.database.engine.begin() as connection:
                await connection.run_sync(metadata.create_all)

    def _model_tables(self, plan: Plan) -> Iterator[Any]:
        """MetaData of the tables of every model that consumers and producers name, and of sources."""
        producers = self._given.declared.producers
        yield from (metadata for consumer in plan.consumers for metadata in consumer.metadata)
        yield from (metadata for producer in producers for metadata in producer._metadata())
        # Without that module loaded there are no sources, and SQLAlchemy's ORM need not be loaded.
        sources = sys.modules.get("deimos_async.models.source")
        if sources is not None:
            yield from sources.source_tables(producers)

    @property
    def _producer_backends(self) -> frozenset[str]:
        """Names of those that the producers use, as far as it is declared."""
        default = self._given.settings.producers.backend
        return frozenset({default, *(producer._backend or default for producer in self._given.declared.producers)})

    @property
    def _only_stores(self) -> bool:
        """Whether this process writes messages into the database and does nothing else: then it needs no brokers."""
        return (
            self._parts == {"producers"} and self._producer_backends == {"outbox"} and not self._given.settings.embedded
        )

    async def _start_brokers(self, plan: Plan, stack: AsyncExitStack) -> None:
        used = {topic.options.cluster for topic in plan.topics.values() if topic.is_produced or topic.is_consumed}
        if self._pumps and not used:
            used = {"default"}  # rows of topics that are not declared here are sent, too
        for cluster in sorted(used):
            broker = (self._given.broker_factory or make_broker)(cluster, self._given.settings)
            self.brokers[cluster] = broker
            stack.push_async_callback(broker.stop)
            await broker.start()

    async def _provide_topics(self, plan: Plan) -> None:
        settings = self._given.settings
        required = required_topics(plan, settings)
        making = [
            topic for topic in required if settings.embedded or kafka_settings(settings, topic.cluster).create_topics
        ]
        if making:
            await create_topics(self.brokers, making)
        if self._sends_to_kafka:
            await check_topics(self.brokers, required)

    @property
    def _sends_to_kafka(self) -> bool:
        """With the backend `test` and no consumers nothing reaches the brokers."""
        return self._given.settings.producers.backend != "test" or "consumers" in self._parts

    def _producer_options(self, cluster: str) -> ProducerOptions:
        settings = self._given.settings
        return ProducerOptions(
            client_id=kafka_settings(settings, cluster).client_id,
            delivery_timeout=settings.producers.delivery_timeout,
            compression=None if settings.producers.compression == "none" else settings.producers.compression,
            max_batch_bytes=settings.producers.max_batch_bytes,
            max_request_bytes=settings.producers.max_request_bytes,
        )

    async def _open_producers(self, stack: AsyncExitStack) -> None:
        assert self.plan is not None
        given = self._given
        settings = given.settings
        producers: dict[str, BrokerProducer] = {}
        for cluster, broker in self.brokers.items():
            producer = broker.producer(self._producer_options(cluster))
            stack.push_async_callback(producer.stop)
            await producer.start()
            producers[cluster] = producer
        direct = KafkaBackend(producers)
        measured = SendMeasurements(given.metrics)
        self.buffered = KafkaAsyncBackend(
            direct,
            buffer_messages=settings.producers.buffer_messages,
            events=given.events,
            measured=measured,
            on_delivery_error=given.on_delivery_error,
        )
        backends: dict[str, ProducerBackend] = {"test": self.test_backend}
        if not self._only_stores:
            backends |= {"kafka": direct, "kafka_async": self.buffered}
        if self.database is not None:
            from deimos_async.producing.outbox_backend import OutboxBackend  # start-up time: loads SQLAlchemy

            outbox = OutboxBackend(self.database.engine, self.outbox_signal, given.metrics)
            if "outbox" in self._producer_backends:
                await self._check_outbox(outbox)
            backends["outbox"] = outbox
        self.outlets = Outlets(
            owner=given.owner,
            topics={
                topic.name: TopicOutlet(
                    topic.name, topic.kafka_name, topic.options.cluster, topic.codec, topic.options.payload_log
                )
                for topic in self.plan.topics.values()
                if topic.options.key is not UNSET and (topic.options.cluster in self.brokers or self._only_stores)
            },
            backends=backends,
            default_backend=settings.producers.backend,
            disabled=settings.producers.disabled,
            events=given.events,
            measured=measured,
            tracing=given.tracing,
            truncate_columns=settings.producers.truncate_columns,
            open_session=None if self.database is None else self.database.session,
        )
        self.letter_producers = producers

    async def _check_outbox(self, outbox: OutboxBackend) -> None:
        """Raises ConfigurationError where messages cannot be stored; a database that is away may come back."""
        try:
            await outbox.check()
        except DatabaseError as error:
            if not error.retriable:
                raise
            logger.warning("the outbox's tables could not be looked at: %s", error)

    def _notifiers(self) -> list[Service]:
        """What tells other processes of rows in the outbox, where the database can."""
        if self.database is None:
            return []
        dialect = self.database.engine.dialect
        if (dialect.name, dialect.driver) != ("postgresql", "asyncpg"):
            return []
        from deimos_async.outbox.notifying import OutboxNotifier  # start-up time: loads SQLAlchemy

        return [OutboxNotifier(self.database.engine, self.outbox_signal)]

    async def _open_services(self, stack: AsyncExitStack) -> None:
        assert self.plan is not None
        assert self.buffered is not None
        settings = self._given.settings
        supervisor = self.supervisor
        await supervisor.open()
        stack.push_async_callback(supervisor.close)
        buffered, backend = self.buffered, _NamedAsyncBackend(self.buffered)

        async def flush() -> None:
            await buffered.stop()
            await supervisor.stop(backend, timeout=settings.producers.delivery_timeout + _STOP_MARGIN)

        assert self.codecs is not None
        self._preparation = _SchemaPreparation(
            [
                *(registry.ping for registry in self.codecs.registries()),
                *(topic.codec.prepare for topic in self.plan.topics.values() if topic.is_produced),
            ]
        )
        loop_lag = LoopLag(self._given.metrics, warn_above=settings.consumers.loop_lag_warning)
        notifiers = self._notifiers()
        stack.push_async_callback(supervisor.stop, self._preparation, loop_lag, *notifiers, timeout=_STOP_MARGIN)
        stack.push_async_callback(flush)
        await supervisor.start([loop_lag, backend, self._preparation, *notifiers])
        if self._pumps:
            self.pump = self.build_pump()
            stack.push_async_callback(
                supervisor.stop, self.pump, timeout=settings.outbox.shutdown_timeout + _STOP_MARGIN
            )
            await supervisor.start([self.pump])
        if self._polls:
            self.pollers = self.build_pollers()
            stack.push_async_callback(
                supervisor.stop, self.pollers, timeout=settings.pollers.shutdown_timeout + _STOP_MARGIN
            )
            await supervisor.start([self.pollers])
        if "consumers" not in self._parts:
            return
        if any(consumer.spec.delivery == "effectively_once" for consumer in self.plan.consumers):
            await self._check_offset_store()
        self._runners = [
            WatchedConsumer(partial(self.runner, consumer, stage), interval=settings.consumers.stall_timeout / 4)
            for consumer in self.plan.consumers
            for stage in range(len(consumer.retry_topics) + 1)
        ]
        stack.push_async_callback(
            supervisor.stop, *self._runners, timeout=settings.consumers.shutdown_timeout + _STOP_MARGIN
        )
        await supervisor.start(self._runners)

    @property
    def _pumps(self) -> bool:
        """Whether this process sends what waits in the outbox."""
        asked_for = "outbox" in self._parts and self._parts != frozenset(PARTS)
        if asked_for and self.database is None:
            raise ConfigurationError(
                "the outbox is in a database, and there is none; set 'database.url', or give Deimos(engine=...)"
            )
        return asked_for or ("outbox" in self._parts and self.uses_outbox)

    @property
    def uses_outbox(self) -> bool:
        """Whether a producer of the application stores messages in the outbox."""
        return self.database is not None and "outbox" in self._producer_backends

    def build_pump(self) -> OutboxPump:
        """A service that sends the outbox, not started."""
        from deimos_async.pumps import build_pump  # start-up time: loads SQLAlchemy

        assert self.database is not None
        assert self.plan is not None
        given = self._given
        return build_pump(
            self.database.engine,
            brokers=self.brokers,
            producer=self._producer_options("default"),
            plan=self.plan,
            settings=given.settings,
            signal=self.outbox_signal,
            metrics=given.metrics,
            events=given.events,
            tracing=given.tracing,
        )

    @property
    def _polls(self) -> bool:
        """Whether this process runs pollers."""
        assert self.plan is not None
        if "pollers" not in self._parts:
            return False
        if not self.plan.pollers:
            if self._parts <= {"pollers", "producers"}:
                raise ConfigurationError("the application has no pollers; declare them with app.poller(...)")
            return False
        if self._given.settings.producers.disabled:
            logger.warning("pollers do not run, as producers are stopped by setting 'producers.disabled'")
            return False
        return True

    def build_pollers(self, ahead: Callable[[], float] = lambda: 0.0) -> Pollers:
        """A service that runs the pollers, not started.

        Args:
            ahead: Seconds by which the run's clock is ahead of the database's, in tests.
        """
        from deimos_async.pollers import build_pollers  # start-up time: loads SQLAlchemy

        assert self.database is not None  # it was checked
        assert self.plan is not None
        given = self._given
        return build_pollers(
            self.database.engine,
            plan=self.plan,
            settings=given.settings,
            metrics=given.metrics,
            events=given.events,
            clock=self.clock,
            ahead=ahead,
        )

    async def backfill(self, name: str, *, chunk_rows: int, report: Callable[[int, int], None]) -> int:
        """Take part in sending the whole table of a poller; returns how many rows this process has sent.

        Args:
            chunk_rows: Rows of a chunk, which one process sends.
            report: Told how many chunks are done, and how many there are.

        Raises:
            ConfigurationError: There is no poller of that name, or it polls by state, or producers are stopped.
        """
        from deimos_async.pollers import build_backfill  # start-up time: loads SQLAlchemy

        assert self.plan is not None
        given = self._given
        if given.settings.producers.disabled:
            raise ConfigurationError("producers are stopped by setting 'producers.disabled'")
        if self.database is None:
            raise ConfigurationError("there is no database; set 'database.url', or give Deimos(engine=...)")
        backfill = build_backfill(
            self.database.engine,
            name,
            plan=self.plan,
            settings=given.settings,
            metrics=given.metrics,
            events=given.events,
            chunk_rows=chunk_rows,
            report=report,
        )
        await backfill.run()
        return backfill.rows

    async def _check_offset_store(self) -> None:
        """Raises ConfigurationError where offsets cannot be kept; a database that is away is waited for later."""
        assert self.plan is not None
        try:
            await self._offsets_kept().check()
            if any(consumer.policy.then == "retry_keyed" for consumer in self.plan.consumers):
                await self._retries_kept().check()
        except DatabaseError as error:
            if not error.retriable:
                raise
            logger.warning("consumers with delivery='effectively_once' wait for their database: %s", error)

    def _offsets_kept(self) -> SqlOffsetStore:
        if self._offset_store is None:
            from deimos_async.database.offsets import SqlOffsetStore  # start-up time: loads SQLAlchemy

            assert self.database is not None  # such consumers take sessions, which was checked
            self._offset_store = SqlOffsetStore(self.database.engine)
        return self._offset_store

    def _retries_kept(self) -> SqlRetryStore:
        if self._retry_store is None:
            from deimos_async.database.retries import SqlRetryStore  # start-up time: loads SQLAlchemy

            offsets = self._offsets_kept()
            self._retry_store = SqlRetryStore(offsets.engine, offsets)
        return self._retry_store

    def _call(self, consumer: PlannedConsumer, offsets: StoredOffsets | None) -> Call:
        owner, database = self._given.owner, self.database
        if consumer.spec.delivery == "effectively_once":
            return self._fenced_call(consumer, offsets)
        opened = None if database is None else database.session
        return build_call(consumer.handler, open_session=opened, owner=owner)

    def _fenced_call(self, consumer: PlannedConsumer, offsets: StoredOffsets | None) -> FencedCall:
        owner, database = self._given.owner, self.database
        from deimos_async.database.fencing import FencedSession  # start-up time: loads SQLAlchemy

        assert database is not None
        return build_fenced_call(
            consumer.handler, open_session=partial(database.session, FencedSession), owner=owner, offsets=offsets
        )

    def _keyed(self, consumer: PlannedConsumer, offsets: StoredOffsets | None) -> KeyedRetries | None:
        if offsets is None or consumer.policy.then != "retry_keyed":
            return None
        settings = self._given.settings.consumers.keyed_retries
        return KeyedRetries(
            self._retries_kept(),
            offsets,
            self._fenced_call(consumer, offsets),
            attempts=settings.attempts,
            backoff=Backoff(settings.backoff_initial, settings.backoff_maximum),
            per_key=settings.max_per_key,
            per_group=settings.max_per_group,
        )

    def work(self, consumer: PlannedConsumer, stage: int = 0, *, offsets: StoredOffsets | None = None) -> Work:
        """What a consumer does with its records, in this run.

        Args:
            stage: 0 for its topic, n for its n-th retry topic, where each message has one attempt.
            offsets: Those of a member, with `delivery="effectively_once"`; None for messages that are in no partition.
        """
        given = self._given
        settings, spec, topic = given.settings, consumer.spec, consumer.topic
        producer = self.letter_producers[topic.options.cluster]
        reads_letters = is_dead_letter_topic(topic.kafka_name, settings.consumers.dead_letter_topic)

        async def publish(record: OutboundRecord) -> None:
            if reads_letters and record.topic == consumer.dead_letter_topic:
                raise ConfigurationError(
                    f"consumer {spec.name!r} reads dead letters, and there are none of these; "
                    "raise Skip instead of DeadLetter, or another error with on_error=OnError(then='stop')"
                )
            await producer.send([record])

        def failed(error: BaseException, messages: Sequence[Any]) -> None:
            try:
                given.events.emit(
                    "deimos.error", {"type": "consumer", "consumer": spec.name, "messages": messages}, error=error
                )
            except Exception:
                # A subscriber's own error must not hide why the consumer stops.
                logger.exception("a subscriber of deimos.error failed")

        delays = consumer.policy.retry_topics
        return Work(
            name=f"{spec.name} retry {stage}" if stage else spec.name,
            group=consumer.kafka_group,
            topic=consumer.retry_topics[stage - 1] if stage else topic.kafka_name,
            batch=spec.batch,
            max_batch=spec.max_batch,
            max_wait=spec.max_wait,
            concurrency=spec.concurrency,
            ordering=spec.ordering,
            delivery=spec.delivery,
            max_buffered=settings.consumers.max_buffered,
            max_buffered_bytes=settings.consumers.max_buffered_bytes,
            call=self._call(consumer, offsets),
            decoding=_Decoding(topic.codec, consumer.convert),
            policy=dataclasses.replace(consumer.policy, attempts=1) if stage else consumer.policy,
            retry=NextRetry(consumer.retry_topics[stage], delays[stage]) if stage < len(delays) else None,
            is_retry=stage > 0,
            reraise=consumer.reraise,
            fatal=consumer.fatal,
            dead_letter_topic=consumer.dead_letter_topic,
            spring_headers=settings.consumers.spring_headers,
            publish=publish,
            metrics=given.metrics,
            tracing=given.tracing,
            payload_log=topic.options.payload_log,
            on_failure=failed,
            clock=self.clock,
            offsets=offsets,
            keyed=self._keyed(consumer, offsets),
        )

    def runner(self, consumer: PlannedConsumer, stage: int = 0) -> ConsumerRunner:
        """A service that runs a consumer, not started."""
        settings, spec, topic = self._given.settings, consumer.spec, consumer.topic
        consumers = settings.consumers
        broker = self.brokers[topic.options.cluster]
        offsets = None
        if spec.delivery == "effectively_once":
            offsets = StoredOffsets(self._offsets_kept(), group=consumer.kafka_group, on_lost=consumers.on_lost_offset)
        work = self.work(consumer, stage, offsets=offsets)
        start_from = "earliest" if stage else spec.start_from
        options = ConsumerOptions(
            group=consumer.kafka_group,
            topics=(work.topic,),
            start_from=start_from.astimezone(UTC) if isinstance(start_from, datetime) else start_from,
            session_timeout=consumers.session_timeout,
            heartbeat_interval=consumers.heartbeat_interval,
            rebalance_timeout=consumers.rebalance_timeout,
            max_poll_interval=consumers.max_poll_interval,
            instance_id=_instance_id(consumers.instance_id, spec.name, work.topic),
            client_id=kafka_settings(settings, topic.options.cluster).client_id,
            fetch_max_bytes=consumers.fetch_max_bytes,
            max_partition_fetch_bytes=consumers.max_partition_fetch_bytes,
        )
        return ConsumerRunner(
            broker,
            options,
            work,
            RunnerOptions(
                max_records=consumers.max_records,
                commit_interval=consumers.commit_interval,
                shutdown_timeout=consumers.shutdown_timeout,
                stall_timeout=consumers.stall_timeout,
            ),
        )

    # --- telling -----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Schemas prepared, every consumer joined, nothing has failed."""
        return (
            self._preparation is not None
            and self._preparation.done
            and all(runner.started for runner in self._runners)
            and (self.pump is None or self.pump.status().started)
            and not self.supervisor.failures
        )

    def consumers(self) -> list[RunnerStatus]:
        """What each consumer is doing now."""
        return [runner.status() for runner in self._runners]

    def poller_statuses(self) -> Sequence[PollerStatus]:
        """What each poller is doing now in this process; empty: none runs here."""
        return () if self.pollers is None else self.pollers.status()

    def outbox(self) -> PumpStatus | None:
        """What the outbox's pump is doing now; None: it does not run in this process."""
        return None if self.pump is None else self.pump.status()


def _instance_id(configured: str | None, consumer: str, topic: str) -> str | None:
    """A member's stable name: of the process (and worker in it), consumer and topic, as no two may share one."""
    if configured is None:
        return None
    return "-".join(part for part in (configured, os.environ.get("DEIMOS_WORKER"), consumer, topic) if part)


def kafka_settings(settings: Settings, cluster: str) -> KafkaSettings:
    """Settings of a cluster by its name."""
    return settings.kafka if cluster == "default" else settings.clusters[cluster]


def make_broker(cluster: str, settings: Settings) -> Broker:
    """The broker of a cluster, not started: in memory where the application is embedded, else Kafka."""
    kafka = kafka_settings(settings, cluster)
    if settings.embedded:
        from deimos_async.brokers.memory import MemoryBroker  # only needed embedded

        return MemoryBroker(cluster, partitions=kafka.partitions)
    from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions  # start-up time: loads aiokafka

    return KafkaBroker(cluster, KafkaOptions.from_settings(kafka))

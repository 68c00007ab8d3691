"""`DeimosHarness`: the application under test, running, and what a test does with it and asks of it."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

from deimos_async.app import Deimos
from deimos_async.assembly import Codecs, Plan, PlannedConsumer, with_codecs
from deimos_async.brokers.memory import MemoryRecord
from deimos_async.consuming.dead_letters import dead_letter_topic, retry_topic
from deimos_async.consuming.dispatch import Work
from deimos_async.database.engines import Database
from deimos_async.errors import ConfigurationError, LifecycleError, SchemaError
from deimos_async.message import HeadersInput, Message, OutboundRecord, encode_headers
from deimos_async.producing import pipeline
from deimos_async.producing.outbox_backend import OutboxBackend
from deimos_async.producing.outlet import Outlets
from deimos_async.running import Running
from deimos_async.schemas.codec import TopicCodec
from deimos_async.schemas.keys import plain_key
from deimos_async.schemas.memory_registry import MemorySchemaRegistry
from deimos_async.settings import flatten
from deimos_async.testing.clock import MovableClock
from deimos_async.testing.expectation import Expectation, explain_missing, explain_unwanted
from deimos_async.testing.idle import run_consumers_until_idle
from deimos_async.testing.sent import LetterRecorder, OutboxRecorder, Recorder, SentMessage
from deimos_async.testing.surroundings import Surroundings
from deimos_async.topics import UNSET, Topic

__all__ = ["DeimosHarness"]

logger = logging.getLogger("deimos_async.testing")


class DeimosHarness:
    """What the fixture `deimos` gives: the application under test, running, and helpers around it.

    Nothing touches a network: brokers and registry live in this process and begin empty in each test. With
    `--deimos-kafka` and `--deimos-registry` they are real, and names of topics, groups and subjects begin with a prefix
    that is this test's alone; assertions leave it out, a handler's `message.topic` has it. Producers work as ever, each
    by its own backend, and what they send is kept for `sent_messages`. Consumers run only in
    `consume_message`, `consume_batch` and `run_until_idle`. The database is `engine=` or `database.url`, else a fresh
    SQLite file. Class consumers are made anew for each test. The harness is what runs the application: a web
    application in front of it is called without its lifespan, through httpx's `ASGITransport` for one.

    `consumers.reraise_errors` is true unless the test sets it (marker or fixture `deimos_settings`); what a topic or a
    consumer says itself holds as ever.
    """

    def __init__(self, app: Deimos, running: Running, prefix: str = "") -> None:
        """Made by `DeimosHarness.running`."""
        self.app = app
        """The application."""
        self._running = running
        self._prefix = prefix
        self._clock = running.clock = MovableClock()
        self._sent: list[SentMessage] = []
        self._mocking = 0
        self._real: tuple[Plan, Codecs, Outlets] | None = None
        self._is_consuming = False
        outlets = self._outlets
        outbox = outlets.backend("outbox")
        assert isinstance(outbox, OutboxBackend)  # a test always has a database
        running.outlets = dataclasses.replace(
            outlets,
            backends={
                "kafka": Recorder("kafka", outlets.backend("kafka"), self._sent),
                "kafka_async": Recorder("kafka_async", outlets.backend("kafka_async"), self._sent),
                # `test` tells nothing, as ever; on the broker its messages are there for `run_until_idle`
                "test": Recorder("test", outlets.backend("kafka"), self._sent, tells=False),
                "outbox": outbox.observed(OutboxRecorder(self._sent)),
            },
        )
        running.letter_producers = {
            cluster: LetterRecorder(producer, self._sent, self._letter_topic, prefix)
            for cluster, producer in running.letter_producers.items()
        }

    @classmethod
    @asynccontextmanager
    async def running(
        cls, app: Deimos, *settings: Mapping[str, Any], kafka: str | None = None, registry: str | None = None
    ) -> AsyncIterator[DeimosHarness]:
        """Run an application for a test within the block, whatever runs the tests; the fixture does this.

        Args:
            app: It must not run already.
            settings: By dotted names or nested, later ones above earlier ones.
            kafka: `host:port` of a real broker, which every cluster of the application then is. Topics are made as the
                application needs them, and deleted afterwards with the groups. None: in memory.
            registry: URL of a real registry, which every topic then uses. Subjects whose names begin with the topic's
                are deleted afterwards. None: in memory.

        Raises:
            ConfigurationError: Every mistake that can be seen before the first message.
            BrokerUnavailableError: `kafka` does not answer before `kafka.connect_timeout`.
            LifecycleError: The application runs already.
        """
        if not isinstance(app, Deimos):
            raise ConfigurationError(f"the application under test is a Deimos, not {type(app).__name__}")
        overrides: dict[str, Any] = {"consumers.reraise_errors": True}
        for layer in settings:
            overrides.update({".".join(path): value for path, value in flatten(layer)})
        if "embedded" in overrides:
            raise ConfigurationError("setting 'embedded' cannot be set by a test: tests always run embedded")
        with app.with_settings({**overrides, "embedded": True}), _engine_of_settings(app):
            async with Surroundings(kafka, registry).around(app) as prefix, app.running(only=("producers",)):
                yield cls(app, app._started("a test"), prefix)

    # --- what the application has sent -------------------------------------------------------------------------

    def sent_messages(self, topic: Topic | str | None = None) -> list[SentMessage]:
        """Messages that the application has sent in this test, in order; of one topic, or all.

        Those that `consume_message` and `consume_batch` hand to a consumer are not among them. Dead letters, and
        messages that wait in retry topics, are: these topics need not be declared, and their messages are decoded by
        the codec of the topic that they belong to, as far as they can be. Both come about in `run_until_idle` only.

        Raises:
            ConfigurationError: The topic is not declared, and no consumer sends dead letters or retries to it.
        """
        if topic is None:
            return list(self._sent)
        name = self._sent_topic(topic)
        return [message for message in self._sent if message.topic == name]

    def clear_sent_messages(self) -> None:
        """Forget what was sent so far. On the broker it stays, for `run_until_idle`."""
        self._sent.clear()

    def assert_sent(
        self,
        topic: Topic | str,
        payload: Any,
        *,
        key: Any = UNSET,
        partition_key: str | bytes | None = UNSET,
        headers: HeadersInput | None = UNSET,
    ) -> SentMessage:
        """Fail unless a message like this was sent to the topic.

        Args:
            topic: Handle or declared name, or the name of a dead-letter or retry topic.
            payload: The whole payload, field by field; None for a tombstone. Dataclasses and pydantic models count as
                dicts, a `payload_key` that is None does not count, and matchers (`unittest.mock.ANY`,
                `pytest.approx(...)`) may stand for any value.
            key, partition_key: Not checked if not given; None: there is none. Without a partition key of its own, a
                message has its key, as text.
            headers: All of them, as a mapping or pairs, text or bytes. Not checked if not given. Headers of tracing
                and `deimos-dlq-*`, `deimos-retry-*` count only where they are named.

        Returns:
            The first such message.

        Raises:
            AssertionError: There is none. Shows the closest message, what is different, and what else was sent.
            ConfigurationError: The topic is not declared.
        """
        __tracebackhide__ = True
        return self._assert_sent(topic, Expectation(payload, key, partition_key, headers))

    def assert_sent_including(
        self,
        topic: Topic | str,
        payload: Any,
        *,
        key: Any = UNSET,
        partition_key: str | bytes | None = UNSET,
        headers: HeadersInput | None = UNSET,
    ) -> SentMessage:
        """As `assert_sent`, but the payload may have more fields than those given, in nested dicts too."""
        __tracebackhide__ = True
        return self._assert_sent(topic, Expectation(payload, key, partition_key, headers, partial=True))

    def assert_not_sent(
        self,
        topic: Topic | str,
        payload: Any = UNSET,
        *,
        key: Any = UNSET,
        partition_key: str | bytes | None = UNSET,
        headers: HeadersInput | None = UNSET,
    ) -> None:
        """Fail if a message like this was sent to the topic; with the topic alone, if any was. See `assert_sent`."""
        __tracebackhide__ = True
        name, messages = self._sent_topic(topic), self.sent_messages(topic)
        expectation = Expectation(payload, key, partition_key, headers)
        if any(not expectation.differences(message) for message in messages):
            raise AssertionError(explain_unwanted(expectation, name, messages, self._sent_elsewhere(name)))

    def _assert_sent(self, topic: Topic | str, expectation: Expectation) -> SentMessage:
        __tracebackhide__ = True
        name, messages = self._sent_topic(topic), self.sent_messages(topic)
        for message in messages:
            if not expectation.differences(message):
                return message
        raise AssertionError(explain_missing(expectation, name, messages, self._sent_elsewhere(name)))

    def _sent_elsewhere(self, topic: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for message in self._sent:
            if message.topic != topic:
                counts[message.topic] = counts.get(message.topic, 0) + 1
        return counts

    # --- consuming ---------------------------------------------------------------------------------------------

    async def consume_message(
        self,
        consumer: Any,
        payload: Any,
        *,
        key: Any = None,
        partition_key: str | bytes | None = None,
        headers: HeadersInput | None = None,
        topic: Topic | str | None = None,
    ) -> None:
        """Hand one message to a consumer: one attempt, by the way that messages take in production.

        The payload is coerced, checked and encoded as a producer of the topic would, then decoded, made into the type
        that the handler asks for, and handled with sessions and providers.

        Args:
            consumer: The decorated function or class; or a topic, or its name, that has one consumer.
            payload: None for a tombstone.
            key: Else `payload_key` in the payload, else the field of `Key.field`.
            topic: For a consumer that is decorated once for each of several topics.

        Raises:
            EncodeError, DecodeError: The payload or key does not fit the topic, or the handler's type.
            ConfigurationError: No such consumer, one that takes batches, or one of several topics without `topic=`.
            Exception: What the handler raised, if `reraise_errors` holds for it, if a `fatal_error` callable selects
                it, or if it is a SchemaError; else it is logged. `Retry`, `DeadLetter` and `Skip` are raised like any
                error: what follows them is seen with `run_until_idle`.
        """
        planned = self._planned(consumer, topic, batch=False)
        message = {"payload": payload, "key": key, "partition_key": partition_key, "headers": headers}
        await self._attempt(planned, [message])

    async def consume_batch(
        self,
        consumer: Any,
        payloads: Sequence[Any],
        *,
        keys: Sequence[Any] = (),
        partition_keys: Sequence[str | bytes | None] = (),
        headers: Sequence[HeadersInput | None] = (),
        topic: Topic | str | None = None,
    ) -> None:
        """Hand one batch to a consumer: one call, whatever its `max_batch`. See `consume_message`.

        Args:
            payloads: At least one.
            keys, partition_keys, headers: `keys[i]` belongs to `payloads[i]`; None, and keys that are missing at the
                end, are derived as a producer derives them.

        Raises:
            ValueError: No payloads, or fewer than keys, partition keys or headers.
        """
        planned = self._planned(consumer, topic, batch=True)
        if not payloads:
            raise ValueError("consume_batch takes at least one payload; a consumer is never called with an empty batch")
        messages: list[dict[str, Any]] = [{"payload": payload} for payload in payloads]
        for name, field, values in (
            ("keys", "key", keys),
            ("partition_keys", "partition_key", partition_keys),
            ("headers", "headers", headers),
        ):
            if isinstance(values, (str, bytes, Mapping)) or len(values) > len(payloads):
                raise ValueError(f"{name}= takes a list, at most one for each of the {len(payloads)} payloads")
            for message, value in zip(messages, values, strict=False):
                message[field] = value
        await self._attempt(planned, messages)

    async def _attempt(self, consumer: PlannedConsumer, given: Sequence[Mapping[str, Any]]) -> None:
        now = time.time_ns() // 1_000_000
        records = [await self._encoded(consumer, message) for message in given]
        work = self._running.work(consumer)
        messages = [await _decoded(work, MemoryRecord(record, 0, offset, now)) for offset, record in enumerate(records)]
        try:
            await work.call(messages if work.batch else messages[0])
        except SchemaError:
            raise
        except Exception as error:
            # The policy of the plugin: what would stop the consumer reaches the test.
            if work.reraise or any(selects(error, list(messages)) for selects in work.fatal):
                raise
            logger.warning("consumer %r raised; reraise_errors is off, so the test goes on", work.name, exc_info=error)

    async def _encoded(self, consumer: PlannedConsumer, message: Mapping[str, Any]) -> OutboundRecord:
        topic, now = consumer.topic, datetime.now(UTC)
        codec = topic.codec
        if topic.options.key is UNSET:
            # A topic that is only read need not say what its keys are; its consumers get their bytes.
            payload, key = message["payload"], message.get("key")
            is_tombstone = payload is None or (isinstance(payload, Mapping) and not payload)
            return OutboundRecord(
                topic.kafka_name,
                key=None if key is None else plain_key(key),
                value=None if is_tombstone else await codec.encode_payload(codec.complete(payload, now)),
                headers=encode_headers(message.get("headers")),
            )
        if not codec.prepared:
            await codec.prepare()
        return pipeline.prepare(
            self._outlets.topic(topic.name),
            "test",
            message["payload"],
            key=message.get("key"),
            partition_key=message.get("partition_key"),
            headers=message.get("headers"),
            timestamp=None,
            trace=(),
            now=now,
        ).record

    def _planned(self, consumer: Any, topic: Topic | str | None, *, batch: bool) -> PlannedConsumer:
        """The consumer that a test means. Raises ConfigurationError where there is none, or more than one."""
        everyone = self._plan.consumers
        by_topic = isinstance(consumer, (str, Topic))
        if by_topic:
            wanted = self._topic_name(consumer)
            found = [each for each in everyone if each.topic.name == wanted]
            described = f"topic {wanted!r}"
            if len({id(each.spec.target) for each in found}) > 1:
                names = ", ".join(repr(each.spec.name) for each in found)
                raise ConfigurationError(f"{described} has the consumers {names}; give the one to test")
        else:
            found = [each for each in everyone if each.spec.target is consumer]
            described = f"consumer {getattr(consumer, '__name__', consumer)!r}"
        if not found:
            known = ", ".join(sorted({repr(each.spec.name) for each in everyone})) or "none"
            if by_topic:
                raise ConfigurationError(f"{described} has no consumer; consumers of the application are {known}")
            raise ConfigurationError(
                f"{described} is not registered with @app.consumer; give what was decorated, of {known}"
            )
        if topic is not None:
            wanted = self._topic_name(topic)
            names = ", ".join(sorted({repr(each.topic.name) for each in found}))
            found = [each for each in found if each.topic.name == wanted]
            if not found:
                raise ConfigurationError(f"{described} does not read topic {wanted!r}; it reads {names}")
        topics = sorted({each.topic.name for each in found})
        if len(topics) > 1:
            raise ConfigurationError(f"{described} reads {', '.join(map(repr, topics))}; say which with topic=")
        for each in found:
            if each.spec.batch is batch:
                return each
        if batch:
            raise ConfigurationError(f"{described} takes single messages; use consume_message")
        raise ConfigurationError(f"{described} takes batches (batch=True); use consume_batch")

    async def run_until_idle(self, timeout: float = 30.0, *, advance: bool = True) -> None:
        """Run consumers, those of retry topics too, outbox and pollers until nothing is left to do, and stop them.

        Everything that was sent in this test so far is there to be handled, and so is what handlers send meanwhile.
        Errors take the way of `on_error` as in production; as `reraise_errors` is true unless the test sets it, the
        first one otherwise stops its consumer and is raised here. Batches do not wait for more messages (`max_wait`),
        and a group that starts at `"latest"` counts as having joined before the test. Call it as often as you like: it
        goes on where it was.

        Nobody waits for the next attempt of a message, in place or in `kafka_retries`, or until it is due in a retry
        topic, or for a poller's `delay_time` and next run while there are rows for it: when nothing else is left to do,
        time is moved on to that moment, as by `advance`. A handler's own sleep is a real one.

        Args:
            timeout: Real seconds.
            advance: False: time is left alone, and it ends when everything that is left waits for a later time. What
                waits in a retry topic or in `kafka_retries` goes on in the next call after `deimos.advance(...)`;
                attempts in place begin anew.

        Raises:
            Exception: What a handler raised, where it stops its consumer; a note says at which message. What was
                handled is committed, the message that failed is not.
            TimeoutError: Something is left to do; says what.
            LifecycleError: It is called while it runs.
        """
        if self._is_consuming:
            raise LifecycleError("run_until_idle is called while it runs")
        self._is_consuming = True
        try:
            await run_consumers_until_idle(
                self._running,
                self._clock if advance else None,
                flush=self.app.flush,
                timeout=timeout,
                prefix=self._prefix,
                time_ahead=lambda: self._clock.ahead,
            )
        finally:
            self._clock.clear()
            self._is_consuming = False

    def advance(self, seconds: float) -> None:
        """Move time on for messages that wait, until their next attempt or until they are due in a retry topic, and for
        pollers, until their next run.

        Nothing else looks at this time: not the clock of the system, timestamps, sleeps, or time-outs.

        Raises:
            ValueError: The span is negative or not finite.
        """
        self._clock.advance(seconds)

    # --- schema backends ---------------------------------------------------------------------------------------

    @contextmanager
    def mock_backends(self) -> Iterator[None]:
        """Replace each schema backend by the one that stands in for it (`avro_schema_registry` by `avro_validation`).

        Payloads are checked as before, but what is sent is readable JSON. Blocks may be nested; the backends come back
        at the end of the outermost one, also after an exception. What was sent inside of a block is handled inside of
        it, too: run until idle before it ends.

        Raises:
            ConfigurationError: A topic cannot be used with the backend that stands in.
        """
        running = self._running
        if not self._mocking:
            codecs = Codecs(self.app.settings, embedded=MemorySchemaRegistry(), mock=True)
            plan = with_codecs(self._plan, codecs)
            assert running.codecs is not None
            self._real = self._plan, running.codecs, self._outlets
            running.plan, running.codecs = plan, codecs
            running.outlets = dataclasses.replace(
                self._outlets,
                topics={
                    name: dataclasses.replace(outlet, codec=plan.topics[name].codec)
                    for name, outlet in self._outlets.topics.items()
                },
            )
        self._mocking += 1
        try:
            yield
        finally:
            self._mocking -= 1
            if not self._mocking:
                assert self._real is not None
                running.plan, running.codecs, running.outlets = self._real
                self._real = None

    # --- parts of the run --------------------------------------------------------------------------------------

    @property
    def _plan(self) -> Plan:
        assert self._running.plan is not None
        return self._running.plan

    @property
    def _outlets(self) -> Outlets:
        assert self._running.outlets is not None
        return self._running.outlets

    def _letter_topics(self) -> Iterator[tuple[str, str, TopicCodec]]:
        """Dead-letter and retry topics of consumers: name in Kafka, name to show, and the codec of the source."""
        settings = self.app.settings.consumers
        for consumer in self._plan.consumers:
            topic = consumer.topic
            yield consumer.dead_letter_topic, dead_letter_topic(topic.name, settings.dead_letter_topic), topic.codec
            for number, name in enumerate(consumer.retry_topics, 1):
                yield name, retry_topic(topic.name, settings.retry_topic, number), topic.codec

    def _letter_topic(self, kafka_name: str) -> tuple[str, TopicCodec]:
        """Name to show and codec of a topic to which consumers send what failed, whether or not it is declared."""
        return next((shown, codec) for name, shown, codec in self._letter_topics() if name == kafka_name)

    def _sent_topic(self, topic: Topic | str) -> str:
        """Name of a topic to which something can be sent. Raises ConfigurationError for others."""
        return self._topic_name(topic, *(shown for _, shown, _ in self._letter_topics()))

    def _topic_name(self, topic: Topic | str, *others: str) -> str:
        """Raises ConfigurationError for a topic that is neither declared nor one of the others."""
        declared = dict.fromkeys((*self._plan.topics, *others))
        name = topic.name if isinstance(topic, Topic) else topic
        if name not in declared:
            close = difflib.get_close_matches(str(name), declared, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"declared are {', '.join(map(repr, sorted(declared)))}"
            raise ConfigurationError(f"topic {name!r} is not declared; {hint}")
        return name


@contextmanager
def _engine_of_settings(app: Deimos) -> Iterator[None]:
    """Use the database of `database.url` within the block, where an embedded application takes a fresh SQLite file.

    `run --embedded` must not touch the database of a configuration that lies about; a test says what it wants.
    """
    url = app.settings.database.url
    before = app._engine
    if before is None and url is not None:
        app._engine = Database.from_url(url.get_secret_value()).engine
    try:
        yield
    finally:
        app._engine = before


async def _decoded(work: Work, record: MemoryRecord) -> Message[Any]:
    decoding = work.decoding
    while True:
        try:
            return Message(record, decoding.key(record.key), decoding.payload(record.value))
        except decoding.unknown as unknown:
            await decoding.learn(unknown)

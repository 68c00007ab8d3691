"""`Router`: declarations that need no application until they are included in one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar, overload

from typing_extensions import Unpack

from deimos_async.errors import ConfigurationError
from deimos_async.producing.outlet import BACKENDS
from deimos_async.producing.producer import Producer
from deimos_async.specs import (
    ConsumerSpec,
    Delivering,
    Ordering,
    PollerSpec,
    Polling,
    check_consumer,
    check_poller,
)
from deimos_async.topics import (
    TOPIC_OPTION_NAMES,
    FatalError,
    OnError,
    Topic,
    TopicOptionArguments,
    TopicOptions,
    check_options,
)

__all__ = ["Declarations", "Declaring", "Router"]

T = TypeVar("T")
Prod = TypeVar("Prod", bound=Producer)


@dataclass(slots=True)
class Declarations:
    """What was declared so far."""

    topics: dict[str, Topic] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    consumers: list[ConsumerSpec] = field(default_factory=list)
    pollers: list[PollerSpec] = field(default_factory=list)


def topic_options(where: str, options: dict[str, Any]) -> TopicOptions:
    """Keyword arguments as options. Raises ConfigurationError for a name that is no option."""
    problems = []
    for name in options:
        if name not in TOPIC_OPTION_NAMES:
            close = difflib.get_close_matches(name, TOPIC_OPTION_NAMES, 1)
            hint = (
                f"; did you mean {close[0]!r}?" if close else f"; options are {', '.join(sorted(TOPIC_OPTION_NAMES))}"
            )
            problems.append(f"{where}: there is no option {name!r}{hint}")
    if problems:
        raise ConfigurationError(*problems)
    given = TopicOptions(**options)
    if wrong := check_options(given):
        raise ConfigurationError(*(f"{where}: {problem}" for problem in wrong))
    return given


class Declaring:
    """Topics, producers, consumers and pollers are declared here. `Deimos` and `Router` have it in common."""

    def __init__(self) -> None:
        self._declared = Declarations()

    def topic(self, name: str, **options: Unpack[TopicOptionArguments]) -> Topic:
        """Declare a topic.

        Args:
            name: Without `producers.topic_prefix`.
            options: See `TopicOptions`; what is not given comes from `app.defaults`, then from the settings.

        Raises:
            ConfigurationError: No valid topic name, an unknown option, or declared before with other options.
        """
        if not isinstance(name, str) or not _is_topic_name(name):
            raise ConfigurationError(
                f"topic {name!r}: a name has 1 to 249 letters, digits, '.', '_' or '-', and is neither '.' nor '..'"
            )
        topic = Topic(name, topic_options(f"topic {name!r}", dict(options)))
        before = self._declared.topics.get(name)
        if before is not None:
            if before.options != topic.options:
                raise ConfigurationError(f"topic {name!r} is declared twice with different options; declare it once")
            return before
        self._declared.topics[name] = topic
        self._topic_declared(topic)
        return topic

    @overload
    def producer(self, topic: Topic, *, backend: str | None = None, allow_loss: bool = False) -> Producer: ...
    @overload
    def producer(
        self, topic: Topic, cls: type[Prod], *, backend: str | None = None, allow_loss: bool = False
    ) -> Prod: ...
    def producer(
        self,
        topic: Topic,
        cls: type[Producer] = Producer,
        *,
        backend: str | None = None,
        allow_loss: bool = False,
    ) -> Producer:
        """Make a producer of a declared topic.

        Args:
            topic: From `topic(...)`.
            cls: `Producer` or a subclass; it is made without arguments.
            backend: `"kafka"`, `"kafka_async"`, `"outbox"` or `"test"` instead of `producers.backend`.
            allow_loss: Whether handlers with `delivery="effectively_once"` may use it though its backend sends after
                the commit: a crash in between loses the message.
        """
        if not isinstance(topic, Topic):
            raise ConfigurationError(f"producer(...) takes what topic(...) returned, not {topic!r}")
        if not (isinstance(cls, type) and issubclass(cls, Producer)):
            raise ConfigurationError(f"producer of topic {topic.name!r}: give a subclass of Producer, not {cls!r}")
        if backend is not None and backend not in BACKENDS:
            raise ConfigurationError(
                f"producer of topic {topic.name!r}: backend={backend!r} is not one of {', '.join(map(repr, BACKENDS))}"
            )
        producer = cls()
        producer._bind(topic, backend, allow_loss=allow_loss)
        self._declared.producers.append(producer)
        self._producer_declared(producer)
        return producer

    def consumer(
        self,
        topic: Topic | str,
        *,
        group: str | None = None,
        batch: bool = False,
        max_batch: int = 500,
        max_wait: float = 0.1,
        concurrency: int = 1,
        ordering: Ordering = "partition",
        delivery: Delivering = "at_least_once",
        on_error: OnError | None = None,
        start_from: Literal["earliest", "latest"] | datetime = "earliest",
        fatal_error: FatalError | None = None,
        reraise_errors: bool | None = None,
    ) -> Callable[[T], T]:
        """Register a function or a `Consumer` subclass for a topic; returns it unchanged.

        Args:
            topic: From `topic(...)`, or the name of a declared topic.
            group: Consumer group; default `consumers.group`.
            batch: One call for a batch (of one partition) instead of one for each message.
            max_batch: Most messages in a batch.
            max_wait: Seconds that an incomplete batch waits for more.
            concurrency: Most handlers running at once in one process.
            ordering: `"partition"`, `"key"` (same key in order, different keys side by side) or `"none"`.
            delivery: `"at_least_once"`; `"at_most_once"` (committed before it is handled, tried once unless
                `on_error` is given here); or `"effectively_once"` (offsets are kept in the database, in the
                transaction of the handler's session; `concurrency` acts across partitions).
            on_error: What follows an error; default the topic's, then that of the settings.
            start_from: Where the group has no offset: `"earliest"`, `"latest"` or an aware datetime.
            fatal_error: `(error, messages) -> bool`: True stops the consumer before any retry.
            reraise_errors: Stop at the first error; default the topic's, then `consumers.reraise_errors`.

        Raises:
            ConfigurationError: Here: an option that cannot be, every one of them. At start, together with every other
                mistake that can be seen then: a topic that is not declared, a handler whose parameters cannot be
                filled, no group, two consumers of one group on one topic.
        """

        def register(target: T) -> T:
            spec = ConsumerSpec(
                target=target,
                topic=topic,
                group=group,
                batch=batch,
                max_batch=max_batch,
                max_wait=max_wait,
                concurrency=concurrency,
                ordering=ordering,
                delivery=delivery,
                on_error=on_error,
                start_from=start_from,
                fatal_error=fatal_error,
                reraise_errors=reraise_errors,
            )
            problems = check_consumer(spec)
            if problems:
                raise ConfigurationError(*problems)
            self._consumer_declared(spec)
            self._declared.consumers.append(spec)
            return target

        return register

    def poller(
        self,
        *producers: Producer,
        name: str | None = None,
        mode: Polling = "time",
        poller_class: type | None = None,
        run_every: float = 60.0,
        retries: int | None = 1,
        skip_too_large_messages: bool = False,
        delay_time: float = 2.0,
        timestamp_column: str = "updated_at",
        full_table: bool = False,
        start_from_beginning: bool = True,
        state_column: str | None = None,
        publish_timestamp_column: str | None = None,
        published_state: Any = None,
        failed_state: Any = None,
    ) -> None:
        """Send rows of a table that have changed, found by looking now and then.

        Args:
            producers: Model producers, as `producer(...)` returned them; every row goes to each. The first one's model
                is read.
            name: Unique; its cursor is kept by it. Default: the class of the first producer, or `poller_class`.
            mode: `"time"`: rows whose timestamp has moved on. `"state"`: rows that are not marked as sent.
            poller_class: Subclass of `Poller`, which may choose producers and rows.
            run_every: Seconds from the end of a run, which reads until nothing is left, to the next one.
            retries: Attempts after the first one, for errors that are not Kafka's; None: for ever. Then rows that fail
                are found, and the others sent. Errors of Kafka, registry and database are retried for ever.
            skip_too_large_messages: Leave out rows whose message is too large; else they are tried again later.
            delay_time: Seconds to stay behind the present, for clocks that differ. `mode="time"` stays behind open
                transactions as well.
            timestamp_column: The row's time of change, a DateTime in UTC that is never NULL.
            full_table: Send the whole table in each run (`mode="time"`).
            start_from_beginning: False: the first run begins at the present time (`mode="time"`).
            state_column: With `published_state` and `failed_state`: what is set in rows that were sent, or could not
                be (`mode="state"`). Rows with neither are read, unless a `poll_query` says otherwise.
            publish_timestamp_column: Is set to the time of sending (`mode="state"`).

        Raises:
            ConfigurationError: Here: an option that cannot be. At start: no producers, no ModelProducer, columns that
                the model lacks, a timestamp that may be NULL, two pollers of one name, no database.
        """
        spec = PollerSpec(
            producers=producers,
            name=name,
            mode=mode,
            poller_class=poller_class,
            run_every=run_every,
            retries=retries,
            skip_too_large_messages=skip_too_large_messages,
            delay_time=delay_time,
            timestamp_column=timestamp_column,
            full_table=full_table,
            start_from_beginning=start_from_beginning,
            state_column=state_column,
            publish_timestamp_column=publish_timestamp_column,
            published_state=published_state,
            failed_state=failed_state,
        )
        problems = check_poller(spec)
        if problems:
            raise ConfigurationError(*problems)
        self._poller_declared(spec)
        self._declared.pollers.append(spec)

    def _topic_declared(self, topic: Topic) -> None:
        """For the application, which fixes the defaults at this moment."""

    def _producer_declared(self, producer: Producer) -> None:
        """For the application, which binds it."""

    def _consumer_declared(self, spec: ConsumerSpec) -> None:
        """For whoever has something against it."""

    def _poller_declared(self, spec: PollerSpec) -> None:
        """For whoever has something against it."""


class Router(Declaring):
    """Declares topics, producers, consumers and pollers for an application that includes it later.

    Its topics take `app.defaults` as they stand at `include`. Producing before is a `ConfigurationError`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._app: Declaring | None = None

    def _include_in(self, app: Declaring) -> Declarations:
        if self._app is not None:
            where = "this" if self._app is app else "another"
            raise ConfigurationError(f"the router is included in {where} application already; include it once")
        self._app = app
        return self._declared

    def _topic_declared(self, topic: Topic) -> None:
        self._refuse_late(f"topic {topic.name!r}")

    def _producer_declared(self, producer: Producer) -> None:
        self._refuse_late(f"producer of topic {producer.topic.name!r}")

    def _consumer_declared(self, spec: ConsumerSpec) -> None:
        self._refuse_late(f"consumer {spec.name!r}")

    def _poller_declared(self, spec: PollerSpec) -> None:
        self._refuse_late(f"poller {spec.name!r}")

    def _refuse_late(self, what: str) -> None:
        if self._app is not None:
            raise ConfigurationError(f"{what} is declared after its router was included; declare it before")


def _is_topic_name(name: str) -> bool:
    return (
        0 < len(name) <= 249
        and name not in (".", "..")
        and all(character.isascii() and (character.isalnum() or character in "._-") for character in name)
    )

"""`Producer`: what users call, and subclass for a partition key of their own."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deimos_async.errors import BrokerError, ConfigurationError, DeliveryError, EncodeError, LifecycleError
from deimos_async.message import Delivery, HeadersInput
from deimos_async.producing import pipeline
from deimos_async.producing.outlet import (
    DIRECT_BACKENDS,
    Outgoing,
    Outlets,
    ProducerBackend,
    TopicOutlet,
    is_disabled,
    is_storing,
)
from deimos_async.topics import Topic

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded only where it is used
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Producer", "deliver", "departure", "leave_with", "surrounding_session"]

_TURN = 512
"""Messages that are encoded in one go, before other tasks have a turn."""
_MESSAGE_FIELDS = frozenset({"payload", "key", "partition_key", "headers", "topic", "timestamp"})


class Producer:
    """Sends messages to a topic. Made by `app.producer(topic)`, or from a subclass: `app.producer(topic, MyProducer)`.

    Producers may be used from any number of tasks of the loop in which the application runs.
    """

    topic: Topic
    """The topic that messages go to when a call names none."""
    _backend: str | None = None
    _allow_loss = False
    _outlets: Callable[[], Outlets] | None = None

    def partition_key(self, payload: Any) -> str | bytes | None:
        """Override to choose the partition by something else than the key. Sees the payload as it was given."""
        return None

    async def produce(
        self,
        payload: Any,
        key: Any = None,
        *,
        partition_key: str | bytes | None = None,
        headers: HeadersInput | None = None,
        topic: Topic | str | None = None,
        timestamp: datetime | None = None,
        session: AsyncSession | None = None,
        backend: str | None = None,
    ) -> Delivery | None:
        """Send one message.

        Args:
            payload: What the topic's schema describes; None, `{}` or only `payload_key` is a tombstone.
            key: Else `payload_key` inside a dict payload, else the field of `Key.field`. 0 and "" are keys.
            partition_key: Chooses the partition instead of the key.
            headers: A mapping or `(name, value)` pairs; values `str`, `bytes` or None.
            topic: Another declared topic.
            timestamp: Aware; default the time of sending.
            session: The message leaves when this session's transaction commits, and never when it rolls back. Default:
                the innermost `app.transaction()`, or the session of the running handler.
            backend: `"kafka"`, `"kafka_async"`, `"outbox"` or `"test"` for this call.

        Returns:
            With the backend `kafka`, outside of a transaction, where the message lies; else None.

        Raises:
            EncodeError: Payload or key does not fit; every field that is wrong is named.
            DeliveryError: Not acknowledged; `unknown` after a time-out.
            ConfigurationError: The topic is not declared, or the router not included; or a handler with
                `delivery="effectively_once"` produces by `kafka` or `kafka_async`, and the producer was made without
                `allow_loss=True`: that consumer stops.
            NotRunningError: The application does not run.
        """
        message = {
            "payload": payload,
            "key": key,
            "partition_key": partition_key,
            "headers": headers,
            "topic": topic,
            "timestamp": timestamp,
        }
        deliveries = await self._produce([message], session, backend)
        return deliveries[0] if deliveries else None

    async def produce_many(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        session: AsyncSession | None = None,
        backend: str | None = None,
    ) -> list[Delivery] | None:
        """Send messages in order, encoded all before the first is sent: one that does not fit sends none.

        Args:
            messages: Each with `payload`, and where wanted `key`, `partition_key`, `headers`, `topic`, `timestamp`.

        Returns, raises: as `produce`, for the list; `DeliveryError.indexes` are positions in it.
        """
        if isinstance(messages, (str, bytes, Mapping)):
            raise TypeError("produce_many takes a list of mappings, each with 'payload'")
        messages = list(messages)
        for index, message in enumerate(messages):
            if type(message) is not dict and not isinstance(message, Mapping):
                raise TypeError(f"message {index}: a mapping with 'payload', not {type(message).__name__}")
            if not (message.keys() <= _MESSAGE_FIELDS and "payload" in message):
                unknown = message.keys() - _MESSAGE_FIELDS
                what = f"unknown {sorted(map(str, unknown))}" if unknown else "'payload' is missing"
                raise TypeError(f"message {index}: {what}; the fields are {', '.join(sorted(_MESSAGE_FIELDS))}")
        return await self._produce(messages, session, backend)

    async def delete(
        self,
        key: Any,
        *,
        partition_key: str | bytes | None = None,
        headers: HeadersInput | None = None,
        topic: Topic | str | None = None,
        timestamp: datetime | None = None,
        session: AsyncSession | None = None,
        backend: str | None = None,
    ) -> Delivery | None:
        """Send a tombstone: key and no payload. Arguments, result and errors as `produce`."""
        return await self.produce(
            None,
            key,
            partition_key=partition_key,
            headers=headers,
            topic=topic,
            timestamp=timestamp,
            session=session,
            backend=backend,
        )

    def _problems(self) -> Iterable[str]:
        """Mistakes in the class that can be seen at start, one sentence each."""
        return ()

    def _metadata(self) -> Sequence[MetaData]:
        """MetaData of the tables that it reads."""
        return ()

    def _bind(self, topic: Topic, backend: str | None, *, allow_loss: bool) -> None:
        self.topic = topic
        self._backend = backend
        self._allow_loss = allow_loss

    async def _produce(
        self, messages: Sequence[Mapping[str, Any]], session: AsyncSession | None, backend_name: str | None
    ) -> list[Delivery] | None:
        way = self._way(backend_name)
        if way is None:
            return None
        outlets, backend = way
        own, session = session, session if session is not None else surrounding_session(outlets.owner)
        if session is not None:
            outgoing = await self._encoded(messages, outlets)
            if own is None:
                surrounding_session(outlets.owner)  # it may have ended while the registry was asked
            leave_with(session, backend, outlets, outgoing)
            return None
        tracing = outlets.tracing
        with tracing.produce_span(self.topic.name, count=len(messages)) if tracing.enabled else nullcontext():
            trace = tuple(tracing.inject()) if tracing.enabled else ()
            return await deliver(backend, outlets, await self._encode(messages, outlets, trace))

    def _way(self, backend_name: str | None) -> tuple[Outlets, ProducerBackend] | None:
        """The running application's outlets, and the backend that a call takes; None: it is to send nothing."""
        if self._outlets is None:
            raise ConfigurationError(
                f"producer of topic {getattr(self, 'topic', None)!r} belongs to no application yet; "
                "include its router with app.include(router), or make it with app.producer(...)"
            )
        outlets = self._outlets()
        if outlets.disabled or is_disabled(outlets.owner, self):
            return None
        backend = outlets.backend(backend_name or self._backend or outlets.default_backend)
        if backend.name in DIRECT_BACKENDS and not self._allow_loss:
            _refuse_loss(outlets.owner, self.topic.name, backend.name)
        return outlets, backend

    async def _encoded(self, messages: Sequence[Mapping[str, Any]], outlets: Outlets) -> list[Outgoing]:
        """Encode all of them, in order, for a transaction that they are to leave with."""
        tracing = outlets.tracing
        if not tracing.enabled:
            return await self._encode(messages, outlets, ())
        with tracing.produce_span(self.topic.name, count=len(messages)):
            return await self._encode(messages, outlets, tuple(tracing.inject()))

    async def _encode(
        self, messages: Sequence[Mapping[str, Any]], outlets: Outlets, trace: Sequence[tuple[str, bytes]]
    ) -> list[Outgoing]:
        """Encode all of them, in order."""
        own = outlets.topic(self.topic)
        # Asking the registry, which happens once, says nothing about encoding.
        began = time.perf_counter() if own.codec.prepared else None
        name = type(self).__name__
        events = outlets.events if outlets.events.wants("deimos.encode_message") else None
        chooses_partition = type(self).partition_key is not Producer.partition_key
        now = datetime.now(UTC)
        outgoing: list[Outgoing] = []
        prepared: TopicOutlet | None = None
        for message in messages:
            get = message.get
            topic = get("topic")
            outlet = own if topic is None else outlets.topic(topic)
            if outlet is not prepared:
                if not outlet.codec.prepared:
                    await outlet.codec.prepare()
                prepared = outlet
            payload = message["payload"]
            partition_key = get("partition_key")
            if partition_key is None and chooses_partition:
                partition_key = self.partition_key(payload)
            try:
                encoded = pipeline.prepare(
                    outlet, name, payload, get("key"), partition_key, get("headers"), get("timestamp"), trace, now
                )
            except EncodeError as error:
                if events is not None:
                    about = {"producer": name, "topic": outlet.name, "payload": payload}
                    events.emit("deimos.encode_message", about, error=error)
                raise
            if events is not None:
                about = {
                    "producer": name,
                    "topic": outlet.name,
                    "payload": encoded.payload,
                    "key": encoded.key,
                    "message": encoded,
                }
                events.emit("deimos.encode_message", about)
            outgoing.append(encoded)
            if not len(outgoing) % _TURN:
                await asyncio.sleep(0)  # a long list must not keep heartbeats and requests waiting
                prepared = None  # what is known of schemas may be too old by now
        if began is not None and outgoing:
            outlets.measured.encoded(own.kafka_name, (time.perf_counter() - began) / len(outgoing))
        return outgoing


def _refuse_loss(owner: object, topic: str, backend: str) -> None:
    """Raises ConfigurationError within a handler that must not commit what it may then fail to send."""
    transactions = sys.modules.get("deimos_async.database.transactions")
    if transactions is not None:
        transactions.refuse_loss(
            owner,
            f"topic {topic!r}: the backend {backend!r} sends after the commit, and a crash in between would lose the "
            "message, though the handler has delivery='effectively_once'; produce with an outbox, or make the "
            "producer with allow_loss=True",
        )


def surrounding_session(owner: object) -> Any:
    """The session of the innermost transaction of this application, or None. Raises LifecycleError if it has ended."""
    # Without that module loaded nobody can have opened a transaction, and SQLAlchemy need not be loaded.
    transactions = sys.modules.get("deimos_async.database.transactions")
    if transactions is None:
        return None
    scope = transactions.current_scope(owner)
    return None if scope is None else scope.session


async def deliver(backend: ProducerBackend, outlets: Outlets, messages: Sequence[Outgoing]) -> list[Delivery] | None:
    """Send, then tell: a log line and a counter for each topic. What is only stored tells by itself."""
    if is_storing(backend):
        await backend.send(messages)
        return None
    measured = outlets.measured
    began = time.perf_counter()
    try:
        deliveries = await backend.send(messages)
    except Exception as error:
        _tell_failure(error, outlets, messages, time.perf_counter() - began)
        raise
    seconds = time.perf_counter() - began
    for topic, group in pipeline.by_topic(messages).items():
        kafka_name = group[0].outlet.kafka_name
        measured.sent(kafka_name, len(group))
        if deliveries is not None:
            measured.answered(kafka_name, seconds)
        pipeline.log_produced(topic, group)
    return deliveries


def _tell_failure(error: Exception, outlets: Outlets, messages: Sequence[Outgoing], seconds: float) -> None:
    """Count what failed, and what was acknowledged all the same."""
    indexes = set(error.indexes) if isinstance(error, DeliveryError) and error.indexes else set(range(len(messages)))
    failed = [message for index, message in enumerate(messages) if index in indexes]
    stored = [message for index, message in enumerate(messages) if index not in indexes]
    measured = outlets.measured
    for group in pipeline.by_topic(failed).values():
        measured.sent(group[0].outlet.kafka_name, len(group), error)
        measured.answered(group[0].outlet.kafka_name, seconds, error)
    for group in pipeline.by_topic(stored).values():
        measured.sent(group[0].outlet.kafka_name, len(group))
    if isinstance(error, BrokerError):
        measured.not_delivered(message.outlet.kafka_name for message in failed)


def leave_with(
    session: AsyncSession | Session, backend: ProducerBackend, outlets: Outlets, messages: Sequence[Outgoing]
) -> None:
    """Let encoded messages go with the session's transaction, or be stored in it.

    Raises:
        EncodeError: Headers cannot be stored; none of the messages is.
        LifecycleError: It is no session, or a plain one, after whose commit nobody can wait for what a direct backend
            sends.
    """
    if is_storing(backend):
        backend.enlist(session, messages)
        return
    # start-up time: a session exists, so they are loaded
    from sqlalchemy.ext.asyncio import async_session
    from sqlalchemy.orm import Session

    from deimos_async.database.transactions import depart_with

    waiting = async_session(session) if isinstance(session, Session) else session
    if waiting is None:
        raise LifecycleError(
            f"topic {messages[0].topic!r}: the backend {backend.name!r} sends after the commit and needs an "
            "AsyncSession; a plain Session can have its messages written to an outbox"
        )
    depart_with(waiting, departure(backend, outlets), messages)


class _Departure:
    """Sends with one backend what a transaction let go; equal for the same backend, so that neighbours join."""

    __slots__ = ("_backend", "_outlets")

    def __init__(self, backend: ProducerBackend, outlets: Outlets) -> None:
        self._backend = backend
        self._outlets = outlets

    async def __call__(self, messages: Sequence[Outgoing]) -> None:
        await deliver(self._backend, self._outlets, messages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Departure) and (self._backend, self._outlets) == (other._backend, other._outlets)

    def __hash__(self) -> int:
        return hash(id(self._backend))


def departure(backend: ProducerBackend, outlets: Outlets) -> _Departure:
    """What a transaction calls with its messages after the commit."""
    return _Departure(backend, outlets)

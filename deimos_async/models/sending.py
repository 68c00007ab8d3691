"""From changes in a session to messages that leave with its transaction.

Called in events of a session: of an `AsyncSession` in its greenlet, where `await_only` may wait; of a plain `Session`
anywhere, where nothing can be waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from deimos_async.database.transactions import depart_with, write_with
from deimos_async.errors import ConfigurationError, LifecycleError, NotRunningError
from deimos_async.models.payloads import Change, Fields, PlainHooks, RowHooks, is_watched, messages_for
from deimos_async.models.producer import ModelProducer, fields_of
from deimos_async.producing.outlet import Outgoing, Outlets, ProducerBackend, StoringBackend, is_storing
from deimos_async.producing.producer import Producer, deliver, leave_with

__all__ = ["Sender", "refuse_commit", "send", "senders"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sender:
    """A producer that is not stopped here, and what it needs."""

    producer: Producer
    outlets: Outlets
    backend: ProducerBackend
    fields: Fields
    hooks: RowHooks

    @property
    def reads_records(self) -> bool:
        """Whether hooks want the object for a row that is known by its attributes."""
        return isinstance(self.producer, ModelProducer) and self.producer._reads_records


def senders(model: Any) -> list[Sender]:
    """The producers of a `KafkaSource`, in order, without those that are stopped in this context.

    Raises:
        ConfigurationError: The class names none, or something else than producers.
        NotRunningError: Their application does not run.
    """
    producers = model.kafka_producers()
    if not isinstance(producers, list | tuple) or not all(isinstance(each, Producer) for each in producers):
        raise ConfigurationError(
            f"{model.__name__}.kafka_producers() returns a list of what app.producer(...) or router.producer(...) made"
        )
    return [sender for producer in producers if (sender := _sender(producer)) is not None]


def _sender(producer: Producer) -> Sender | None:
    way = producer._way(None)
    if way is None:
        return None
    outlets, backend = way
    outlet = outlets.topic(producer.topic)
    if not outlet.codec.prepared:
        if not in_greenlet():
            raise _unprepared(producer)
        await_only(outlet.codec.prepare())
    fields = fields_of(outlet)
    hooks = producer if isinstance(producer, ModelProducer) else PlainHooks(fields, outlet.codec.key)
    return Sender(producer, outlets, backend, fields, hooks)


def send(session: Session, sender: Sender, changes: Sequence[Change]) -> None:
    """Have a producer make messages of the changes that it watches, to leave with the session's transaction.

    Raises:
        EncodeError: A payload does not fit.
        LifecycleError: A plain session, and a backend that sends after the commit.
        NotRunningError: A plain session, and the schema registry would have to be asked first.
    """
    watched = [change for change in changes if is_watched(sender.hooks, change)]
    if not watched:
        return
    producer, outlets = sender.producer, sender.outlets
    messages = messages_for(
        sender.hooks, sender.fields, watched, truncate=outlets.truncate_columns, topic=producer.topic.name
    )
    outgoing = _finish(producer._encoded(messages, outlets), producer) if messages else []
    if isinstance(producer, ModelProducer) and producer._post_processes:
        _leave_and_tell(session, sender, producer, outgoing, [change.record for change in watched])
    elif outgoing:
        leave_with(session, sender.backend, outlets, outgoing)


def refuse_commit(session: Session, error: BaseException) -> None:
    """Let the transaction, or savepoint, only be rolled back: it holds changes whose messages could not be made."""
    write_with(session, _refuse, [error])


def _refuse(session: Session, errors: Sequence[BaseException]) -> None:
    raise LifecycleError(
        f"messages of changes in this transaction could not be made ({type(errors[0]).__name__}), so it cannot be "
        "committed; roll it back, or the savepoint"
    ) from errors[0]


def _leave_and_tell(
    session: Session, sender: Sender, producer: ModelProducer[Any], outgoing: Sequence[Outgoing], records: list[Any]
) -> None:
    items = [*outgoing, *map(_Record, records)]
    if is_storing(sender.backend):
        write_with(session, _StoreThenTell(sender.backend, producer), items)
        return
    waiting = async_session(session)
    if waiting is None:
        raise LifecycleError(
            f"{type(producer).__name__}: after the commit of a plain Session nobody can wait for what the backend "
            f"{sender.backend.name!r} sends, and for post_process; use an AsyncSession"
        )
    depart_with(waiting, _SendThenTell(sender.backend, sender.outlets, producer), items)


@dataclass(frozen=True, slots=True)
class _Record:
    """A record among messages."""

    record: Any


def _parted(items: Sequence[Any]) -> tuple[list[Outgoing], list[Any]]:
    """Messages, and records."""
    outgoing = [item for item in items if not isinstance(item, _Record)]
    return outgoing, [item.record for item in items if isinstance(item, _Record)]


@dataclass(frozen=True, slots=True)
class _StoreThenTell:
    """What `write_with` calls for a producer with a `post_process`."""

    backend: StoringBackend
    producer: ModelProducer[Any]

    def __call__(self, session: Session, items: Sequence[Any]) -> Awaitable[None]:
        outgoing, records = _parted(items)
        if outgoing:
            self.backend.write(session, outgoing)
        return self.producer.post_process(records)


@dataclass(frozen=True, slots=True)
class _SendThenTell:
    """What `depart_with` calls for a producer with a `post_process`."""

    backend: ProducerBackend
    outlets: Outlets
    producer: ModelProducer[Any]

    async def __call__(self, items: Sequence[Any]) -> None:
        outgoing, records = _parted(items)
        if outgoing:
            await deliver(self.backend, self.outlets, outgoing)
        await self.producer.post_process(records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SendThenTell) and (self.backend, self.producer) == (other.backend, other.producer)

    def __hash__(self) -> int:
        return hash((id(self.backend), id(self.producer)))


def _finish(work: Coroutine[Any, Any, T], producer: Producer) -> T:
    """What a coroutine returns that does not have to wait for anything, or may in a greenlet."""
    if in_greenlet():
        return await_only(work)
    steps = work.__await__()
    try:
        # None: it only gives other tasks a turn, and there are none here.
        while next(steps) is None:
            pass
    except StopIteration as stop:
        found: T = stop.value
        return found
    steps.close()
    raise _unprepared(producer)


def _unprepared(producer: Producer) -> NotRunningError:
    return NotRunningError(
        f"topic {producer.topic.name!r}: the schema registry must be asked first, for which a plain Session cannot "
        "wait; use an AsyncSession, or wait until app.is_ready"
    )

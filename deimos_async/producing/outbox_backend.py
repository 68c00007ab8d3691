"""The backend `outbox`: messages become rows in the transaction that they belong to. A pump sends them later.

It needs nothing but a session: no broker, and no pump in this process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from deimos_async.database.connecting import connected
from deimos_async.database.outbox.protocol import NewRow
from deimos_async.database.outbox.writing import check_tables, insert_rows
from deimos_async.database.tables import kafka_messages
from deimos_async.database.transactions import tell_with, write_with
from deimos_async.errors import EncodeError
from deimos_async.outbox.rows import header_problem, make_rows
from deimos_async.outbox.shards import LAYOUT
from deimos_async.outbox.signal import OutboxSignal
from deimos_async.producing import pipeline
from deimos_async.producing.outlet import Outgoing
from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics

__all__ = ["OutboxBackend"]

_TURN = 2000
"""Messages that are made into rows in one go, before other tasks have a turn."""

_shard = itemgetter(NewRow._fields.index("shard"))

Observer = Callable[[Sequence[Outgoing]], Awaitable[None]]


class OutboxBackend:
    """Stores messages in the database.

    Args:
        engine: The application's: for messages that belong to no transaction, each call of which is one of its own.
        signal: Told of what was committed.
        metrics: Count it.
        observer: Awaited with messages that were committed.
    """

    name = "outbox"

    def __init__(
        self, engine: AsyncEngine, signal: OutboxSignal, metrics: Metrics, *, observer: Observer | None = None
    ) -> None:
        self._engine = engine
        self._signal = signal
        self._metrics = metrics
        self._observer = observer

    def observed(self, observer: Observer) -> OutboxBackend:
        """The same, with somebody who is told of each message that was committed. For tests."""
        return OutboxBackend(self._engine, self._signal, self._metrics, observer=observer)

    async def check(self) -> None:
        """Whether the application's database is fit for it.

        Raises:
            ConfigurationError: Tables are missing, or their rows are laid out in another way.
            DatabaseUnavailableError: It cannot be reached.
        """
        await check_tables(self._engine, layout=LAYOUT)

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Store messages in a transaction of their own: all or none.

        Cancelled: they may or may not have been stored.

        Raises:
            EncodeError: Headers cannot be stored.
            ConfigurationError: The tables are missing.
            DatabaseError: `retriable` where the database is away or the transaction lost against another one.
        """
        _check_headers(messages)
        shards: set[int] = set()
        async with connected(self._engine, "messages cannot be stored in the outbox") as connection:
            await connection.run_sync(self._insert, messages, shards)
            await connection.commit()
        self._count([messages])
        self._signal.wake(shards)
        if self._observer is not None:
            await self._observer(messages)

    def enlist(self, session: AsyncSession | Session, messages: Sequence[Outgoing]) -> None:
        """Store messages when the session's outermost transaction commits, at its end; a rollback drops them.

        Raises:
            EncodeError: Headers cannot be stored; nothing is.
            LifecycleError: That is no session, or its commit has begun.
        """
        _check_headers(messages)
        write_with(session, self.write, messages)

    def write(self, session: Session, messages: Sequence[Outgoing]) -> None:
        """Store messages now, in the session's transaction: what `write_with` calls before the commit.

        Raises:
            EncodeError: Headers cannot be stored; nothing is.
            ConfigurationError: The tables are missing.
            sqlalchemy.exc.DBAPIError: As the driver does, without what the messages say.
        """
        _check_headers(messages)
        shards: set[int] = set()
        self._insert(session.connection(bind_arguments={"clause": kafka_messages}), messages, shards)
        tell_with(session, self._count, [messages])
        tell_with(session, self._signal.wake, sorted(shards))
        if self._observer is not None:
            tell_with(session, self._observer, messages)

    def _insert(self, connection: Connection, messages: Sequence[Outgoing], shards: set[int]) -> None:
        for start in range(0, len(messages), _TURN):
            rows = make_rows([message.record for message in messages[start : start + _TURN]])
            shards.update(map(_shard, rows))
            insert_rows(connection, rows)

    def _count(self, lists: Sequence[Sequence[Outgoing]]) -> None:
        for messages in lists:
            for topic, group in pipeline.by_topic(messages).items():
                self._metrics.increment(
                    names.OUTBOX_INSERTED, by=len(group), tags={"topic": group[0].outlet.kafka_name}
                )
                pipeline.log_produced(topic, group)


def _check_headers(messages: Sequence[Outgoing]) -> None:
    checked: object = None
    for message in messages:
        headers = message.record.headers
        # The headers of one call's trace are one object, which all its messages share.
        if headers and headers is not checked:
            problem = header_problem(headers)
            if problem is not None:
                raise EncodeError(problem, topic=message.outlet.name)
            checked = headers

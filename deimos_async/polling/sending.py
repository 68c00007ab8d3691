"""Rows of one page to one producer: what is retried for ever, what a few times, and which rows it lies with.

Errors of the surroundings (Kafka, schema registry, database) are waited out: they say nothing of the rows. Anything
else is tried again `retries` times; then the page is halved again and again, so that what can be sent is sent, in
order, and the rows that fail alone are known.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from deimos_async.database.errors import is_away, is_transient
from deimos_async.errors import (
    BrokerError,
    ConfigurationError,
    DeimosError,
    DeliveryError,
    EncodeError,
    LifecycleError,
    RegistryError,
    SchemaError,
)
from deimos_async.models.columns import ModelColumns
from deimos_async.models.producer import ModelProducer
from deimos_async.plain_text import described

__all__ = ["Refused", "RowSender", "Unsent", "is_of_the_surroundings", "spoken"]

logger = logging.getLogger("deimos_async.polling")

_PAUSE = 0.5
"""Seconds before the next attempt. Source: Deimos 2.6."""
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Unsent:
    """A row that one producer could not send."""

    record: Any
    producer: ModelProducer[Any]
    error: Exception

    @property
    def is_refused(self) -> bool:
        """Whether the brokers do not take its message, as one that is too large."""
        return isinstance(self.error, DeliveryError)


class Refused(Exception):
    """Messages of some rows are not taken by the brokers; those of the others were acknowledged."""

    def __init__(self, error: DeliveryError, records: Sequence[Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.records = records


def is_of_the_surroundings(error: BaseException) -> bool:
    """Whether other rows would fail as well, and this one may be sent later with nothing changed."""
    match error:
        case DeliveryError():
            return error.retriable or error.unknown or error.of_topic
        case EncodeError():
            return False
        case BrokerError() | RegistryError() | SchemaError() | ConfigurationError() | LifecycleError():
            return True
        case DeimosError():
            return error.retriable
        case DBAPIError() | PoolTimeoutError() | OSError():
            return is_away(error) or is_transient(error)
    return False


def spoken(error: Exception) -> BaseException:
    """The error whose text may be shown: the driver's, where SQLAlchemy's own has values of parameters in it."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


class RowSender:
    """Sends the pages of one poller.

    Args:
        retries: Attempts after the first one; None: for ever.
        pause: Waits so many seconds. Raises what is to end the run, when it is to end.
        backend: Name of the backend of a producer, where it is not its usual one.
        columns: The model's, where rows are given by their attributes; None: they are objects.
    """

    def __init__(
        self,
        name: str,
        *,
        retries: int | None,
        pause: Callable[[float], Awaitable[None]],
        backend: Callable[[ModelProducer[Any]], str | None],
        columns: ModelColumns | None = None,
    ) -> None:
        self._columns = columns
        self._name = name
        self._retries = retries
        self._pause = pause
        self._backend = backend
        self.problem: str | None = None
        """What is being waited out."""

    async def send(self, producer: ModelProducer[Any], records: Sequence[Any], session: AsyncSession) -> list[Unsent]:
        """Send rows, all acknowledged or found to be unsendable when it returns.

        Args:
            session: That of the records.

        Raises: what `pause` raises. Some rows may have been sent then.
        """
        attempt = 0
        while True:
            refused, error = await self._attempt(producer, records, session)
            if error is None:
                return refused
            if self._retries is not None and attempt >= self._retries:
                break
            attempt += 1
            logger.warning(
                "poller %s: %d rows could not be sent by %s, tried again: %s: %s",
                self._name,
                len(records),
                type(producer).__name__,
                type(error).__name__,
                described(spoken(error)),
            )
            await self._pause(_PAUSE)
        return await self._halves(producer, records, session, error)

    async def _halves(
        self, producer: ModelProducer[Any], records: Sequence[Any], session: AsyncSession, error: Exception
    ) -> list[Unsent]:
        if len(records) == 1:
            return [Unsent(records[0], producer, error)]
        unsent: list[Unsent] = []
        middle = len(records) // 2
        for half in (records[:middle], records[middle:]):
            refused, failed = await self._attempt(producer, half, session)
            unsent += refused if failed is None else await self._halves(producer, half, session, failed)
        return unsent

    async def _attempt(
        self, producer: ModelProducer[Any], records: Sequence[Any], session: AsyncSession
    ) -> tuple[list[Unsent], Exception | None]:
        """Rows that the brokers refuse; or the error of others, and then nothing is known of any row."""
        delay = _PAUSE
        while True:
            try:
                await self._deliver(producer, records)
                self.problem = None
                return [], None
            except Refused as refused:
                self.problem = None
                return [Unsent(record, producer, refused.error) for record in refused.records], None
            except Exception as error:
                # Hooks are user code and raise what they like; the policy follows.
                if session.in_transaction():
                    await session.rollback()
                if not is_of_the_surroundings(error):
                    return [], error
                if self.problem is None:
                    logger.warning(
                        "poller %s waits, as %s cannot send: %s: %s",
                        self._name,
                        type(producer).__name__,
                        type(error).__name__,
                        described(spoken(error)),
                    )
                self.problem = type(error).__name__
            await self._pause(delay)
            delay = min(delay * 2, _LONGEST_PAUSE)

    async def _deliver(self, producer: ModelProducer[Any], records: Sequence[Any]) -> None:
        try:
            backend = self._backend(producer)
            if self._columns is None:
                await producer.send_events(records, backend=backend)
            else:
                await producer._send_attributes(records, self._columns, backend=backend)
        except DeliveryError as error:
            # A row makes one message or none: as many messages as rows, and they are in the same places.
            if is_of_the_surroundings(error) or len(error.deliveries) != len(records) or not error.indexes:
                raise
            bad = set(error.indexes)
            good = [record for index, record in enumerate(records) if index not in bad]
            if good:
                await producer.post_process(good)
            raise Refused(error, [records[index] for index in error.indexes]) from error

"""The port to what the jobs keep in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from deimos_async.message import TopicPartition

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded where a database is used
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["LONGEST_GROUP", "Bookmark", "Failure", "OffsetStore", "RetryRow", "RetryStore", "WaitingRow"]

LONGEST_GROUP = 191
"""Most characters of a consumer group's name, prefix included, that is kept in a table."""


class Bookmark(NamedTuple):
    """Where a group goes on in a partition: its row of the table `kafka_offsets`."""

    next_offset: int
    topic_id: str | None = None
    """Kafka's id of the topic that the offset belongs to; None where the brokers have none."""


class OffsetStore(Protocol):
    """The table `kafka_offsets`. Who moves an offset says from where: of two who do the same, one is told.

    All but `move` are transactions of their own. Errors of the surroundings are `DatabaseError` with `retriable` true;
    then it may have been done or not.
    """

    async def read(self, group: str, topic: str) -> Mapping[int, Bookmark]:
        """Rows of a group on a topic, by partition.

        Raises:
            ConfigurationError: The table is missing.
        """

    async def insert(self, group: str, bookmarks: Mapping[TopicPartition, Bookmark]) -> None:
        """Make rows that do not exist; those that do are left as they are."""

    async def replace(self, group: str, partition: TopicPartition, old: Bookmark, new: Bookmark) -> bool:
        """Set a row that is still `old`. False: it is another by now, or gone."""

    async def move(
        self, session: AsyncSession, group: str, partition: TopicPartition, next_offset: int, end: int
    ) -> bool:
        """In the session's transaction: set the offset from `next_offset` to `end`, which is above it.

        The row stays locked until the transaction ends, so this is best done last.

        Returns:
            False: it is not `next_offset` (any more), so whatever else the transaction holds must be rolled back.

        Raises:
            sqlalchemy.exc.DBAPIError: As the driver does, a conflict with another transaction among them.
        """

    async def move_alone(self, group: str, partition: TopicPartition, next_offset: int, end: int) -> bool:
        """As `move`, in a transaction of its own. Raises DatabaseError."""


class WaitingRow(NamedTuple):
    """That a message waits in the table `kafka_retries`, without what it says."""

    partition: int
    offset: int
    key_hash: int | None
    """Tells keys apart; None: the message has no key."""
    next_at: float
    """Seconds since the epoch."""


class Failure(NamedTuple):
    """What is kept of the failed attempts of a message: the time of the first one, and what the last one raised."""

    first_at: datetime
    """Aware."""
    error_class: str
    error_message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRow:
    """A row of the table `kafka_retries`: a record as it was read (it is an `InboundRecord`), and why it waits."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None
    """Milliseconds since the epoch."""
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Sequence[tuple[str, bytes | None]] = field(repr=False)
    topic_id: str | None
    """Kafka's id of the topic; None where the brokers have none."""
    key_hash: int | None
    """Tells keys apart; None: the message has no key."""
    attempts: int
    """Attempts that have failed. 0: it waits behind another message of its key."""
    next_at: float
    """Seconds since the epoch."""
    failure: Failure | None = None
    """None: it has not been tried."""


class RetryStore(Protocol):
    """The table `kafka_retries`: messages of groups that wait for another attempt.

    Rows are only ever added together with an offset that moves (port `OffsetStore`), so that of two members that have
    the same partition one cannot add any. Whoever ends or changes a row says how many attempts it had: of two who do
    the same, one is told.

    What takes a session is part of its transaction and raises as the driver does; the rest are transactions of their
    own, whose errors of the surroundings are `DatabaseError` with `retriable` true: then it may have been done or not.
    """

    async def waiting(self, group: str, topic: str, partitions: Iterable[int]) -> Sequence[WaitingRow]:
        """All rows of these partitions, ascending by partition and offset. One statement.

        Raises:
            ConfigurationError: The table is missing.
        """

    async def count(self, group: str) -> int:
        """How many rows the group has, on all topics."""

    async def read(self, group: str, partition: TopicPartition, offset: int) -> RetryRow | None:
        """One row; None: there is none (any more)."""

    async def add(self, session: AsyncSession, group: str, rows: Sequence[RetryRow]) -> bool:
        """In the session's transaction: add rows of one partition. One that is there already is left as it is.

        Returns:
            False: a message of an earlier topic of the same name waits at one of these offsets, and nothing was added.
        """

    async def add_and_move(
        self, group: str, partition: TopicPartition, next_offset: int, end: int, rows: Sequence[RetryRow]
    ) -> bool | None:
        """Add rows, and move the stored offset of their partition from `next_offset` to `end`: both or nothing.

        Returns:
            True: done. False: as for `add`. None: the stored offset is another one.
        """

    async def remove(
        self, session: AsyncSession, group: str, partition: TopicPartition, offset: int, attempts: int
    ) -> bool:
        """In the session's transaction: delete the row, if it still has so many attempts. False: it has not.

        The row stays locked until the transaction ends, so this is best done last.
        """

    async def remove_alone(self, group: str, partition: TopicPartition, offset: int, attempts: int) -> bool:
        """As `remove`, in a transaction of its own."""

    async def postpone(
        self, group: str, partition: TopicPartition, offset: int, attempts: int, *, next_at: float, failure: Failure
    ) -> bool:
        """Count one more attempt than `attempts`, if the row still has so many. False: it has not.

        Args:
            next_at: When it is due, in seconds since the epoch.
            failure: Why. Its time counts only where the row has none.
        """

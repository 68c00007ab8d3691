"""The port to what the jobs keep in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from deimos_async.message import TopicPartition

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded where a database is used
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["LONGEST_GROUP", "Bookmark", "OffsetStore"]

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

"""Where a consumer with `delivery="effectively_once"` is: offsets that are stored with what its handler writes.

Of each assigned partition this process knows the stored offset, as it was read when the partition came or as it has
moved it since. Every transaction moves it on, from exactly that offset to the one after the last message that it
handled. If the row holds another offset, somebody else has handled these messages (a member that has the partition by
now, or an earlier transaction of ours whose commit seemed to fail): then all of it is rolled back and `MustReread` says
to begin again at what the table says. This comparison is the fence; the group's generations are not needed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from deimos_async.brokers.protocol import Extent
from deimos_async.database.protocol import Bookmark, OffsetStore
from deimos_async.errors import ConfigurationError, DatabaseUnavailableError, OffsetOutOfRangeError
from deimos_async.message import TopicPartition

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded where a database is used
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = [
    "PATIENCE",
    "Ending",
    "MustReread",
    "OnLostOffset",
    "Passing",
    "Place",
    "Refused",
    "StoredOffsets",
    "go_on_at",
    "overtaken",
    "patiently",
]

T = TypeVar("T")

OnLostOffset: TypeAlias = Literal["stop", "earliest", "latest"]

PATIENCE = 60.0
"""Seconds for what we ask of the database ourselves, commits included; after that it counts as away."""


class MustReread(Exception):
    """Nobody here knows any more what the table says, and nothing was committed as far as is known."""


class Refused(Exception):
    """A handler did what breaks the guarantee of its consumer, which stops whatever `on_error` says."""

    def __init__(self, error: ConfigurationError) -> None:
        super().__init__(error)
        self.error = error


class Place:
    """The stored offset of an assigned partition. A new assignment, or another reading, makes a new one.

    A call keeps the one that it began with: if the partition was placed anew meanwhile, its commit finds another
    offset in the table, or moves the one that the later call expects.
    """

    __slots__ = ("began", "next_offset", "topic_id")

    def __init__(self, next_offset: int, topic_id: str | None = None) -> None:
        self.began = next_offset
        self.next_offset = next_offset
        self.topic_id = topic_id


class Ending(Protocol):
    """What is stored in a call's transaction besides what its handler writes, so that the call counts once."""

    async def store(self, session: AsyncSession) -> None:
        """The last thing before the commit. What this raises rolls everything back.

        Raises:
            MustReread: Somebody else was quicker.
        """

    def committed(self) -> None:
        """The transaction has committed."""


class Passing:
    """The offset of a partition moves behind the messages of a call (an `Ending`)."""

    __slots__ = ("_end", "_offsets", "_partition", "_place")

    def __init__(self, offsets: StoredOffsets, partition: TopicPartition, place: Place, end: int) -> None:
        self._offsets = offsets
        self._partition = partition
        self._place = place
        self._end = end

    async def store(self, session: AsyncSession) -> None:
        """See `Ending`."""
        await self._offsets.move(session, self._partition, self._place, self._end)

    def committed(self) -> None:
        """See `Ending`."""
        self._place.next_offset = self._end


class StoredOffsets:
    """The stored offsets of one member's partitions.

    Args:
        store: The table.
        group: With its prefix.
        on_lost: What follows where a stored offset does not exist in its partition.
    """

    def __init__(self, store: OffsetStore, *, group: str, on_lost: OnLostOffset) -> None:
        self.store = store
        self.group = group
        self.on_lost: OnLostOffset = on_lost
        self.places: dict[TopicPartition, Place] = {}

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are not ours any more. Calls that still run keep their places."""
        for partition in partitions:
            self.places.pop(partition, None)

    def place(self, partition: TopicPartition, offset: int) -> Place:
        """Where the partition is, for a call that begins with the message at this offset.

        Raises:
            MustReread: The partition is gone, or the message was committed already.
        """
        place = self.places.get(partition)
        if place is None:
            raise MustReread("the partition was taken away")
        if offset < place.next_offset:
            raise MustReread(f"offset {offset} was committed already, the stored offset is {place.next_offset}")
        return place

    def passing(self, partition: TopicPartition, first: int, end: int) -> Passing:
        """The ending of a call that begins with the message at `first`; the partition goes on at `end` behind it.

        Raises:
            MustReread: As `place`.
        """
        return Passing(self, partition, self.place(partition, first), end)

    async def move(self, session: AsyncSession, partition: TopicPartition, place: Place, end: int) -> None:
        """Move the stored offset in the session's transaction, which is to be rolled back if this raises.

        `place` is left as it is until the commit.

        Raises:
            MustReread: Somebody else has moved it.
        """
        if not await self.store.move(session, self.group, partition, place.next_offset, end):
            raise overtaken(place)

    async def settle(self, partition: TopicPartition, end: int) -> None:
        """Store that messages have ended without a handler's commit, in a transaction of its own.

        Raises:
            MustReread: Somebody else has moved it, or an earlier call that seemed to fail.
            DatabaseError: `retriable`; it may have been stored or not.
        """
        place = self.place(partition, end - 1)
        if not await patiently(self.store.move_alone(self.group, partition, place.next_offset, end)):
            raise overtaken(place)
        place.next_offset = end


async def patiently(question: Awaitable[T]) -> T:
    """The database's answer. Raises DatabaseUnavailableError if there is none within `PATIENCE`, else as the question.

    Then it may have been done or not.
    """
    try:
        async with asyncio.timeout(PATIENCE):
            return await question
    except TimeoutError as error:
        raise DatabaseUnavailableError(f"the database did not answer within {PATIENCE:g} s") from error


def overtaken(place: Place) -> MustReread:
    """What to raise where the stored offset is not the one that it was."""
    return MustReread(f"the stored offset is not {place.next_offset} any more, so somebody else has moved it")


def go_on_at(
    bookmark: Bookmark, extent: Extent, *, on_lost: OnLostOffset, group: str, partition: TopicPartition
) -> tuple[Bookmark, str | None]:
    """What the row of a partition must say before its messages are handled, and what is wrong with it as it is.

    Args:
        bookmark: The row.
        extent: What the partition holds now. An id that one of both lacks is not compared.

    Returns:
        The row, and None or the problem that was solved by `on_lost`.

    Raises:
        OffsetOutOfRangeError: The partition does not hold that offset, or is of another topic of the same name, and
            `on_lost` is `"stop"`.
    """
    topic_id = extent.topic_id or bookmark.topic_id
    if bookmark.topic_id and extent.topic_id and bookmark.topic_id != extent.topic_id:
        problem = (
            f"the topic was deleted and made again: the stored offset {bookmark.next_offset} is of topic id "
            f"{bookmark.topic_id}, and its id is {extent.topic_id} now"
        )
    elif not extent.begin <= bookmark.next_offset <= extent.end:
        problem = (
            f"the stored offset {bookmark.next_offset} does not exist, the partition holds "
            f"{extent.begin} to {extent.end}"
        )
    else:
        return Bookmark(bookmark.next_offset, topic_id), None
    where = f"group {group!r}: topic {partition.topic!r} partition {partition.partition}: {problem}"
    if on_lost == "stop":
        raise OffsetOutOfRangeError(
            f"{where}. Nothing is skipped by itself: set next_offset{_and_id(bookmark, extent)} in this row of the "
            "table kafka_offsets to where it shall go on, or delete the row to begin at the group's offset in Kafka, "
            "else as start_from says; or set 'consumers.on_lost_offset' to 'earliest' or 'latest'",
            partition=partition,
        )
    at = extent.begin if on_lost == "earliest" else extent.end
    return Bookmark(at, topic_id), f"{where}; it goes on at {at}, as 'consumers.on_lost_offset' is {on_lost!r}"


def _and_id(bookmark: Bookmark, extent: Extent) -> Any:
    return " and topic_id" if bookmark.topic_id and bookmark.topic_id != extent.topic_id else ""

"""`then="retry_keyed"`: messages of a key wait in the database, in their order, and hold up nothing else.

A message whose attempts in place are used up is put into the table `kafka_retries`, in the transaction that moves the
stored offset behind it. While messages of a key are in the table, later ones of that key are put there too instead of
being handled, in the transaction of the offset as well; other keys go on. Each key's messages are then tried in the
order of their offsets (`drains`), and each row is deleted in the transaction of the handler that has got through.

Why no message of a key can overtake another one:

- Rows are only added together with an offset that moves from where this member believes it to be. Which keys wait is
  read after that offset. So a member that has not seen a row that somebody else has added cannot commit anything that
  lies behind it in the partition: its offset is another one by then, and it reads both again.
- Whether a record's key waits is judged for all records of a call at one moment, and while the call runs, or the rows
  are stored, nothing else of that partition is judged. A key that stops waiting meanwhile changes nothing: what was
  judged to wait is put into the table, where it is the only one of its key by then, and is tried from there.
- A row is only ever tried when no earlier one of its key is left, and who deletes it says how many attempts it had. Of
  two members that try the same row at the same time, one is rolled back. A row that is gone was handled by whoever has
  deleted it, and committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING

from deimos_async.consuming.handling import FencedCall
from deimos_async.consuming.lanes import Kept
from deimos_async.consuming.stored_offsets import MustReread, Passing, Place, StoredOffsets, overtaken, patiently
from deimos_async.consuming.waiting import Waiting, key_hash
from deimos_async.database.protocol import Failure, RetryRow, RetryStore, WaitingRow
from deimos_async.message import InboundRecord, TopicPartition
from deimos_async.plain_text import class_path, described
from deimos_async.topics import Backoff

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded where a database is used
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["KeyedRetries", "NoRoom", "failure_of"]

_COUNTED_FOR = 1.0
"""Seconds for which the number of a group's rows counts as known."""


class NoRoom(Exception):
    """Messages cannot be put into the table now."""


class KeyedRetries:
    """The table of waiting messages, as one member of a group uses it.

    Args:
        store: The table.
        offsets: Those of the member.
        call: The consumer's handler, which ends as it is told to.
        attempts: Attempts of a message in the table, beyond those in place.
        backoff: Waiting times between them.
        per_key: Most messages of a key in the table.
        per_group: Most messages of the group in the table, about: other members may add some in the same second.
    """

    def __init__(
        self,
        store: RetryStore,
        offsets: StoredOffsets,
        call: FencedCall,
        *,
        attempts: int,
        backoff: Backoff,
        per_key: int,
        per_group: int,
    ) -> None:
        self.call = call
        self.attempts = attempts
        self.backoff = backoff
        self._per_key = per_key
        self._per_group = per_group
        self._store = store
        self._offsets = offsets
        self._group = offsets.group
        self._count = 0
        self._counted_at = float("-inf")

    # --- putting in --------------------------------------------------------------------------------------------

    async def _room(self, now: float) -> int:
        """How many messages the group may still put in, about.

        Args:
            now: Seconds of the consumer's clock.

        Raises:
            DatabaseError: `retriable`.
        """
        if now - self._counted_at >= _COUNTED_FOR:
            self._count = await patiently(self._store.count(self._group))
            self._counted_at = now
        return max(0, self._per_group - self._count)

    def _full(self, *, for_key: bool) -> NoRoom:
        """What to raise where there is no room for another message of the key, or of the group."""
        if for_key:
            return NoRoom(f"{self._per_key} messages of its key wait ('consumers.keyed_retries.max_per_key')")
        return NoRoom(f"{self._count} messages of its group wait ('consumers.keyed_retries.max_per_group')")

    def _rows_of(self, partition: TopicPartition, records: Sequence[InboundRecord], now: float) -> list[RetryRow]:
        """Records of a partition that queue up behind others of their keys. Raises MustReread."""
        place = self._offsets.place(partition, records[0].offset)
        return [_row(record, place, attempts=0, next_at=now, failure=None) for record in records]

    async def put_failed(self, partition: TopicPartition, record: InboundRecord, kept: Kept, now: float) -> RetryRow:
        """Store a record whose attempts in place are used up; returns its row. Raises as `queue_up`."""
        if not await self._room(now):
            raise self._full(for_key=False)
        place, failure = self._offsets.place(partition, record.offset), failure_of(kept.error, kept.failed_at)
        row = _row(record, place, attempts=kept.attempts, next_at=now + kept.delay, failure=failure)
        await self.put(partition, [row])
        return row

    async def queue_up(
        self, partition: TopicPartition, waiting: Waiting, batch: list[InboundRecord], now: float
    ) -> tuple[list[InboundRecord], Sequence[RetryRow]]:
        """Find records whose keys wait. If the first ones do, they are put behind the others at once.

        All are judged at one moment, before anything is awaited. While what was judged is handled or stored a key may
        stop waiting, and none begins to.

        Args:
            waiting: Of that partition.
            batch: The next records of the partition.
            now: Seconds of the consumer's clock.

        Returns:
            What is left for a call, as far as there is room, and rows. Where something is left, its first record is to
            be handled, and the rows are of those of it that go into the table with the call. Where nothing is, the rows
            are of the first records of the batch, and are in the table.

        Raises:
            NoRoom: Not even for the first one.
            MustReread, DatabaseError: As `put`.
        """
        queued_up = [record for record in batch if waiting.holds(record)]
        if not queued_up:
            return batch, ()
        of_keys = waiting.fitting(queued_up, self._per_key)
        fitting = min(of_keys, await self._room(now))
        if batch[0] is not queued_up[0]:
            if fitting < len(queued_up):
                batch = [record for record in batch if record.offset < queued_up[fitting].offset]
            return batch, self._rows_of(partition, queued_up[:fitting], now) if fitting else ()
        if not fitting:
            raise self._full(for_key=not of_keys)
        offsets = {record.offset for record in queued_up[:fitting]}
        rows = self._rows_of(partition, list(takewhile(lambda record: record.offset in offsets, batch)), now)
        await self.put(partition, rows)
        return [], rows

    async def put(self, partition: TopicPartition, rows: Sequence[RetryRow]) -> None:
        """Store rows, the next ones of their partition, and move its offset behind them.

        Raises:
            MustReread: Somebody else has moved it, or an earlier try that seemed to fail.
            NoRoom: A message of an earlier topic of the same name waits at one of the offsets.
            DatabaseError: `retriable`; it may have been stored or not.
        """
        place, end = self._offsets.place(partition, rows[0].offset), rows[-1].offset + 1
        added = await patiently(self._store.add_and_move(self._group, partition, place.next_offset, end, rows))
        if added is None:
            raise overtaken(place)
        if not added:
            raise _occupied()
        place.next_offset = end
        self.counted(len(rows))

    def passing(self, partition: TopicPartition, first: int, end: int, rows: Sequence[RetryRow]) -> _PassingWithRows:
        """The ending of a call with a batch, from `first` up to `end`, of which these rows go into the table.

        Raises:
            MustReread: As `StoredOffsets.place`.
        """
        return _PassingWithRows(self, self._offsets.passing(partition, first, end), rows)

    async def add(self, session: AsyncSession, rows: Sequence[RetryRow]) -> None:
        """Add rows in a session's transaction, which moves the offset as well. Raises NoRoom."""
        if not await self._store.add(session, self._group, rows):
            raise _occupied()

    # --- taking out --------------------------------------------------------------------------------------------

    async def waiting(self, topic: str, partitions: Iterable[int]) -> Sequence[WaitingRow]:
        """What the table holds of these partitions; one statement. Raises DatabaseError, `retriable`."""
        return await self._store.waiting(self._group, topic, partitions)

    async def read(self, partition: TopicPartition, offset: int) -> RetryRow | None:
        """One message; None: it does not wait any more. Raises DatabaseError, `retriable`."""
        return await patiently(self._store.read(self._group, partition, offset))

    def draining(self, row: RetryRow) -> _Draining:
        """The ending of a call with a message that has waited."""
        return _Draining(self, row)

    async def remove(self, session: AsyncSession, row: RetryRow) -> None:
        """Delete a row in a session's transaction. Raises MustReread: it is another one by now, or gone."""
        at = TopicPartition(row.topic, row.partition)
        if not await self._store.remove(session, self._group, at, row.offset, row.attempts):
            raise _changed()

    async def drop(self, row: RetryRow) -> None:
        """Delete a row. Raises MustReread, and DatabaseError: `retriable`, it may have been done or not."""
        at = TopicPartition(row.topic, row.partition)
        if not await patiently(self._store.remove_alone(self._group, at, row.offset, row.attempts)):
            raise _changed()
        self.counted(-1)

    async def postpone(self, row: RetryRow, *, next_at: float, failure: Failure) -> None:
        """Count an attempt of a row. Raises as `drop`."""
        at = TopicPartition(row.topic, row.partition)
        if not await patiently(
            self._store.postpone(self._group, at, row.offset, row.attempts, next_at=next_at, failure=failure)
        ):
            raise _changed()

    def counted(self, more: int) -> None:
        """So many rows were added, or deleted where it is below 0."""
        self._count = max(0, self._count + more)


class _PassingWithRows:
    """The offset moves behind a batch, and those of its messages whose keys wait go into the table."""

    def __init__(self, keyed: KeyedRetries, passing: Passing, rows: Sequence[RetryRow]) -> None:
        self._keyed = keyed
        self._passing = passing
        self._rows = rows

    async def store(self, session: AsyncSession) -> None:
        """See `Ending`. Raises NoRoom, too."""
        await self._passing.store(session)
        await self._keyed.add(session, self._rows)

    def committed(self) -> None:
        """See `Ending`."""
        self._passing.committed()
        self._keyed.counted(len(self._rows))


class _Draining:
    """A message that has waited is handled: its row goes."""

    def __init__(self, keyed: KeyedRetries, row: RetryRow) -> None:
        self._keyed = keyed
        self._row = row

    async def store(self, session: AsyncSession) -> None:
        """See `Ending`."""
        await self._keyed.remove(session, self._row)

    def committed(self) -> None:
        """See `Ending`."""
        self._keyed.counted(-1)


def failure_of(error: BaseException, at: float) -> Failure:
    """What is kept of an error.

    Args:
        at: Seconds since the epoch.
    """
    return Failure(datetime.fromtimestamp(at, UTC), class_path(error), described(error))


def _row(record: InboundRecord, place: Place, *, attempts: int, next_at: float, failure: Failure | None) -> RetryRow:
    return RetryRow(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
        topic_id=place.topic_id,
        key_hash=None if record.key is None else key_hash(record.key),
        attempts=attempts,
        next_at=next_at,
        failure=failure,
    )


def _occupied() -> NoRoom:
    return NoRoom("a message of an earlier topic of this name waits at the same offset")


def _changed() -> MustReread:
    return MustReread("somebody else has tried the message, or ended it")

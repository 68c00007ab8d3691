"""The ports to the outbox's tables. Adapters pass one contract suite on every database.

Errors of all calls are `DatabaseError`: `retriable` where the same call may succeed later (`DatabaseUnavailableError`
where no connection can be had); a call that failed so may have been done or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

__all__ = [
    "Fence",
    "LeaseTable",
    "NewRow",
    "OutboxRow",
    "OutboxStore",
    "Page",
    "ParkedRow",
    "Parking",
    "Pending",
    "RowContent",
    "RowValues",
    "SlotLeases",
    "SlotRow",
    "UnshardedRow",
    "WaitingRow",
    "WorkerRow",
]


class SlotRow(NamedTuple):
    """A slot's row."""

    number: int
    owner: str | None
    epoch: int
    is_leased: bool
    """Whether it has not expired."""


class WorkerRow(NamedTuple):
    """A worker's row."""

    id: str
    is_alive: bool
    """Whether it has not expired."""
    is_unlocked: bool
    """Whether it says that its session holds a lock, and the lock is free."""


class LeaseTable(NamedTuple):
    """The whole table, as it was at one moment."""

    slots: Sequence[SlotRow]
    workers: Sequence[WorkerRow]


class SlotLeases(Protocol):
    """The slots of one outbox, for one worker. Every time is the database's; calls are made one after another."""

    @property
    def has_locks(self) -> bool:
        """Whether others see the end of this worker's connection before its leases expire."""

    async def join(self) -> None:
        """Connect, and be one of the workers. Leases that this worker still has go on.

        Raises:
            ConfigurationError: The tables are missing, or rows are laid out in another way.
        """

    async def look(self, *, renew: bool) -> LeaseTable:
        """Every slot and every worker. With `renew` this worker's row and all its leases last for another TTL."""

    async def acquire(self, slot: int, *, owner: str | None, epoch: int) -> int | None:
        """Take a slot that still has this owner and epoch. Returns its new epoch; None: somebody else was quicker."""

    async def release(self, slot: int, *, epoch: int) -> None:
        """Give a slot up, if it is still this worker's in this epoch."""

    async def forget_dead(self) -> None:
        """Delete the rows of workers that died a while ago."""

    async def leave(self) -> None:
        """Be no worker any more, and close. Errors of the database are left to the leases' end."""

    async def close(self) -> None:
        """Close the connection, and with it what it has locked; leases last until they expire."""


class OutboxRow(NamedTuple):
    """A stored message."""

    id: int
    shard: int
    order_hash: int
    topic: str
    key: bytes | None
    message: bytes | None
    partition_key: bytes | None
    """What chooses the partition instead of the key."""
    headers: Any
    """As the table has them."""
    partition: int | None
    timestamp_ms: int | None
    message_id: str | None
    created_at: str
    """UTC, as ISO 8601 with a blank between date and time."""
    size: int
    """Bytes of key, message and headers."""

    def __repr__(self) -> str:  # what it carries does not belong into logs
        return f"OutboxRow(id={self.id}, topic={self.topic!r})"


RowValues = tuple[
    str, bytes | None, bytes | None, str | None, int, int, bytes | None, str | None, int | None, int | None, str, int
]
"""What a `NewRow` holds, as a plain tuple: the garbage collector does not keep watching those."""


class NewRow(NamedTuple):
    """A message to be stored, its columns in order; see `kafka_messages` in `deimos_async/database/tables.py`."""

    topic: str
    message: bytes | None
    key: bytes | None
    partition_key: str | None
    shard: int
    order_hash: int
    order_key: bytes | None
    headers: str | None
    kafka_partition: int | None
    timestamp_ms: int | None
    message_id: str
    size: int

    def __repr__(self) -> str:  # what it carries does not belong into logs
        return f"NewRow(topic={self.topic!r})"


class UnshardedRow(NamedTuple):
    """A row that a Deimos has written, which knows no shards."""

    id: int
    topic: str
    key: bytes | None
    partition_key: bytes | None


class Page(NamedTuple):
    """What one reading gave."""

    rows: Sequence[OutboxRow]
    """Ascending in id within each shard."""
    floors: Mapping[int, int]
    """New floors, of shards where they have changed."""
    more: Collection[int]
    """Shards that may have more rows above their floors."""


class Pending(NamedTuple):
    """What waits for one topic."""

    topic: str
    rows: int
    age: float
    """Seconds since the oldest row was written."""


class OutboxStore(Protocol):
    """The table `kafka_messages`: rows that wait to be sent. Rows are never changed, but for their first shard."""

    async def check(self) -> None:
        """Whether the database is fit for it.

        Raises:
            ConfigurationError: A table is missing.
        """

    @property
    def tells(self) -> bool:
        """Whether the database has been found to tell of new rows that other processes have written."""

    def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Call `heard` with the text of every notice, where the database passes notices on. Call it before all else."""

    async def read(
        self,
        floors: Mapping[int, int],
        *,
        limit: int,
        max_bytes: int,
        without_orders: Collection[int],
        without_topics: Collection[str],
    ) -> Page:
        """Committed rows of shards, each above its floor, oldest first within a shard.

        A floor is a hint that saves the walk over rows that were deleted. Ids become visible out of order: rows below
        it are found only by reading with a floor of 0 from time to time.

        Args:
            limit: Most rows.
            max_bytes: Most bytes of values in all; a single row may be larger.
            without_orders: Values of `order_hash` that are left out.
            without_topics: Topics that are left out.
        """

    async def delete(self, ids: Sequence[int]) -> None:
        """Delete rows, these and no others. Those that are gone already do not matter."""

    async def unsharded(self, limit: int) -> Sequence[UnshardedRow]:
        """Rows without a shard, oldest first."""

    async def assign(self, orders: Mapping[int, int]) -> None:
        """Give rows without a shard one: for each id its `order_hash`."""

    async def pending(self) -> Sequence[Pending]:
        """What waits, for each topic that has rows. Reads the whole index: not to be asked often."""

    def distrust(self) -> None:
        """Calls that wait for an answer fail, as those do that get none in time; later ones connect anew.

        For when the database is known to work, and connections from before may be dead without a word.
        """

    async def close(self) -> None:
        """Close the connections."""


class Fence(NamedTuple):
    """The lease by which something is done."""

    slot: int
    worker: str
    epoch: int


class Parking(Protocol):
    """Puts rows aside that cannot be sent."""

    async def park(self, id_: int, *, code: str, text: str, attempts: int, fence: Fence | None) -> bool:
        """Move a row from `kafka_messages` to `kafka_parked_messages`, in one transaction.

        Cancelled: it is done as a whole, or not at all.

        Args:
            id_: The row.
            code: Why it cannot be sent, for programs.
            text: Why, for people; nothing of the message. It is cut where it is too long.
            attempts: How many times that was found.
            fence: Only while this lease holds; None: whoever has the slot.

        Returns:
            Whether it was moved. False: it is not there, or the lease is somebody else's.
        """


class ParkedRow(NamedTuple):
    """A row that was put aside."""

    id: int
    """The one that it had in the outbox."""
    topic: str
    message_id: str | None
    size: int
    """Bytes of key, message and headers."""
    code: str
    text: str
    attempts: int
    parked_at: datetime
    """Aware, UTC."""


class WaitingRow(NamedTuple):
    """A row of the outbox with none of its key before it."""

    id: int
    topic: str
    message_id: str | None
    size: int
    age: float
    """Seconds since it was written."""


class RowContent(NamedTuple):
    """What a row carries."""

    key: bytes | None
    message: bytes | None
    partition_key: bytes | None
    headers: str | None
    """As the table has them."""
    partition: int | None
    timestamp_ms: int | None

    def __repr__(self) -> str:  # what it carries does not belong into logs
        return "RowContent()"

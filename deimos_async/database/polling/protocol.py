"""The port to what pollers keep in the database.

Errors of all calls are `DatabaseError`: `retriable` where the same call may succeed later (`DatabaseUnavailableError`
where no connection can be had); a call that failed so may have been done or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

__all__ = ["Bounds", "Chunk", "FailedRow", "PollRow", "PollStore", "Position"]


class Position(NamedTuple):
    """Where a poller is in its table: behind this row, in the order of times and then of keys.

    Attributes:
        time: The row's timestamp as text, with all its digits.
        key: Its primary key as text; None: before all rows of that time.
    """

    time: str
    key: str | None


class PollRow(NamedTuple):
    """A poller's row in `deimos_poll_info`."""

    name: str
    epoch: int
    is_leased: bool
    """Whether somebody has it, and the lease has not expired."""
    rested: float | None
    """Seconds since its last run has ended; None: there was none."""
    position: Position | None
    """None: at the beginning."""


class Chunk(NamedTuple):
    """A part of a backfill, from behind one key to another one, by the order of keys. None: the end of the table."""

    number: int
    epoch: int
    is_leased: bool
    is_done: bool
    first: str | None
    last: str | None
    key: str | None
    """How far it is; None: at its beginning."""


class Bounds(NamedTuple):
    """What is known of transactions, at one moment.

    Attributes:
        now: The database's time, aware.
        oldest: When the oldest transaction has begun that may still write a row; None: there is none.
        is_certain: Whether all transactions can be seen. False: others may be open, from any time.
    """

    now: datetime
    oldest: datetime | None
    is_certain: bool


class FailedRow(NamedTuple):
    """A row that could not be sent."""

    id: int
    key: str
    producers: str
    """Those that have not sent it: JSON, a list of texts."""
    attempts: int
    is_due: bool


class PollStore(Protocol):
    """Rows of pollers, for one worker. Every time is the database's; calls take turns."""

    async def open(self) -> None:
        """Connect.

        Raises:
            ConfigurationError: The tables are missing.
        """

    async def close(self) -> None:
        """Close the connection; any number of times. Leases last until they expire."""

    async def add(self, name: str, *, producer: str, known_as: Sequence[str], at_end: bool) -> None:
        """Make a poller's row, unless there is one.

        Args:
            known_as: Names under which a Deimos has kept its cursor; where it has, that is gone on from.
            at_end: Begin at the present time; else at the beginning.
        """

    async def look(self, ahead: float) -> Sequence[PollRow]:
        """Every poller's row. `ahead`: seconds by which time is ahead of the database's, in tests."""

    async def acquire(self, name: str, epoch: int, chunk: int = 0) -> int | None:
        """Take a poller that still has this epoch and that nobody has. Returns its new epoch; None: it was taken.

        Args:
            chunk: 0: the poller itself. Else a part of its backfill.
        """

    async def renew(self) -> None:
        """Let all leases of this worker last for another TTL."""

    async def save(self, name: str, epoch: int, position: Position | None, chunk: int = 0) -> bool:
        """Set the cursor, if the lease is still this worker's in this epoch. False: it is not."""

    async def finish(self, name: str, epoch: int, ahead: float, *, release: bool) -> bool:
        """A run has ended. With `release` the lease ends, too. False: it was not this worker's any more."""

    async def release(self, name: str, epoch: int, chunk: int = 0, *, done: bool = False) -> None:
        """Give a lease up, if it is still this worker's. `done`: and with it the chunk has come to its end."""

    async def chunks(self, name: str) -> Sequence[Chunk]:
        """Parts of a poller's backfill; none: it has not begun, or has ended. Number -1 is the list of all others."""

    async def begin_chunks(self, name: str) -> None:
        """Make the list, part -1, unless it is there."""

    async def add_chunk(self, name: str, number: int, *, first: str | None, last: str | None, epoch: int) -> bool:
        """Make a part, from behind one key (None: the beginning) to another one (None: the end).

        Args:
            epoch: Of this worker's lease of the list.

        Returns:
            False: the list is not this worker's any more, and nothing was made.
        """

    async def forget_chunks(self, name: str, *, listed_only: bool = False) -> None:
        """The backfill has ended; with `listed_only` its parts are to be listed anew."""

    async def bounds(self) -> Bounds:
        """The time, and the transactions that are open, the ones of this connection left out."""

    async def digits(self, schema: str | None, table: str, column: str) -> int:
        """Digits of seconds that a column of times keeps, 0 to 6; 0 where nobody says."""

    async def failures(self, name: str, ahead: float) -> Sequence[FailedRow]:
        """Rows of a poller that could not be sent, oldest first."""

    async def record(
        self, name: str, key: str, producers: str, *, attempts: int, delay: float, error_class: str, text: str
    ) -> None:
        """Remember one, instead of what was remembered of it before. It is due after `delay` seconds."""

    async def forget(self, name: str, key: str) -> None:
        """Remember it no more."""

"""What an error means for a write: whose fault it is, and what is told about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from deimos_async.database.errors import conflict, is_away, is_transient, sql_state
from deimos_async.errors import BatchWriteError, DatabaseUnavailableError, DeimosError
from deimos_async.message import Message

__all__ = ["Failure", "batch_error", "is_of_a_row", "telling_surroundings"]

Failure = tuple[Message[Any], Exception]

_MOST_TOLD = 20
"""Failures that a text names; it goes into a header of each dead letter."""
_LONGEST_KEY = 100


@contextmanager
def telling_surroundings() -> Iterator[None]:
    """Errors that are not the messages' fault leave the block as retriable ones, so that no attempt is counted.

    A transaction that lost against another one is rolled back as a whole, and so must be begun anew as a whole: MySQL
    ends a deadlock's victim together with its savepoints. That is the dispatcher's to do, which waits with jitter and
    calls again; within the call nothing could be saved.

    Raises:
        DatabaseError: With `retriable` true: deadlock, serialization failure, lock not had in time.
        DatabaseUnavailableError: The database is away.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        if is_transient(error):
            raise conflict(error) from error
        if is_away(error):
            raise DatabaseUnavailableError(
                f"the database cannot be reached, or cannot work at the moment ({_kind(error)})"
            ) from error
        raise


def is_of_a_row(error: Exception) -> bool:
    """Whether other rows may be written although this one's error came up.

    Not if the database is away or the transaction is lost, nor if the statement itself is wrong: then no row can be
    written, and looking for the bad one would cost two statements for each.
    """
    if isinstance(error, DeimosError):
        return False
    if isinstance(error, SQLAlchemyError):
        if isinstance(error, DBAPIError) and (is_transient(error) or is_away(error)):
            return False
        return not isinstance(error, ProgrammingError | PoolTimeoutError) and sql_state(error) != "SQLITE_ERROR"
    return True


def batch_error(failures: Sequence[Failure], count: int) -> BatchWriteError:
    """The error for messages of a batch that failed.

    Args:
        failures: At least one.
        count: Messages in the batch.
    """
    told = "; ".join(
        f"key {_key(message)} at {message.topic}[{message.partition}]@{message.offset}: {_cause(error)}"
        for message, error in failures[:_MOST_TOLD]
    )
    more = f"; and {len(failures) - _MOST_TOLD} more" if len(failures) > _MOST_TOLD else ""
    return BatchWriteError(f"{len(failures)} of {count} messages could not be written: {told}{more}", failures)


def _key(message: Message[Any]) -> str:
    text = repr(message.key)
    return text if len(text) <= _LONGEST_KEY else f"{text[:_LONGEST_KEY]}..."


def _cause(error: Exception) -> str:
    """What went wrong without values of the row, which texts of drivers have."""
    if not isinstance(error, DBAPIError):
        # Our own and SQLAlchemy's texts have none; what a hook raised is the user's to word.
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = [
        f"{what} {name!r}"
        for what in ("constraint", "column")
        if (name := getattr(error.orig, f"{what}_name", None)) is not None
    ]
    return ", ".join([_kind(error), *where])


def _kind(error: Exception) -> str:
    state = sql_state(error)
    return type(error).__name__ if state is None else f"{type(error).__name__} {state}"

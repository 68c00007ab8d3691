"""What a database's error means for whoever has to go on: try again, wait for the database, or look at the rows.

Nothing here parses messages: it goes by SQLSTATE (PostgreSQL), error number (MySQL, MariaDB) and result code (SQLite).
An error that is neither transient nor away lies in the rows or in the statement.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from deimos_async.errors import DatabaseError

__all__ = ["conflict", "is_away", "is_transient", "sql_state"]

_TRANSIENT = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available, lock_timeout too
        "1020",  # MariaDB with innodb_snapshot_isolation: the row changed since this transaction's snapshot
        "1205",  # lock wait timeout
        "1213",  # deadlock
    }
)
_TRANSIENT_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED")  # and their extended codes, as SQLITE_BUSY_SNAPSHOT

_AWAY = frozenset(
    {
        "25P03", "25P04",  # a transaction was idle, or took, too long: its connection is closed
        "25006",  # read_only_sql_transaction: a standby, or a primary that was demoted
        "57P01", "57P02", "57P03", "57P04", "57P05",  # shutdown, crash, starting, database dropped, idle time-out
        "1021", "1030", "1037", "1038", "1041", "1114",  # disk full, storage engine, out of memory, table full
        "1040", "1203", "1226",  # too many connections, of all or of this user
        "1042", "1053", "1077", "1079", "1927",  # host unreachable, shutting down, connection killed
        "1152", "1158", "1159", "1160", "1161", "1184",  # connection aborted
        "1290", "1836",  # read only
        "2002", "2003", "2005", "2006", "2012", "2013", "2014", "2027", "2055", "4031",  # lost, or never made
    }
)  # fmt: skip
_AWAY_CLASSES = ("08", "53", "58")  # connection, insufficient resources, system error: of five-character states only
_AWAY_SQLITE = ("SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM", "SQLITE_READONLY")


def sql_state(error: BaseException) -> str | None:
    """How the database itself names an error, SQLAlchemy's or the driver's; None when it said nothing.

    Returns:
        PostgreSQL: the five characters of SQLSTATE (`40P01`). MySQL and MariaDB: the error number (`1213`), which
        says more than their SQLSTATE. SQLite: the name of the extended result code (`SQLITE_BUSY_SNAPSHOT`).
    """
    for candidate in _layers(error):
        # PyMySQL and asyncmy number their errors in `args`, as OSError does, so go by their common root.
        if candidate.args and isinstance(candidate.args[0], int) and _is_mysql(candidate):
            return str(candidate.args[0])
        state = getattr(candidate, "sqlstate", None) or getattr(candidate, "sqlite_errorname", None)
        if isinstance(state, str):
            return state
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction, run again from its start, may well succeed: deadlock, serialization failure, lock
    not had in time.

    After it the transaction must be rolled back as a whole: MySQL and MariaDB have ended a deadlock's victim with all
    its savepoints.
    """
    state = sql_state(error)
    return state is not None and (state in _TRANSIENT or state.startswith(_TRANSIENT_SQLITE))


def conflict(error: BaseException) -> DatabaseError:
    """What to raise from a transient error: a `DatabaseError` with `retriable` true."""
    raised = DatabaseError(
        f"the transaction lost against another one ({sql_state(error)}) and was rolled back; it is to be run again"
    )
    raised.retriable = True
    return raised


def is_away(error: BaseException) -> bool:
    """Whether the database cannot be reached, or cannot work at the moment, whatever is asked of it.

    Connection lost or refused, no connection free in the pool, server shutting down, read only, out of room. Ask only
    about errors of database calls: any `OSError` counts as a connection that could not be made.
    """
    if isinstance(error, OSError | PoolTimeoutError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, DBAPIError) and isinstance(error.orig, OSError):
        return True
    state = sql_state(error)
    if state is None:
        return False
    if state.startswith("SQLITE_"):
        return state.startswith(_AWAY_SQLITE)
    return state in _AWAY or (len(state) == 5 and state.startswith(_AWAY_CLASSES))


def _layers(error: BaseException) -> Iterator[BaseException]:
    """The error, what SQLAlchemy wraps, and what its adapter for an async driver wraps in turn."""
    yield error
    inner = error.orig if isinstance(error, DBAPIError) else None
    if inner is not None:
        yield inner
        if inner.__cause__ is not None:
            yield inner.__cause__


def _is_mysql(error: BaseException) -> bool:
    return any(cls.__name__ == "MySQLError" for cls in type(error).__mro__)

"""What errors of a database mean, by what the drivers put into them."""

from __future__ import annotations

import errno
import sqlite3

import asyncpg
import pymysql
import pytest
from sqlalchemy import exc

from deimos_async.database.errors import is_away, is_transient, sql_state


def of_postgresql(state: str) -> exc.DBAPIError:
    error = asyncpg.PostgresError("text")
    error.sqlstate = state
    return exc.OperationalError("INSERT", None, error)


def of_mysql(number: int) -> exc.DBAPIError:
    return exc.OperationalError("INSERT", None, pymysql.OperationalError(number, "text"))


def of_sqlite(name: str) -> exc.DBAPIError:
    error = sqlite3.OperationalError("text")
    error.sqlite_errorname = name
    return exc.OperationalError("INSERT", None, error)


TRANSIENT = [
    of_postgresql("40001"),
    of_postgresql("40P01"),
    of_postgresql("55P03"),
    of_mysql(1020),
    of_mysql(1205),
    of_mysql(1213),
    of_sqlite("SQLITE_BUSY"),
    of_sqlite("SQLITE_BUSY_SNAPSHOT"),
    of_sqlite("SQLITE_LOCKED_SHAREDCACHE"),
]
AWAY = [
    of_postgresql("08006"),
    of_postgresql("25006"),
    of_postgresql("53300"),
    of_postgresql("57P01"),
    of_postgresql("57P03"),
    of_postgresql("58030"),
    of_mysql(1040),
    of_mysql(1053),
    of_mysql(1290),
    of_mysql(2003),
    of_mysql(2006),
    of_mysql(2013),
    of_sqlite("SQLITE_CANTOPEN"),
    of_sqlite("SQLITE_IOERR_WRITE"),
    of_sqlite("SQLITE_FULL"),
    exc.TimeoutError("no connection is free"),
    OSError(errno.ECONNREFUSED, "refused"),
    TimeoutError(),
    exc.OperationalError("INSERT", None, OSError(errno.EPIPE, "broken")),
    exc.InterfaceError("INSERT", None, ValueError("closed"), connection_invalidated=True),
]
ROWS_OR_STATEMENT = [
    of_postgresql("22001"),
    of_postgresql("23505"),
    of_postgresql("42P01"),
    of_postgresql("57014"),
    of_mysql(1062),
    of_mysql(1153),
    of_mysql(1406),
    of_sqlite("SQLITE_CONSTRAINT_UNIQUE"),
    exc.StatementError("a value does not fit", None, None, LookupError("x")),
    exc.DataError("INSERT", None, OverflowError("too large")),
    ValueError("something else"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=sql_state)
def test_transient_errors_are_no_reason_to_wait_for_the_database(error: Exception) -> None:
    assert (is_transient(error), is_away(error)) == (True, False)


@pytest.mark.parametrize("error", AWAY, ids=lambda error: sql_state(error) or type(error).__name__)
def test_database_that_is_away_is_not_transient(error: Exception) -> None:
    assert (is_transient(error), is_away(error)) == (False, True)


@pytest.mark.parametrize("error", ROWS_OR_STATEMENT, ids=lambda error: sql_state(error) or type(error).__name__)
def test_errors_of_rows_and_statements_are_neither(error: Exception) -> None:
    assert (is_transient(error), is_away(error)) == (False, False)


def test_state_is_found_under_the_adapter_s_error() -> None:
    adapted = Exception("an adapter's error that names no state")
    adapted.__cause__ = asyncpg.exceptions.DeadlockDetectedError("deadlock")
    assert sql_state(exc.OperationalError("INSERT", None, adapted)) == "40P01"


def test_state_of_a_driver_s_own_error_and_of_none() -> None:
    assert sql_state(asyncpg.exceptions.UniqueViolationError("twice")) == "23505"
    assert sql_state(pymysql.IntegrityError(1062, "twice")) == "1062"
    assert sql_state(OSError(1213, "an operating system's number")) is None
    assert sql_state(ValueError()) is None

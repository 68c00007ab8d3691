"""Leases, cursors and failures of pollers in `deimos_poll_info` and `deimos_poll_failures` (port `PollStore`).

All of it goes through one connection of the worker's own, where each statement commits by itself.

Which transactions are open is asked of the database. PostgreSQL: `pg_stat_activity` and `pg_prepared_xacts`; other
users' sessions show theirs to members of `pg_read_all_stats`. MySQL and MariaDB: `information_schema.innodb_trx`, with
the right PROCESS. One that has written counts as long as it is open. One that has only read so far may still write rows
that bear its start (`now()` of PostgreSQL is that), so it counts for a minute; beyond it, a report that takes hours
would hold up every poller for nothing. SQLite has one writer: whoever gets its lock knows that there is none.
"""

# ruff: noqa: S608 - statements are put together from constants; values are always bound

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.direct import DirectConnection, Kind
from deimos_async.database.errors import sql_state
from deimos_async.database.polling.protocol import Bounds, Chunk, FailedRow, PollRow, Position
from deimos_async.database.tables import LONGEST_CLASS, LONGEST_ERROR
from deimos_async.errors import ConfigurationError, DatabaseError

__all__ = ["SqlPollStore"]

_INFO = "deimos_poll_info"
_FAILURES = "deimos_poll_failures"
_ANSWER = 10.0
"""Seconds that an answer may take at least: SQLite itself waits for five for another writer."""
_DONE = "done"
"""State of a chunk of a backfill that has come to its end."""
_READER_PATIENCE = 60
"""Seconds for which a transaction counts that has not written anything."""
_MYSQL_CACHE = timedelta(milliseconds=200)
"""By how much its list of transactions may be old: it is kept for 100 ms."""
_SQLITE_TIME = "(strftime('%Y-%m-%d %H:%M:%f', 'now'{}) || '000')"
"""As SQLAlchemy writes times, so that they compare as text."""
_MISSING = {"42P01", "1146"}
"""What PostgreSQL and MySQL say where there is no such table."""


class _Postgresql:
    now = "clock_timestamp()"
    plain_later = "((clock_timestamp() + make_interval(secs => {})) AT TIME ZONE 'UTC')"
    later = "clock_timestamp() + make_interval(secs => {})"
    rested = "EXTRACT(EPOCH FROM (clock_timestamp() AT TIME ZONE 'UTC') - last_sent)::float8"
    unless_there = "ON CONFLICT DO NOTHING"

    @staticmethod
    def place(number: int) -> str:
        return f"${number}"

    @staticmethod
    def span(seconds: float) -> Any:
        return float(seconds)


class _Mysql:
    now = "UTC_TIMESTAMP(6)"
    plain_later = "(UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND)"
    later = plain_later
    rested = "TIMESTAMPDIFF(MICROSECOND, last_sent, UTC_TIMESTAMP(6)) / 1000000"
    unless_there = "ON DUPLICATE KEY UPDATE epoch = epoch"  # IGNORE would warn

    @staticmethod
    def place(number: int) -> str:
        return "%s"

    @staticmethod
    def span(seconds: float) -> Any:
        return round(seconds * 1_000_000)


class _Sqlite:
    now = _SQLITE_TIME.format("")
    plain_later = _SQLITE_TIME.format(", {}")
    later = plain_later
    rested = "(julianday('now') - julianday(last_sent)) * 86400.0"
    unless_there = "ON CONFLICT DO NOTHING"

    @staticmethod
    def place(number: int) -> str:
        return "?"

    @staticmethod
    def span(seconds: float) -> Any:
        return f"{seconds:+.3f} seconds"


_DIALECTS: dict[Kind, type[_Postgresql] | type[_Mysql] | type[_Sqlite]] = {
    "postgresql": _Postgresql,
    "mysql": _Mysql,
    "sqlite": _Sqlite,
}

_POSTGRESQL_BOUNDS = f"""
SELECT clock_timestamp(),
  least(
    (SELECT min(xact_start) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND backend_type IS DISTINCT FROM 'autovacuum worker'
       AND (backend_xid IS NOT NULL OR xact_start > clock_timestamp() - interval '{_READER_PATIENCE} seconds')),
    (SELECT min(prepared) - interval '{_READER_PATIENCE} seconds' FROM pg_prepared_xacts
       WHERE database = current_database())
  ),
  NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND query = '<insufficient privilege>')
"""
_MYSQL_BOUNDS = f"""
SELECT UTC_TIMESTAMP(6), (SELECT TIMESTAMPDIFF(SECOND, MIN(trx_started), SYSDATE()) FROM information_schema.innodb_trx
  WHERE trx_mysql_thread_id <> CONNECTION_ID()
  AND (trx_rows_modified > 0 OR trx_started > SYSDATE() - INTERVAL {_READER_PATIENCE} SECOND))
"""


class SqlPollStore:
    """Rows of pollers in the application's database.

    Args:
        engine: The application's.
        worker: Id of this worker; no other one, in whatever process, has it. At most 64 letters, digits and hyphens.
        ttl: Seconds that a lease lasts without being renewed.

    Raises:
        ConfigurationError: The engine's driver is not known, or its sessions share one connection.
    """

    def __init__(self, engine: AsyncEngine, *, worker: str, ttl: float) -> None:
        self._connection = DirectConnection(engine, timeout=max(ttl, _ANSWER))
        self._worker = worker
        self._dialect = _DIALECTS[self._connection.kind]
        self._ttl = self._dialect.span(ttl)

    # --- the connection ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; see the port."""
        # Starts of transactions are in the server's own zone, and so must be what they are compared with.
        setup = ("SET SESSION time_zone = 'SYSTEM'",) if self._connection.kind == "mysql" else ()
        await self._connection.open(*setup)
        for table in (_INFO, _FAILURES):
            try:
                await self._connection.fetch(f"SELECT id FROM {table} WHERE 1 = 0")
            except DatabaseError as error:
                cause = error.__cause__
                missing = cause is not None and (sql_state(cause) in _MISSING or "no such table" in str(cause))
                if not missing:
                    raise
                await self.close()
                raise ConfigurationError(
                    f"table {table!r} is missing; run `python -m deimos_async migrate APP`"
                ) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    # --- leases and cursors ------------------------------------------------------------------------------------

    async def add(self, name: str, *, producer: str, known_as: Sequence[str], at_end: bool) -> None:
        """Make a poller's row; see the port."""
        place = self._dialect.place
        rows = await self._connection.fetch(f"SELECT 1 FROM {_INFO} WHERE name = {place(1)} AND chunk = 0", name)
        if rows:
            return
        position = await self._position_of_deimos(known_as)
        if position is None and at_end:
            position = Position((await self._now()).replace(tzinfo=None).isoformat(" "), None)
        time, key = (None, None) if position is None else position
        places = ", ".join(place(number) for number in range(1, 5))
        await self._connection.execute(
            f"INSERT INTO {_INFO} (producer, name, cursor_time, cursor_key, chunk, epoch) VALUES ({places}, 0, 0) "
            f"{self._dialect.unless_there}",
            producer,
            name,
            time,
            key,
        )

    async def _position_of_deimos(self, known_as: Sequence[str]) -> Position | None:
        """Deimos counts the digits of a key; it begins in the year 0, or -1, which is no time of ours."""
        for name in known_as:
            rows = await self._connection.fetch(
                f"SELECT last_sent, last_sent_id FROM {_INFO} WHERE name IS NULL "
                f"AND producer = {self._dialect.place(1)}",
                name,
            )
            for last_sent, last_id in rows:
                time = str(last_sent or "")
                if time > "1000":
                    return Position(time, None if last_id is None else f'[["int", {int(last_id)}]]')
        return None

    async def look(self, ahead: float) -> Sequence[PollRow]:
        """Every poller's row; see the port."""
        rows = await self._connection.fetch(
            f"SELECT name, epoch, CASE WHEN owner IS NOT NULL AND expires_at > {self._dialect.now} THEN 1 ELSE 0 END, "
            f"{self._dialect.rested}, cursor_time, cursor_key FROM {_INFO} WHERE name IS NOT NULL AND chunk = 0"
        )
        return [
            PollRow(
                name,
                int(epoch),
                bool(leased),
                None if rested is None else float(rested) + ahead,
                None if time is None else Position(time, key),
            )
            for name, epoch, leased, rested, time, key in rows
        ]

    async def acquire(self, name: str, epoch: int, chunk: int = 0) -> int | None:
        """Take a poller; see the port."""
        dialect = self._dialect
        taken = await self._connection.execute(
            f"UPDATE {_INFO} SET owner = {dialect.place(1)}, epoch = epoch + 1, "
            f"expires_at = {dialect.later.format(dialect.place(2))} WHERE name = {dialect.place(3)} "
            f"AND chunk = {dialect.place(4)} AND epoch = {dialect.place(5)} "
            f"AND (owner IS NULL OR expires_at <= {dialect.now})",
            self._worker,
            self._ttl,
            name,
            chunk,
            epoch,
        )
        return epoch + 1 if taken else None

    async def renew(self) -> None:
        """Let all leases of this worker last."""
        dialect = self._dialect
        await self._connection.execute(
            f"UPDATE {_INFO} SET expires_at = {dialect.later.format(dialect.place(1))} "
            f"WHERE owner = {dialect.place(2)}",
            self._ttl,
            self._worker,
        )

    async def save(self, name: str, epoch: int, position: Position | None, chunk: int = 0) -> bool:
        """Set the cursor; see the port."""
        place = self._dialect.place
        time, key = (None, None) if position is None else position
        return bool(
            await self._connection.execute(
                f"UPDATE {_INFO} SET cursor_time = {place(1)}, cursor_key = {place(2)} {self._mine(3)}",
                time,
                key,
                *self._me(name, epoch, chunk),
            )
        )

    async def finish(self, name: str, epoch: int, ahead: float, *, release: bool) -> bool:
        """A run has ended; see the port."""
        dialect = self._dialect
        freed = ", owner = NULL, expires_at = NULL" if release else ""
        return bool(
            await self._connection.execute(
                f"UPDATE {_INFO} SET last_sent = {dialect.plain_later.format(dialect.place(1))}{freed} {self._mine(2)}",
                dialect.span(ahead),
                *self._me(name, epoch),
            )
        )

    async def release(self, name: str, epoch: int, chunk: int = 0, *, done: bool = False) -> None:
        """Give a lease up; see the port."""
        state = f", state = '{_DONE}'" if done else ""
        await self._connection.execute(
            f"UPDATE {_INFO} SET owner = NULL, expires_at = NULL{state} {self._mine(1)}", *self._me(name, epoch, chunk)
        )

    async def chunks(self, name: str) -> Sequence[Chunk]:
        """Parts of a backfill; see the port."""
        rows = await self._connection.fetch(
            f"SELECT chunk, epoch, CASE WHEN owner IS NOT NULL AND expires_at > {self._dialect.now} THEN 1 ELSE 0 END, "
            f"state, range_from, range_to, cursor_key FROM {_INFO} WHERE name = {self._dialect.place(1)} "
            "AND chunk <> 0 ORDER BY chunk",
            name,
        )
        return [
            Chunk(int(number), int(epoch), bool(leased), state == _DONE, first, last, key)
            for number, epoch, leased, state, first, last, key in rows
        ]

    async def begin_chunks(self, name: str) -> None:
        """Make the list of a backfill; see the port."""
        await self._connection.execute(
            f"INSERT INTO {_INFO} (producer, name, chunk, epoch) VALUES ('', {self._dialect.place(1)}, -1, 0) "
            f"{self._dialect.unless_there}",
            name,
        )

    async def add_chunk(self, name: str, number: int, *, first: str | None, last: str | None, epoch: int) -> bool:
        """Make a part of a backfill; see the port."""
        place = self._dialect.place
        return bool(
            await self._connection.execute(
                f"INSERT INTO {_INFO} (producer, name, chunk, range_from, range_to, epoch) "
                f"SELECT '', name, {int(number)}, {place(1)}, {place(2)}, 0 FROM {_INFO} {self._mine(3)}",
                first,
                last,
                *self._me(name, epoch, -1),
            )
        )

    async def forget_chunks(self, name: str, *, listed_only: bool = False) -> None:
        """Delete a backfill; see the port."""
        which = "chunk > 0" if listed_only else "chunk <> 0"
        await self._connection.execute(f"DELETE FROM {_INFO} WHERE name = {self._dialect.place(1)} AND {which}", name)

    def _mine(self, first: int) -> str:
        place = self._dialect.place
        return (
            f"WHERE name = {place(first)} AND owner = {place(first + 1)} AND epoch = {place(first + 2)} "
            f"AND chunk = {place(first + 3)}"
        )

    def _me(self, name: str, epoch: int, chunk: int = 0) -> tuple[str, str, int, int]:
        return name, self._worker, epoch, chunk

    # --- time --------------------------------------------------------------------------------------------------

    async def _now(self) -> datetime:
        return _aware((await self._connection.fetch(f"SELECT {self._dialect.now}"))[0][0])

    async def bounds(self) -> Bounds:
        """The time, and the transactions that are open; see the port."""
        if self._connection.kind == "postgresql":
            ((now, oldest, is_certain),) = await self._connection.fetch(_POSTGRESQL_BOUNDS)
            return Bounds(_aware(now), None if oldest is None else _aware(oldest), bool(is_certain))
        if self._connection.kind == "sqlite":
            now = await self._now()
            # Met no row, but had the writer's lock: whoever was writing at that time has ended.
            await self._connection.execute(f"UPDATE {_INFO} SET epoch = epoch WHERE id < 0")
            return Bounds(now, None, is_certain=True)
        try:
            ((found, age),) = await self._connection.fetch(_MYSQL_BOUNDS)
        except DatabaseError as error:
            # 1227: the right PROCESS is missing
            if error.__cause__ is None or sql_state(error.__cause__) != "1227":
                raise
            return Bounds(await self._now(), None, is_certain=False)
        now = _aware(found)
        # Starts are kept in whole seconds.
        oldest = now - (_MYSQL_CACHE if age is None else timedelta(seconds=int(age) + 1))
        return Bounds(now, oldest, is_certain=True)

    async def digits(self, schema: str | None, table: str, column: str) -> int:
        """Digits of seconds that a column keeps; see the port."""
        if self._connection.kind == "sqlite":
            return 0  # its times are text, as long as whoever wrote them liked
        own = "current_schema()" if self._connection.kind == "postgresql" else "DATABASE()"
        place = self._dialect.place
        where = own if schema is None else place(3)
        rows = await self._connection.fetch(
            "SELECT datetime_precision FROM information_schema.columns "
            f"WHERE table_name = {place(1)} AND column_name = {place(2)} AND table_schema = {where}",
            table,
            column,
            *([] if schema is None else [schema]),
        )
        return int(rows[0][0] or 0) if rows else 0

    # --- failures ----------------------------------------------------------------------------------------------

    async def failures(self, name: str, ahead: float) -> Sequence[FailedRow]:
        """Rows that could not be sent; see the port."""
        dialect = self._dialect
        rows = await self._connection.fetch(
            "SELECT id, record_key, producers, attempts, "
            f"CASE WHEN next_at <= {dialect.later.format(dialect.place(1))} THEN 1 ELSE 0 END "
            f"FROM {_FAILURES} WHERE poller = {dialect.place(2)} ORDER BY id",
            dialect.span(ahead),
            name,
        )
        return [FailedRow(int(id), key, by, int(attempts), bool(due)) for id, key, by, attempts, due in rows]

    async def record(
        self, name: str, key: str, producers: str, *, attempts: int, delay: float, error_class: str, text: str
    ) -> None:
        """Remember a row; see the port."""
        dialect = self._dialect
        place, later = dialect.place, dialect.later.format
        values = (
            producers,
            attempts,
            dialect.span(delay),
            error_class[:LONGEST_CLASS],
            text[:LONGEST_ERROR],
            name,
            key,
        )
        if await self._connection.execute(
            f"UPDATE {_FAILURES} SET producers = {place(1)}, attempts = {place(2)}, next_at = {later(place(3))}, "
            f"error_class = {place(4)}, error_message = {place(5)} "
            f"WHERE poller = {place(6)} AND record_key = {place(7)}",
            *values,
        ):
            return
        await self._connection.execute(
            f"INSERT INTO {_FAILURES} (producers, attempts, next_at, error_class, error_message, poller, record_key, "
            f"first_failed_at) VALUES ({place(1)}, {place(2)}, {later(place(3))}, {place(4)}, {place(5)}, {place(6)}, "
            f"{place(7)}, {dialect.now})",
            *values,
        )

    async def forget(self, name: str, key: str) -> None:
        """Remember a row no more."""
        place = self._dialect.place
        await self._connection.execute(
            f"DELETE FROM {_FAILURES} WHERE poller = {place(1)} AND record_key = {place(2)}", name, key
        )


def _aware(found: Any) -> datetime:
    moment = found if isinstance(found, datetime) else datetime.fromisoformat(found)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

"""Leases in the table `kafka_topic_info` (port `SlotLeases`): its rows `slot-0`, `slot-1` and so on are the slots.

Every time is the database's own. A lease has an epoch that grows with each owner: who wants to take a slot says what it
has seen, and of two who do so one is told. Rows `worker-<id>` say who lives. Where the database has locks of a session,
a worker holds one as long as its connection lives; what it is good for is told in `deimos_async.outbox.shares`.

Behind a pooler that hands connections out by the transaction such a lock says nothing. The worker then finds that its
session is not the one that holds the lock, and says so in its row (`epoch` 0 instead of 1).
"""

# ruff: noqa: S608 - statements are put together from constants; values are always bound

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.direct import DirectConnection, Kind
from deimos_async.database.outbox.protocol import LeaseTable, SlotRow, WorkerRow
from deimos_async.errors import ConfigurationError, DatabaseError

__all__ = ["SqlSlotLeases"]

_TABLE = "kafka_topic_info"
_LAYOUT = "layout"
_FORGET = 60
"""Seconds after which the row of a worker that has died is deleted."""
_SPACE = 0x64656973
"""First half of the keys of our advisory locks in PostgreSQL; the second one is made from the worker's id."""
_SQLITE_TIME = "(strftime('%Y-%m-%d %H:%M:%f', 'now'{}) || '000')"
"""As SQLAlchemy writes times, so that they compare as text."""


class _Postgresql:
    now = "clock_timestamp()"
    plain_now = "(clock_timestamp() AT TIME ZONE 'UTC')"
    later = "clock_timestamp() + make_interval(secs => {})"
    forgotten = f"clock_timestamp() - interval '{_FORGET} seconds'"
    unless_there = "ON CONFLICT DO NOTHING"
    lock = f"SELECT pg_try_advisory_lock({_SPACE}, hashtext($1))"
    held = (
        "locks AS MATERIALIZED (SELECT objid::int8 AS id, pid FROM pg_locks WHERE locktype = 'advisory' "
        f"AND classid::int8 = {_SPACE} AND objsubid = 2 AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
    )
    mine = "(SELECT count(*) FROM locks WHERE pid = pg_backend_pid() AND id = (hashtext({})::int8 & 4294967295))"
    is_free = "NOT EXISTS (SELECT FROM locks WHERE id = (hashtext(locked_by)::int8 & 4294967295))"

    @staticmethod
    def place(number: int) -> str:
        return f"${number}"

    @staticmethod
    def lasting(ttl: float) -> Any:
        return ttl


class _Mysql:
    now = "UTC_TIMESTAMP(6)"
    plain_now = now
    later = "UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND"
    forgotten = f"UTC_TIMESTAMP(6) - INTERVAL {_FORGET} SECOND"
    unless_there = "ON DUPLICATE KEY UPDATE topic = topic"  # IGNORE would warn
    lock = "SELECT GET_LOCK(CONCAT('deimos-outbox:', %s), 0)"
    mine = "COALESCE(IS_USED_LOCK(CONCAT('deimos-outbox:', {})) = CONNECTION_ID(), 0)"
    is_free = "IS_FREE_LOCK(CONCAT('deimos-outbox:', locked_by))"

    @staticmethod
    def place(number: int) -> str:
        return "%s"

    @staticmethod
    def lasting(ttl: float) -> Any:
        return round(ttl * 1_000_000)


class _Sqlite:
    now = _SQLITE_TIME.format("")
    plain_now = now
    later = _SQLITE_TIME.format(", {}")
    forgotten = _SQLITE_TIME.format(f", '-{_FORGET} seconds'")
    unless_there = "ON CONFLICT DO NOTHING"
    lock = ""
    mine = "CASE WHEN {} IS NULL THEN 1 ELSE 0 END"  # never: there are no locks
    is_free = "0"

    @staticmethod
    def place(number: int) -> str:
        return f"?{number}"

    @staticmethod
    def lasting(ttl: float) -> Any:
        return f"+{ttl:.3f} seconds"


_DIALECTS: dict[Kind, type[_Postgresql] | type[_Mysql] | type[_Sqlite]] = {
    "postgresql": _Postgresql,
    "mysql": _Mysql,
    "sqlite": _Sqlite,
}


class SqlSlotLeases:
    """The slots of one outbox, for one worker.

    Args:
        engine: The application's.
        worker: Id of this worker; no other one, in whatever process, has it. At most 40 letters, digits and hyphens.
        slots: How many slots there are.
        layout: How rows are spread over them; a table with another layout is refused.
        ttl: Seconds that a lease lasts without being renewed.
        notice: Channel and text by which PostgreSQL tells others that a slot is free; None: nobody is told.

    Raises:
        ConfigurationError: The engine's driver is not known, or its sessions share one connection.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        worker: str,
        slots: int,
        layout: str,
        ttl: float,
        notice: tuple[str, str] | None = None,
    ) -> None:
        self._notice = notice
        self._connection = DirectConnection(engine, timeout=ttl)
        self._worker = worker
        self._slots = slots
        self._layout = layout
        self._lasting = _DIALECTS[self._connection.kind].lasting(ttl)
        self._statements = _Statements(self._connection.kind, slots)

    @property
    def has_locks(self) -> bool:
        """Whether others see the end of this worker's connection before its leases expire."""
        return bool(self._statements.lock)

    async def join(self) -> None:
        """Connect, and be one of the workers; see the port."""
        await self._connection.open()
        try:
            await self._insert(_LAYOUT, self._layout)
            rows = await self._connection.fetch(f"SELECT topic, locked_by FROM {_TABLE}")
            owners = {row[0]: row[1] for row in rows}
            if owners[_LAYOUT] != self._layout:
                raise ConfigurationError(
                    f"the outbox of this database is laid out as {owners[_LAYOUT]!r}, this version wants "
                    f"{self._layout!r}; all processes must use versions with the same layout"
                )
            for name in (f"slot-{number}" for number in range(self._slots)):
                if name not in owners:
                    await self._insert(name, None)
            if self._statements.lock:
                await self._connection.fetch(self._statements.lock, self._worker)
            await self._insert(f"worker-{self._worker}", self._worker)
            await self.look(renew=True)
        except BaseException:
            await self._connection.close()
            raise

    async def look(self, *, renew: bool) -> LeaseTable:
        """Every slot and every worker; see the port. One statement, on MySQL and SQLite two where it renews."""
        statements = self._statements
        renewal = (self._lasting, f"worker-{self._worker}", self._worker, self._worker)
        if not renew:
            rows = await self._connection.fetch(statements.look)
        elif statements.renew_and_look is not None:
            rows = await self._connection.fetch(statements.renew_and_look, *renewal)
        else:
            await self._connection.execute(statements.renew, *renewal)
            rows = await self._connection.fetch(statements.look)
        slots: list[SlotRow] = []
        workers: list[WorkerRow] = []
        for name, owner, epoch, lasts, is_free in rows:
            kind, _, rest = name.partition("-")
            if kind == "slot":
                slots.append(SlotRow(int(rest), owner, int(epoch), bool(lasts)))
            else:
                workers.append(WorkerRow(rest, bool(lasts), bool(epoch) and bool(is_free)))
        return LeaseTable(sorted(slots), sorted(workers))

    async def acquire(self, slot: int, *, owner: str | None, epoch: int) -> int | None:
        """Take a slot that is still as it was seen; see the port."""
        seen = (self._worker, self._lasting, f"slot-{slot}", epoch)
        if owner is None:
            taken = await self._connection.execute(self._statements.acquire_free, *seen)
        else:
            taken = await self._connection.execute(self._statements.acquire_from, *seen, owner)
        return epoch + 1 if taken else None

    async def release(self, slot: int, *, epoch: int) -> None:
        """Give a slot up, if it is still this worker's."""
        await self._connection.execute(self._statements.release, f"slot-{slot}", self._worker, epoch)
        await self._tell()

    async def forget_dead(self) -> None:
        """Delete the rows of workers that died a while ago."""
        await self._connection.execute(self._statements.forget)

    async def leave(self) -> None:
        """Be no worker any more, and close the connection; see the port."""
        try:
            if self._connection.is_usable:
                await self._connection.execute(self._statements.leave, f"worker-{self._worker}")
                await self._tell()
        except DatabaseError:
            pass  # the row expires by itself
        finally:
            await self._connection.close()

    async def close(self) -> None:
        """Close the connection, and with it what it has locked; leases last until they expire."""
        await self._connection.close()

    async def _tell(self) -> None:
        if self._notice is not None and self._connection.kind == "postgresql":
            await self._connection.fetch("SELECT pg_notify($1, $2)", *self._notice)

    async def _insert(self, name: str, owner: str | None) -> None:
        await self._connection.execute(self._statements.insert, name, owner)


class _Statements:
    """Of one kind of database. Values are given in the order of their places."""

    def __init__(self, kind: Kind, slots: int) -> None:
        dialect = _DIALECTS[kind]
        one, two, three, four, five = map(dialect.place, range(1, 6))
        later = dialect.later.format
        no = "false" if kind == "postgresql" else "0"
        self.lock = dialect.lock
        self.insert = (
            f"INSERT INTO {_TABLE} (topic, locked_by, error, retries, epoch) VALUES ({one}, {two}, {no}, 0, 0) "
            f"{dialect.unless_there}"
        )
        names = ", ".join(f"'slot-{number}'" for number in range(slots))
        self.look = (
            f"SELECT topic, locked_by, epoch, CASE WHEN expires_at > {dialect.now} THEN 1 ELSE 0 END, "
            f"CASE WHEN topic LIKE 'worker-%' AND epoch = 1 AND {dialect.is_free} THEN 1 ELSE 0 END "
            f"FROM {_TABLE} WHERE topic IN ({names}) OR topic LIKE 'worker-%'"
        )
        self.renew = (
            f"UPDATE {_TABLE} SET expires_at = {later(one)}, "
            f"epoch = CASE WHEN topic = {two} THEN {dialect.mine.format(three)} ELSE epoch END "
            f"WHERE locked_by = {four}"
        )
        self.renew_and_look: str | None = None
        if kind == "postgresql":
            self.renew_and_look = f"WITH {_Postgresql.held}, renewed AS ({self.renew}) {self.look}"
            self.look = f"WITH {_Postgresql.held} {self.look}"
        acquire = (
            f"UPDATE {_TABLE} SET locked_by = {one}, locked_at = {dialect.plain_now}, epoch = epoch + 1, "
            f"expires_at = {later(two)} WHERE topic = {three} AND epoch = {four} AND locked_by"
        )
        self.acquire_free = f"{acquire} IS NULL"
        self.acquire_from = f"{acquire} = {five}"
        self.release = (
            f"UPDATE {_TABLE} SET locked_by = NULL, expires_at = NULL, last_processed_at = {dialect.plain_now} "
            f"WHERE topic = {one} AND locked_by = {two} AND epoch = {three}"
        )
        self.forget = f"DELETE FROM {_TABLE} WHERE topic LIKE 'worker-%' AND expires_at < {dialect.forgotten}"
        self.leave = f"DELETE FROM {_TABLE} WHERE topic = {one}"

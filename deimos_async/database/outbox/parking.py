"""Rows of the outbox that were put aside: the table `kafka_parked_messages`, the ways into it (port `Parking`) and out.

All of it is rare, so it goes through the engine's own pool and SQLAlchemy. Each move is one transaction: a row is in
one of the two tables at any time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deimos_async.database.connecting import connected
from deimos_async.database.outbox.protocol import Fence, ParkedRow, RowContent, WaitingRow
from deimos_async.database.schema_lock import as_database_error
from deimos_async.database.tables import (
    LONGEST_ERROR,
    kafka_messages,
    kafka_parked_messages,
    kafka_topic_info,
    utc_now,
)
from deimos_async.errors import ConfigurationError, DatabaseError

__all__ = ["ParkedFilter", "ParkedStore"]

_MOVED = [column.name for column in kafka_messages.columns if column.name != "id"]
_MOVED_AT_ONCE = 100
_LOOKED_AT = 1000
"""Rows at the front of the outbox that are looked at for those that wait."""
_NOW = {
    "postgresql": "clock_timestamp()",
    "mysql": "UTC_TIMESTAMP(6)",
    "mariadb": "UTC_TIMESTAMP(6)",
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
}
_ISOLATION = {"sqlite": "SERIALIZABLE"}
_parked = kafka_parked_messages.c
_waiting = kafka_messages.c


@dataclass(frozen=True, slots=True)
class ParkedFilter:
    """Which parked rows are meant: those for which everything given holds.

    Attributes:
        ids: These rows.
        topics: Of these topics, by their names in Kafka.
        codes: Put aside for these reasons.
        since: Put aside then or later; aware.
        until: Put aside before then; aware.
    """

    ids: Collection[int] = ()
    topics: Collection[str] = ()
    codes: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None


class ParkedStore:
    """Parked rows of one database.

    Errors of all calls are `DatabaseError`: `DatabaseUnavailableError` where it cannot be reached, `retriable` where
    the same call may succeed later.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._dialect = engine.dialect.name

    async def check(self) -> None:
        """Whether the database is fit for it.

        Raises:
            ConfigurationError: A table is missing.
        """
        tables = (kafka_messages.name, kafka_parked_messages.name)
        async with self._transaction("its tables cannot be looked at") as connection:
            missing = await connection.run_sync(
                lambda sync: [name for name in tables if not inspect(sync).has_table(name)]
            )
        if missing:
            raise ConfigurationError(
                f"the database has no table {', '.join(missing)}; make it with: python -m deimos_async migrate APP"
            )

    async def park(self, id_: int, *, code: str, text: str, attempts: int, fence: Fence | None) -> bool:
        """Put a row aside; see the port."""
        row = (
            select(
                _waiting.id,
                *(_waiting[name] for name in _MOVED),
                literal(code),
                literal(text.replace("\0", "")[:LONGEST_ERROR]),  # PostgreSQL has no texts with that character
                literal(attempts),
                literal_column(_NOW[self._dialect]),
                true(),
            )
            .where(_waiting.id == id_)
            .where(_waiting.shard.is_not(None))
        )
        lease = None
        if fence is not None:
            info = kafka_topic_info.c
            lease = and_(info.topic == f"slot-{fence.slot}", info.locked_by == fence.worker, info.epoch == fence.epoch)
            row = row.where(exists(select(info.id).where(lease)))
        names = ["id", *_MOVED, "error_code", "error_text", "attempts", "parked_at", "releases_key"]
        async with self._transaction("rows cannot be put aside") as connection:
            if lease is not None and self._dialect != "sqlite":
                # Nobody takes the slot before this is committed. SQLite has one writer, and that is who inserts.
                await connection.execute(select(kafka_topic_info.c.id).where(lease).with_for_update(read=True))
            try:
                moved = await connection.execute(insert(kafka_parked_messages).from_select(names, row))
            except IntegrityError:
                return False  # somebody else puts it aside, too, and was quicker
            if not moved.rowcount:
                return False
            gone = await connection.execute(delete(kafka_messages).where(_waiting.id == id_))
            if not gone.rowcount:
                return False  # it was sent and deleted meanwhile
            await connection.commit()
        return True

    async def counts(self, wanted: ParkedFilter) -> Sequence[tuple[str, str, int]]:
        """How many rows there are, by topic and by code."""
        query = select(_parked.topic, _parked.error_code, func.count()).where(self._matching(wanted))
        query = query.group_by(_parked.topic, _parked.error_code).order_by(_parked.topic, _parked.error_code)
        async with self._transaction("parked rows cannot be counted") as connection:
            return [(topic, code or "", int(count)) for topic, code, count in await connection.execute(query)]

    async def rows(self, wanted: ParkedFilter, *, limit: int | None = None) -> Sequence[ParkedRow]:
        """Rows, the last ones first."""
        query = select(
            _parked.id,
            _parked.topic,
            _parked.message_id,
            _size(_parked),
            func.coalesce(_parked.error_code, ""),
            func.coalesce(_parked.error_text, ""),
            _parked.attempts,
            _parked.parked_at,
        )
        query = query.where(self._matching(wanted)).order_by(_parked.id.desc()).limit(limit)
        async with self._transaction("parked rows cannot be read") as connection:
            found = await connection.execute(query)
            rows = [ParkedRow._make(row) for row in found]
        return [row._replace(parked_at=row.parked_at.replace(tzinfo=UTC)) for row in rows]

    async def waiting(self, *, older_than: float, topics: Collection[str] = ()) -> Sequence[WaitingRow]:
        """Rows at the front of the outbox that have waited for long, the first one of each key, oldest first.

        What blocks its key is among them, beside rows of topics that fail, and whatever waits where no pump runs. Only
        the first rows of the table are looked at.

        Args:
            older_than: Seconds since a row was written.
            topics: Of these topics only, by their names in Kafka.
        """
        columns = (_waiting.id, _waiting.topic, _waiting.message_id, _size(_waiting), _waiting.order_hash)
        now = type_coerce(utc_now(), _waiting.created_at.type)
        query = select(*columns, _waiting.created_at, now).where(_waiting.shard.is_not(None))
        if topics:
            query = query.where(_waiting.topic.in_(topics))
        seen: set[int] = set()
        rows: list[WaitingRow] = []
        async with self._transaction("the outbox cannot be read") as connection:
            for id_, topic, message_id, size, order, written, moment in await connection.execute(
                query.order_by(_waiting.id).limit(_LOOKED_AT)
            ):
                age = (moment - written).total_seconds()
                if order not in seen and age > older_than:
                    rows.append(WaitingRow(id_, topic, message_id, size, age))
                seen.add(order)
        return rows

    async def content(self, id_: int, *, is_parked: bool) -> RowContent | None:
        """What a row carries, parked or in the outbox; None: it is not there."""
        columns: Any = _parked if is_parked else _waiting
        query = select(
            columns.key,
            columns.message,
            columns.order_key,
            columns.partition_key,
            columns.headers,
            columns.kafka_partition,
            columns.timestamp_ms,
        ).where(columns.id == id_)
        async with self._transaction("the row cannot be read") as connection:
            found = (await connection.execute(query)).one_or_none()
        if found is None:
            return None
        key, message, order_key, text, headers, partition, timestamp = found
        partition_key = order_key if order_key is not None or text is None else text.encode()
        return RowContent(key, message, partition_key, headers, partition, timestamp)

    async def waiting_row(self, id_: int) -> WaitingRow | None:
        """A row of the outbox; None: it is not there."""
        now = type_coerce(utc_now(), _waiting.created_at.type)
        columns = (_waiting.id, _waiting.topic, _waiting.message_id, _size(_waiting), _waiting.created_at, now)
        async with self._transaction("the outbox cannot be read") as connection:
            found = (await connection.execute(select(*columns).where(_waiting.id == id_))).one_or_none()
        if found is None:
            return None
        id_, topic, message_id, size, written, moment = found
        return WaitingRow(id_, topic, message_id, size, max(0.0, (moment - written).total_seconds()))

    async def retry(self, ids: Sequence[int]) -> int:
        """Give rows back to the outbox, with new ids, in the order of their old ones: behind what waits there.

        Message ids, and the times at which messages were stored first, stay. Done in transactions of some rows each.

        Returns:
            How many there were.
        """
        count = 0
        for part in _parts(ids):
            async with self._transaction("parked rows cannot be sent again") as connection:
                chosen = await self._locked(connection, part)
                rows = select(*(_parked[name] for name in _MOVED)).where(_parked.id.in_(chosen)).order_by(_parked.id)
                moved = (await connection.execute(insert(kafka_messages).from_select(_MOVED, rows))).rowcount
                gone = (await connection.execute(delete(kafka_parked_messages).where(_parked.id.in_(chosen)))).rowcount
                if moved != gone:
                    error = DatabaseError("parked rows were moved by somebody else meanwhile; these were left alone")
                    error.retriable = True
                    raise error
                await connection.commit()
                count += moved
        return count

    async def drop(self, ids: Sequence[int]) -> int:
        """Delete rows for good, in transactions of some rows each. Returns how many there were."""
        count = 0
        for part in _parts(ids):
            async with self._transaction("parked rows cannot be deleted") as connection:
                count += (await connection.execute(delete(kafka_parked_messages).where(_parked.id.in_(part)))).rowcount
                await connection.commit()
        return count

    async def _locked(self, connection: AsyncConnection, ids: Sequence[int]) -> Sequence[int]:
        query = select(_parked.id).where(_parked.id.in_(ids)).order_by(_parked.id).with_for_update()
        return (await connection.execute(query)).scalars().all()

    def _matching(self, wanted: ParkedFilter) -> ColumnElement[bool]:
        conditions: list[ColumnElement[bool]] = [
            column.in_(values)
            for column, values in (
                (_parked.id, wanted.ids),
                (_parked.topic, wanted.topics),
                (_parked.error_code, wanted.codes),
            )
            if values
        ]
        if wanted.since is not None:
            conditions.append(_parked.parked_at >= self._moment(wanted.since))
        if wanted.until is not None:
            conditions.append(_parked.parked_at < self._moment(wanted.until))
        return and_(true(), *conditions)

    def _moment(self, moment: datetime) -> datetime:
        """As the database takes it: only PostgreSQL knows zones."""
        moment = moment.astimezone(UTC)
        return moment if self._dialect == "postgresql" else moment.replace(tzinfo=None)

    @asynccontextmanager
    async def _transaction(self, problem: str) -> AsyncIterator[AsyncConnection]:
        """A transaction, which is rolled back unless the block commits it.

        Its isolation is said, as an engine may have been made to commit each statement by itself; and with more than
        this, MySQL and MariaDB would lock what lies beside the rows.
        """
        try:
            async with connected(self._engine, problem) as connection:
                await connection.execution_options(isolation_level=_ISOLATION.get(self._dialect, "READ COMMITTED"))
                yield connection
        except DBAPIError as error:
            raise as_database_error(error) from error


def _size(columns: Any) -> ColumnElement[int]:
    """Bytes of a row; one that a Deimos has written does not say."""
    length = func.coalesce(func.length(columns.message), 0) + func.coalesce(func.length(columns.key), 0)
    return func.coalesce(columns.size, length)


def _parts(ids: Sequence[int]) -> Sequence[Sequence[int]]:
    return [ids[first : first + _MOVED_AT_ONCE] for first in range(0, len(ids), _MOVED_AT_ONCE)]

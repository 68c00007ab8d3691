"""The table `kafka_retries` (port `RetryStore`). Nothing of it is on the path of a message that is handled at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    LargeBinary,
    String,
    and_,
    bindparam,
    delete,
    func,
    insert,
    inspect,
    literal,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from deimos_async.database.connecting import connected
from deimos_async.database.errors import is_away, is_transient
from deimos_async.database.offsets import SqlOffsetStore
from deimos_async.database.protocol import Failure, RetryRow, WaitingRow
from deimos_async.database.tables import LONGEST_CLASS, LONGEST_ERROR, kafka_retries
from deimos_async.errors import ConfigurationError
from deimos_async.message import TopicPartition

__all__ = ["SqlRetryStore"]

_table = kafka_retries.c
_LAST_SECOND = 253_402_300_799.0
"""Of the year 9999, beyond which no database keeps a time."""
_CANNOT_STORE = "messages that wait for their next attempt cannot be stored"
_CANNOT_READ = "messages that wait for their next attempt cannot be read"


class SqlRetryStore:
    """Waiting messages in the application's database, beside the stored offsets."""

    def __init__(self, engine: AsyncEngine, offsets: SqlOffsetStore) -> None:
        self._engine = engine
        self._offsets = offsets

    async def check(self) -> None:
        """Whether the table is there.

        Raises:
            ConfigurationError: It is not.
            DatabaseUnavailableError: The database cannot be reached.
        """
        async with connected(self._engine, "its tables cannot be looked at") as connection:
            if not await _has_table(connection):
                raise _missing()

    async def waiting(self, group: str, topic: str, partitions: Iterable[int]) -> Sequence[WaitingRow]:
        """All rows of partitions, without what they say; see the port."""
        rows = (
            select(_table.topic_partition, _table.record_offset, _table.key_hash, _table.next_at)
            .where(
                _table.consumer_group == group,
                _table.topic == topic,
                _table.topic_partition.in_(sorted(partitions)),
            )
            .order_by(_table.topic_partition, _table.record_offset)
        )
        async with connected(self._engine, _CANNOT_READ) as connection:
            try:
                found = (await connection.execute(rows)).all()
            except DBAPIError as error:
                if is_away(error) or is_transient(error):
                    raise
                await connection.rollback()
                if await _has_table(connection):
                    raise
                raise _missing() from error
        return [WaitingRow(partition, offset, hash, _seconds(next_at)) for partition, offset, hash, next_at in found]

    async def count(self, group: str) -> int:
        """Rows of a group; see the port."""
        statement = select(func.count()).select_from(kafka_retries).where(_table.consumer_group == group)
        async with connected(self._engine, _CANNOT_READ) as connection:
            return int((await connection.execute(statement)).scalar_one())

    async def read(self, group: str, partition: TopicPartition, offset: int) -> RetryRow | None:
        """One row; see the port."""
        statement = select(kafka_retries).where(_at(group, partition, offset))
        async with connected(self._engine, _CANNOT_READ) as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else _row(row)

    async def add(self, session: AsyncSession, group: str, rows: Sequence[RetryRow]) -> bool:
        """In the session's transaction; see the port."""
        return await _add(await session.connection(), group, rows)

    async def add_and_move(
        self, group: str, partition: TopicPartition, next_offset: int, end: int, rows: Sequence[RetryRow]
    ) -> bool | None:
        """Both or nothing; see the port."""
        async with connected(self._engine, _CANNOT_STORE) as connection:
            if not await self._offsets.move_on(connection, group, partition, next_offset, end):
                return None
            if not await _add(connection, group, rows):
                return False
            await connection.commit()
            return True

    async def remove(
        self, session: AsyncSession, group: str, partition: TopicPartition, offset: int, attempts: int
    ) -> bool:
        """In the session's transaction; see the port."""
        connection = await session.connection()
        return (await connection.execute(_removal(group, partition, offset, attempts))).rowcount == 1

    async def remove_alone(self, group: str, partition: TopicPartition, offset: int, attempts: int) -> bool:
        """In a transaction of its own; see the port."""
        async with connected(self._engine, "a message that has waited cannot be taken away") as connection:
            removed = (await connection.execute(_removal(group, partition, offset, attempts))).rowcount == 1
            await connection.commit()
            return removed

    async def postpone(
        self, group: str, partition: TopicPartition, offset: int, attempts: int, *, next_at: float, failure: Failure
    ) -> bool:
        """Count an attempt; see the port."""
        statement = (
            update(kafka_retries)
            .where(_at(group, partition, offset), _table.attempts == attempts)
            .values(
                attempts=attempts + 1,
                next_at=_moment(next_at),
                first_failed_at=func.coalesce(
                    _table.first_failed_at, literal(failure.first_at, _table.first_failed_at.type)
                ),
                **_error(failure),
            )
        )
        async with connected(self._engine, _CANNOT_STORE) as connection:
            changed = (await connection.execute(statement)).rowcount == 1
            await connection.commit()
            return changed


# aiomysql cannot write bytes with recent versions of PyMySQL, so they travel as digits.
_BINARY = tuple(column.name for column in _table if isinstance(column.type, LargeBinary))
_INSERT_HEX = insert(kafka_retries).values(
    {
        column.name: func.unhex(bindparam(f"hex_{column.name}", type_=String()))
        if column.name in _BINARY
        else bindparam(f"of_{column.name}")
        for column in _table
    }
)


def _in_hex(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"of_{name}" if name not in _BINARY else f"hex_{name}": value.hex() if isinstance(value, bytes) else value
        for name, value in values.items()
    }


async def _add(connection: AsyncConnection, group: str, rows: Sequence[RetryRow]) -> bool:
    first = rows[0]
    there = select(_table.record_offset, _table.topic_id).where(
        _table.consumer_group == group,
        _table.topic == first.topic,
        _table.topic_partition == first.partition,
        _table.record_offset.in_([row.offset for row in rows]),
    )
    # Nobody else adds rows of this partition meanwhile: its stored offset moves in the same transaction.
    known = {row.record_offset: row.topic_id for row in await connection.execute(there)}
    if any(row.offset in known and known[row.offset] != row.topic_id for row in rows):
        return False
    new = [_values(group, row) for row in rows if row.offset not in known]
    if new and connection.dialect.name in ("mysql", "mariadb"):
        await connection.execute(_INSERT_HEX, [_in_hex(values) for values in new])
    elif new:
        await connection.execute(insert(kafka_retries), new)
    return True


def _at(group: str, partition: TopicPartition, offset: int) -> ColumnElement[bool]:
    return and_(
        _table.consumer_group == group,
        _table.topic == partition.topic,
        _table.topic_partition == partition.partition,
        _table.record_offset == offset,
    )


def _removal(group: str, partition: TopicPartition, offset: int, attempts: int) -> Delete:
    return delete(kafka_retries).where(_at(group, partition, offset), _table.attempts == attempts)


def _values(group: str, row: RetryRow) -> dict[str, Any]:
    return {
        "consumer_group": group,
        "topic": row.topic,
        "topic_partition": row.partition,
        "record_offset": row.offset,
        "topic_id": row.topic_id,
        "key_hash": row.key_hash,
        "record_key": row.key,
        "record_value": row.value,
        "record_headers": _pack(row.headers),
        "record_timestamp": row.timestamp,
        "attempts": row.attempts,
        "next_at": _moment(row.next_at),
        "first_failed_at": None if row.failure is None else row.failure.first_at,
        **_error(row.failure),
    }


def _error(failure: Failure | None) -> dict[str, str | None]:
    if failure is None:
        return {"error_class": None, "error_message": None}
    return {
        "error_class": failure.error_class[:LONGEST_CLASS],
        "error_message": failure.error_message[:LONGEST_ERROR],
    }


def _row(row: Any) -> RetryRow:
    failure = None
    if row.first_failed_at is not None:
        failure = Failure(_aware(row.first_failed_at), row.error_class or "", row.error_message or "")
    return RetryRow(
        topic=row.topic,
        partition=row.topic_partition,
        offset=row.record_offset,
        timestamp=row.record_timestamp,
        key=row.record_key,
        value=row.record_value,
        headers=_unpack(row.record_headers),
        topic_id=row.topic_id,
        key_hash=row.key_hash,
        attempts=row.attempts,
        next_at=_seconds(row.next_at),
        failure=failure,
    )


def _pack(headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    pairs = [[name, None if value is None else base64.b64encode(value).decode("ascii")] for name, value in headers]
    return json.dumps(pairs).encode("ascii")


def _unpack(packed: bytes) -> list[tuple[str, bytes | None]]:
    return [(name, None if value is None else base64.b64decode(value)) for name, value in json.loads(packed)]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _seconds(moment: datetime) -> float:
    return _aware(moment).timestamp()


async def _has_table(connection: AsyncConnection) -> bool:
    return await connection.run_sync(lambda sync: inspect(sync).has_table(kafka_retries.name))


def _missing() -> ConfigurationError:
    return ConfigurationError(
        f"the database has no table {kafka_retries.name!r}, which then='retry_keyed' needs; "
        "make it with: python -m deimos_async migrate APP"
    )

"""The table `kafka_offsets` (port `OffsetStore`).

The statement that moves an offset runs once for each transaction of a handler. It goes to the driver as it is, compiled
once: SQLAlchemy's own way of executing costs more than the database takes for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, and_, bindparam, func, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from deimos_async.database.connecting import commits_by_itself, connected
from deimos_async.database.errors import is_away, is_transient
from deimos_async.database.protocol import Bookmark
from deimos_async.database.tables import kafka_offsets
from deimos_async.errors import ConfigurationError
from deimos_async.message import TopicPartition

__all__ = ["SqlOffsetStore"]

_table = kafka_offsets.c


class SqlOffsetStore:
    """Offsets in the application's database.

    Raises:
        ConfigurationError: The engine cannot hold rows and offset in one transaction.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        if isinstance(engine.sync_engine.pool, StaticPool):
            raise ConfigurationError(
                "delivery='effectively_once' needs transactions that are separate, but all sessions of this engine "
                "share one connection, as with a SQLite database in memory; use a file"
            )
        statement = (
            update(kafka_offsets)
            .where(_at(bindparam("of_group"), bindparam("of_topic"), bindparam("of_partition")))
            .where(_table.next_offset == bindparam("expected"))
            .values(next_offset=bindparam("end"), updated_at=_now(engine.dialect.name))
        )
        compiled = statement.compile(dialect=engine.dialect)
        self._move = str(compiled)
        self._places = compiled.positiontup
        """Names of the parameters in the driver's order; None where it takes them by name."""

    async def check(self) -> None:
        """Whether the database is fit for it.

        Raises:
            ConfigurationError: The table is missing, or the engine commits each statement by itself.
            DatabaseUnavailableError: It cannot be reached.
        """
        async with connected(self.engine, "its tables cannot be looked at") as connection:
            if not await connection.run_sync(lambda sync: inspect(sync).has_table(kafka_offsets.name)):
                raise _missing()
            if await connection.run_sync(commits_by_itself):
                raise ConfigurationError(
                    "delivery='effectively_once' needs transactions, but the engine was made with "
                    "isolation_level='AUTOCOMMIT'; make it without"
                )

    async def read(self, group: str, topic: str) -> Mapping[int, Bookmark]:
        """Rows of a group on a topic; see the port."""
        rows = select(_table.topic_partition, _table.next_offset, _table.topic_id).where(
            _table.consumer_group == group, _table.topic == topic
        )
        async with connected(self.engine, "offsets cannot be read") as connection:
            try:
                found = (await connection.execute(rows)).all()
            except DBAPIError as error:
                if is_away(error) or is_transient(error):
                    raise
                await connection.rollback()
                if await connection.run_sync(lambda sync: inspect(sync).has_table(kafka_offsets.name)):
                    raise
                raise _missing() from error
        return {partition: Bookmark(next_offset, topic_id) for partition, next_offset, topic_id in found}

    async def insert(self, group: str, bookmarks: Mapping[TopicPartition, Bookmark]) -> None:
        """Make rows that do not exist; see the port."""
        for partition, bookmark in sorted(bookmarks.items()):
            row = {
                "consumer_group": group,
                "topic": partition.topic,
                "topic_partition": partition.partition,
                "topic_id": bookmark.topic_id,
                "next_offset": bookmark.next_offset,
                "updated_at": datetime.now(UTC),
            }
            async with connected(self.engine, "an offset cannot be stored") as connection:
                try:
                    await connection.execute(insert(kafka_offsets).values(row))
                    await connection.commit()
                except IntegrityError:
                    await connection.rollback()  # another member was quicker, and says where to go on

    async def replace(self, group: str, partition: TopicPartition, old: Bookmark, new: Bookmark) -> bool:
        """Set a row that is still `old`; see the port."""
        same_id = _table.topic_id.is_(None) if old.topic_id is None else _table.topic_id == old.topic_id
        statement = (
            update(kafka_offsets)
            .where(_at(group, *partition), _table.next_offset == old.next_offset, same_id)
            # `updated_at` changes as well, so that no database takes a row that it has found for one it left alone.
            .values(next_offset=new.next_offset, topic_id=new.topic_id, updated_at=datetime.now(UTC))
        )
        async with connected(self.engine, "an offset cannot be stored") as connection:
            result = await connection.execute(statement)
            await connection.commit()
            return result.rowcount == 1

    async def move(
        self, session: AsyncSession, group: str, partition: TopicPartition, next_offset: int, end: int
    ) -> bool:
        """In the session's transaction; see the port."""
        parameters = self._parameters(group, partition, next_offset, end)

        def move(inner: Session) -> bool:  # at once: each call into SQLAlchemy's greenlet costs
            return inner.connection().exec_driver_sql(self._move, parameters).rowcount == 1

        return await session.run_sync(move)

    async def move_alone(self, group: str, partition: TopicPartition, next_offset: int, end: int) -> bool:
        """In a transaction of its own; see the port."""
        async with connected(self.engine, "an offset cannot be stored") as connection:
            moved = await self.move_on(connection, group, partition, next_offset, end)
            await connection.commit()
            return moved

    async def move_on(
        self, connection: AsyncConnection, group: str, partition: TopicPartition, next_offset: int, end: int
    ) -> bool:
        """As `move`, in the connection's transaction."""
        parameters = self._parameters(group, partition, next_offset, end)
        return (await connection.exec_driver_sql(self._move, parameters)).rowcount == 1

    def _parameters(self, group: str, partition: TopicPartition, next_offset: int, end: int) -> Any:
        assert end > next_offset  # MySQL may count only rows that have changed
        values: dict[str, Any] = {
            "of_group": group,
            "of_topic": partition[0],
            "of_partition": partition[1],
            "expected": next_offset,
            "end": end,
        }
        return values if self._places is None else tuple(values[name] for name in self._places)


def _at(group: Any, topic: Any, partition: Any) -> ColumnElement[bool]:
    return and_(_table.consumer_group == group, _table.topic == topic, _table.topic_partition == partition)


def _now(dialect: str) -> ColumnElement[Any]:
    """The database's time in UTC: a time of ours would need another form for each driver."""
    if dialect in ("mysql", "mariadb"):
        return cast("ColumnElement[Any]", text("UTC_TIMESTAMP()"))  # its CURRENT_TIMESTAMP is in the session's zone
    return func.current_timestamp()  # PostgreSQL: with time zone; SQLite: UTC


def _missing() -> ConfigurationError:
    return ConfigurationError(
        f"the database has no table {kafka_offsets.name!r}, which delivery='effectively_once' needs; "
        "make it with: python -m deimos_async migrate APP"
    )

"""The table `kafka_messages` as the pump uses it (port `OutboxStore`).

Two connections, so that rows are deleted while others are read. Nothing is locked and no transaction stays open while
messages are on their way to Kafka. Rows are deleted by their ids, one by one: a range would also delete those that
became visible meanwhile.

Where most shards are wanted the primary key is walked: rows that were written together lie together. Else PostgreSQL
walks one shard after the other by the index within one statement, until it has enough, and MySQL, MariaDB and SQLite
read some of each: a tuple `IN`, or an `OR` of shards and floors, has no range access there.
"""

# ruff: noqa: S608 - statements are put together from constants and whole numbers; texts are always bound

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.connecting import connected
from deimos_async.database.direct import DirectConnection, Kind, kind_of
from deimos_async.database.outbox.protocol import OutboxRow, Page, Pending, UnshardedRow
from deimos_async.errors import ConfigurationError

__all__ = ["SqlOutboxStore"]

_SMALL = 16 * 1024
"""Bytes up to which a row is read with its values. Those of larger ones are fetched when it is known how many fit."""
_DELETED_AT_ONCE = 2000
_TABLES = ("kafka_messages", "kafka_topic_info")
_size = itemgetter(-1)
_new = tuple.__new__


_KEY: dict[Kind, str] = {"postgresql": "key", "mysql": "`key`", "sqlite": '"key"'}
_BYTES: dict[Kind, str] = {
    "postgresql": "convert_to(m.partition_key, 'UTF8')",
    "mysql": "CAST(CONVERT(m.partition_key USING utf8mb4) AS BINARY)",
    "sqlite": "CAST(m.partition_key AS BLOB)",
}
_READING = (*(f"SET enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort")), "SET DateStyle = ISO")
"""PostgreSQL: rows are taken from an index, in its order, until there are enough. Its planner would rather read and
sort all of a shard each time, as nothing tells it how the table fills and empties."""


def _columns(kind: Kind) -> str:
    """Those of an `OutboxRow`, in its order, without the values of large rows."""
    key, length = _KEY[kind], "length" if kind == "sqlite" else "octet_length"
    size = f"COALESCE(m.size, COALESCE({length}(m.message), 0) + COALESCE({length}(m.{key}), 0))"
    at = {"postgresql": "m.created_at::text", "mysql": "CAST(m.created_at AS CHAR)", "sqlite": "m.created_at"}[kind]
    return (
        f"m.id, m.shard, COALESCE(m.order_hash, 0), m.topic, CASE WHEN {size} <= {_SMALL} THEN m.{key} END, "
        f"CASE WHEN {size} <= {_SMALL} THEN m.message END, COALESCE(m.order_key, {_BYTES[kind]}), m.headers, "
        f"m.kafka_partition, m.timestamp_ms, m.message_id, {at}, {size}"
    )


def _postgresql_statements(columns: str) -> tuple[str, str]:
    """By the primary key, and shard after shard. Both: floors, shards, limit, orders and topics that are left out."""
    others = "COALESCE(m.order_hash, 0) <> ALL ($4::int4[]) AND m.topic <> ALL ($5::text[]) ORDER BY m.id LIMIT $3"
    return (
        f"SELECT {columns} FROM kafka_messages m WHERE m.id > $1 AND m.shard = ANY ($2::int2[]) AND {others}",
        "SELECT x.* FROM unnest($1::int8[], $2::int2[]) AS s(floor, shard) CROSS JOIN LATERAL ("
        f"SELECT {columns} FROM kafka_messages m WHERE m.shard = s.shard AND m.id > s.floor AND {others}) x LIMIT $3",
    )


class SqlOutboxStore:
    """Rows in the application's database. Connections are made when they are needed, and again when they are lost.

    Args:
        shards: How many shards there are.

    Raises:
        ConfigurationError: The engine's driver is not known, or its sessions share one connection.
    """

    def __init__(self, engine: AsyncEngine, *, shards: int) -> None:
        self._engine = engine
        self._kind = kind_of(engine)
        self._shards = shards
        self._reader = DirectConnection(engine)
        self._writer = DirectConnection(engine)
        self._columns = _columns(self._kind)
        # Reading shard by shard costs MySQL and MariaDB more than to walk past other shards' rows, but for a few.
        self._many = shards // (2 if self._kind == "postgresql" else 8)
        self._statements = _postgresql_statements(self._columns)
        self._opening = asyncio.Lock()
        self._listening: tuple[str, Callable[[str], None]] | None = None
        self.tells = False

    async def check(self) -> None:
        """Whether the database is fit for it; see the port."""
        async with connected(self._engine, "its tables cannot be looked at") as connection:
            await connection.run_sync(_check_tables)
            if self._kind == "postgresql":
                cached = await connection.exec_driver_sql(
                    "SELECT seqcache FROM pg_sequence WHERE seqrelid = "
                    "to_regclass(pg_get_serial_sequence('kafka_messages', 'id'))"
                )
                if (found := cached.scalar()) is not None and found > 1:
                    raise ConfigurationError(
                        f"the sequence of kafka_messages.id hands out {found} numbers to a session at once, so that "
                        "ids say nothing about order; ALTER SEQUENCE ... CACHE 1"
                    )
            elif self._kind == "mysql":
                step = (await connection.exec_driver_sql("SELECT @@auto_increment_increment")).scalar_one()
                if int(step) > 1:
                    raise ConfigurationError(
                        f"auto_increment_increment is {step}, as where several servers are written to: ids of "
                        "kafka_messages say nothing about order then; the outbox needs one server that is written to"
                    )

    def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Hear of new rows where the database tells of them; see the port. It begins with the first reading."""
        self._listening = channel, heard

    async def read(
        self,
        floors: Mapping[int, int],
        *,
        limit: int,
        max_bytes: int,
        without_orders: Collection[int],
        without_topics: Collection[str],
    ) -> Page:
        """Committed rows of shards; see the port."""
        if not floors:
            return Page((), {}, ())
        reader = await self._ready_reader()
        many = len(floors) >= self._many
        if self._kind == "postgresql":
            # Statements whose text never changes: they are parsed once, and need one round trip then.
            left_out = list(without_orders), list(without_topics)
            if many:
                start = min(floors.values())
                found = await reader.fetch(self._statements[0], start, list(floors), limit, *left_out)
            else:
                found = await reader.fetch(self._statements[1], list(floors.values()), list(floors), limit, *left_out)
        else:
            without, values = self._left_out(without_orders, without_topics)
            each = max(1, -(-limit // len(floors)))
            if many:
                found = await reader.fetch(self._scan(floors, limit, without), *values)
            else:
                found = await reader.fetch(self._by_shard(floors, each, without), *values * len(floors))
        if many:
            page = _mixed(floors, found, limit, max_bytes)
        elif self._kind == "postgresql":
            page = _in_turn(list(floors), found, limit, max_bytes)
        else:
            page = _by_shard(floors, found, each, limit, max_bytes)
        kept, new_floors, more = page
        rows = [_new(OutboxRow, row) for row in kept]
        large = [row.id for row in rows if row.size > _SMALL]
        if large:
            values_of = await self._fetch_values(reader, large)
            # A large row that is gone by now was somebody else's to delete.
            rows = [
                row if row.size <= _SMALL else row._replace(key=values_of[row.id][0], message=values_of[row.id][1])
                for row in rows
                if row.size <= _SMALL or row.id in values_of
            ]
        return Page(rows, new_floors, more)

    def _left_out(self, orders: Collection[int], topics: Collection[str]) -> tuple[str, list[str]]:
        """What is added to a condition, and its values."""
        where = ""
        if orders:
            where += f" AND COALESCE(m.order_hash, 0) NOT IN ({_numbers(orders)})"
        if topics:
            place = "%s" if self._kind == "mysql" else "?"
            where += f" AND m.topic NOT IN ({', '.join([place] * len(topics))})"
        return where, list(topics)

    def _scan(self, floors: Mapping[int, int], limit: int, without: str) -> str:
        by_id = "FORCE INDEX (PRIMARY)" if self._kind == "mysql" else "NOT INDEXED"
        return (
            f"SELECT {self._columns} FROM kafka_messages AS m {by_id} WHERE m.id > {int(min(floors.values()))} "
            f"AND m.shard IN ({_numbers(floors)}){without} ORDER BY m.id LIMIT {int(limit)}"
        )

    def _by_shard(self, floors: Mapping[int, int], each: int, without: str) -> str:
        # SQLite has no parentheses here, and MariaDB would make a table of each inner query.
        around = ("(", ")") if self._kind == "mysql" else ("SELECT * FROM (", ")")
        return " UNION ALL ".join(
            f"{around[0]}SELECT {self._columns} FROM kafka_messages AS m WHERE m.shard = {int(shard)} "
            f"AND m.id > {int(floor)}{without} ORDER BY m.id LIMIT {int(each)}{around[1]}"
            for shard, floor in floors.items()
        )

    async def _fetch_values(self, reader: DirectConnection, ids: Sequence[int]) -> dict[int, tuple[Any, Any]]:
        key = '"key"' if self._kind == "sqlite" else "`key`" if self._kind == "mysql" else "key"
        rows = await reader.fetch(f"SELECT id, {key}, message FROM kafka_messages WHERE id IN ({_numbers(ids)})")
        return {row[0]: (row[1], row[2]) for row in rows}

    async def delete(self, ids: Sequence[int]) -> None:
        """Delete rows; see the port."""
        writer = await self._ready_writer()
        for first in range(0, len(ids), _DELETED_AT_ONCE):
            part = ids[first : first + _DELETED_AT_ONCE]
            if self._kind == "postgresql":
                await writer.execute("DELETE FROM kafka_messages WHERE id = ANY ($1::int8[])", part)
            elif self._kind == "mysql":
                # With IN a small table would be walked as a whole, and the walk waits for rows of transactions that are
                # open: nothing but these rows may be touched. MariaDB takes no hint of an index for that.
                await writer.execute(
                    "DELETE m FROM JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) AS d "
                    "STRAIGHT_JOIN kafka_messages AS m FORCE INDEX (PRIMARY) ON m.id = d.id",
                    json.dumps(list(part)),
                )
            else:
                await writer.execute(
                    "DELETE FROM kafka_messages WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(part))
                )

    async def unsharded(self, limit: int) -> Sequence[UnshardedRow]:
        """Rows without a shard; see the port."""
        reader = await self._ready_reader()
        rows = await reader.fetch(
            f"SELECT id, topic, {_KEY[self._kind]}, partition_key FROM kafka_messages WHERE shard IS NULL "
            f"ORDER BY id LIMIT {int(limit)}"
        )
        return [
            UnshardedRow(id_, topic, key, None if text is None else text.encode()) for id_, topic, key, text in rows
        ]

    async def assign(self, orders: Mapping[int, int]) -> None:
        """Give rows a shard; see the port."""
        if not orders:
            return
        writer = await self._ready_writer()
        if self._kind == "postgresql":
            await writer.execute(
                "UPDATE kafka_messages m SET order_hash = g.hash, shard = g.shard "
                "FROM unnest($1::int8[], $2::int4[], $3::int2[]) AS g(id, hash, shard) "
                "WHERE m.id = g.id AND m.shard IS NULL",
                list(orders),
                list(orders.values()),
                [order % self._shards for order in orders.values()],
            )
            return
        hashes = " ".join(f"WHEN {int(id_)} THEN {int(order)}" for id_, order in orders.items())
        shards = " ".join(f"WHEN {int(id_)} THEN {int(order) % self._shards}" for id_, order in orders.items())
        by_id = " FORCE INDEX (PRIMARY)" if self._kind == "mysql" else ""  # as for deleting
        await writer.execute(
            f"UPDATE kafka_messages{by_id} SET order_hash = CASE id {hashes} END, "
            f"shard = CASE id {shards} END WHERE id IN ({_numbers(orders)}) AND shard IS NULL"
        )

    async def pending(self) -> Sequence[Pending]:
        """What waits, for each topic; see the port."""
        age = {
            "postgresql": "EXTRACT(EPOCH FROM (clock_timestamp() AT TIME ZONE 'UTC') - min(created_at))",
            "mysql": "TIMESTAMPDIFF(MICROSECOND, MIN(created_at), UTC_TIMESTAMP(6)) / 1000000",
            "sqlite": "(julianday('now') - julianday(min(created_at))) * 86400",
        }[self._kind]
        writer = await self._ready_writer()
        rows = await writer.fetch(f"SELECT topic, count(*), {age} FROM kafka_messages GROUP BY topic")
        return [Pending(topic, int(count), max(0.0, float(seconds or 0))) for topic, count, seconds in rows]

    def distrust(self) -> None:
        """Connect anew, and wait no longer for answers that are under way; see the port."""
        self._reader.distrust()
        self._writer.distrust()

    async def close(self) -> None:
        """Close the connections."""
        async with self._opening:
            self.tells = False
            await self._reader.close()
            await self._writer.close()

    async def _ready_reader(self) -> DirectConnection:
        async with self._opening:
            if not self._reader.is_usable:
                self.tells = False
                await self._reader.open(*(_READING if self._kind == "postgresql" else ()))
                if self._kind == "postgresql" and self._listening is not None:
                    await self._reader.listen(self._listening[0], self._on_notice)
                    # A pooler that hands out connections by the transaction takes LISTEN and forgets it. What is heard
                    # of this shows that it works.
                    if not self._writer.is_usable:
                        await self._writer.open()
                    await self._writer.fetch("SELECT pg_notify($1, '')", self._listening[0])
        return self._reader

    async def _ready_writer(self) -> DirectConnection:
        async with self._opening:
            if not self._writer.is_usable:
                await self._writer.open()
        return self._writer

    def _on_notice(self, text: str) -> None:
        self.tells = True
        if text and self._listening is not None:
            self._listening[1](text)


_Cut = tuple[list[Sequence[Any]], dict[int, int], Collection[int]]
"""Rows that are kept, new floors, and shards that may have more."""


def _fitting(rows: Sequence[Sequence[Any]], limit: int, max_bytes: int) -> int:
    """How many of the first rows are taken: at most `limit`, and `max_bytes` in all, but one at least."""
    total = 0
    for count, row in enumerate(rows[:limit]):
        total += _size(row)
        if total > max_bytes and count:
            return count
    return min(limit, len(rows))


def _in_turn(shards: list[int], rows: Sequence[Sequence[Any]], limit: int, max_bytes: int) -> _Cut:
    """Rows of one shard after the other."""
    count = _fitting(rows, limit, max_bytes)
    kept = list(rows[:count])
    floors = {row[1]: row[0] for row in kept}
    if count < limit and count == len(rows):
        return kept, floors, ()
    last = kept[-1][1]
    return kept, floors, shards[shards.index(last) :]


def _mixed(old: Mapping[int, int], rows: Sequence[Sequence[Any]], limit: int, max_bytes: int) -> _Cut:
    """Rows of all shards, by id."""
    count = _fitting(rows, limit, max_bytes)
    kept = list(rows[:count])
    if not kept:
        return kept, {}, ()
    last = kept[-1][0]
    return (
        kept,
        {shard: max(last, floor) for shard, floor in old.items()},
        old if count in (limit,) or count < len(rows) else (),
    )


def _by_shard(old: Mapping[int, int], rows: Sequence[Sequence[Any]], each: int, limit: int, max_bytes: int) -> _Cut:
    """At most `each` rows of each shard, one shard after the other."""
    count = _fitting(rows, limit, max_bytes)
    kept = list(rows[:count])
    floors: dict[int, int] = {}
    counts = dict.fromkeys(old, 0)
    for row in kept:
        floors[row[1]] = row[0]
        counts[row[1]] += 1
    more = {shard for shard, found in counts.items() if found >= each}
    more |= {row[1] for row in rows[count:]}
    return kept, floors, more


def _numbers(numbers: Collection[int]) -> str:
    """For a list in SQL. `int()` also keeps anything else out."""
    return ",".join([str(int(number)) for number in numbers])


def _check_tables(connection: Connection) -> None:
    inspector = inspect(connection)
    missing = [name for name in _TABLES if not inspector.has_table(name)]
    if not missing and "shard" not in {column["name"] for column in inspector.get_columns("kafka_messages")}:
        missing = ["kafka_messages (it is as Deimos makes it, without our columns)"]
    if missing:
        raise ConfigurationError(
            f"the database has no table {', '.join(missing)}, which the outbox needs; "
            "make it with: python -m deimos_async migrate APP"
        )

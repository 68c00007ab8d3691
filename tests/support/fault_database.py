"""An effect in a database that is not idempotent on purpose: a count and a sum for each group and partition."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

Count = Callable[[AsyncSession, str, int, Sequence[int]], Awaitable[None]]


def table(name: str) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("event_group", sa.String(20), primary_key=True),
        sa.Column("topic_partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
    )


def counting(name: str) -> Count:
    """What handlers call: adds messages, given by their numbers, of a partition."""
    counts = table(name)

    async def count(session: AsyncSession, group: str, partition: int, numbers: Sequence[int]) -> None:
        await session.execute(
            sa.update(counts)
            .where(counts.c.event_group == group, counts.c.topic_partition == partition)
            .values(n=counts.c.n + len(numbers), total=counts.c.total + sum(numbers))
        )

    return count


class Sums:
    """The table of a trial."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self.name = name
        self._engine = engine
        self._counts = table(name)

    async def read(self) -> Mapping[tuple[str, int], tuple[int, int]]:
        """(group, partition) -> how many messages were counted, and the sum of their numbers."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(sa.select(self._counts))
            return {(group, partition): (n, total) for group, partition, n, total in rows}


@asynccontextmanager
async def sums(url: str, name: str, groups: Sequence[str], partitions: int) -> AsyncIterator[Sums]:
    """A table with a row for each group and partition, dropped at the end."""
    engine = create_async_engine(url, pool_pre_ping=True)  # the server may be restarted meanwhile
    counts = table(name)
    rows = [
        {"event_group": group, "topic_partition": partition, "n": 0, "total": 0}
        for group in groups
        for partition in range(partitions)
    ]
    async with engine.begin() as connection:
        await connection.run_sync(counts.metadata.create_all)
        await connection.execute(sa.insert(counts), rows)
    try:
        yield Sums(engine, name)
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(counts.metadata.drop_all)
        await engine.dispose()

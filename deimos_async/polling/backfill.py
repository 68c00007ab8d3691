"""Sends a whole table by a poller, beside its own work: in leased chunks, by any number of processes, resumable.

The table is cut by primary keys into chunks, rows of `deimos_poll_info` with numbers from 1; row -1 says that all of
them are listed. Each chunk is leased like a poller and has a cursor of its own, so that a backfill which was broken off
goes on where it was. When all chunks have come to their end, the rows go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.polling.protocol import Chunk, PollStore, Position
from deimos_async.database.schema_lock import as_database_error
from deimos_async.errors import DatabaseError
from deimos_async.polling import cursor
from deimos_async.polling.runs import LeaseLost, Polling

__all__ = ["Backfill"]

logger = logging.getLogger("deimos_async.polling")

_LIST = -1
"""Number of the row whose owner lists the chunks, and which is done when all are listed."""
_LOOK_INTERVAL = 0.5
"""Seconds until the next look while other processes have all chunks that are left."""
_MARGIN = 1.0
"""Seconds by which a lease ends earlier for us than for the database."""


class Backfill:
    """One process's part in the backfill of one poller.

    Args:
        chunk_rows: Rows of a chunk.
        ttl: Seconds that a lease lasts; three renewals are sent within it.
        report: Told how many chunks are done, and how many there are.
        monotonic: A clock that goes on while the process is stopped.
    """

    def __init__(
        self,
        polling: Polling,
        engine: AsyncEngine,
        store: PollStore,
        *,
        chunk_rows: int,
        ttl: float,
        report: Callable[[int, int], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._polling = polling
        self._engine = engine
        self._store = store
        self._chunk_rows = chunk_rows
        self._ttl = ttl
        self._report = report
        self._monotonic = monotonic
        self._until = 0.0
        self.rows = 0
        """Rows that were sent by this process."""

    @property
    def _name(self) -> str:
        return self._polling.name

    async def run(self) -> None:
        """Until the whole table was sent, by whomever. Cancelled: it goes on from here, by whoever runs it next.

        Raises:
            ConfigurationError: Tables are missing.
            DatabaseError: The database cannot be reached or refuses, or too many rows could not be sent.
        """
        await self._store.open()
        renewal = asyncio.create_task(self._renew(), name=f"backfill {self._name} renewal")
        try:
            await self._polling.add()
            self._polling.failed = {row.key: row for row in await self._store.failures(self._name, 0.0)}
            await self._store.begin_chunks(self._name)
            while await self._step():
                pass
        except (DBAPIError, PoolTimeoutError) as error:
            raise as_database_error(error) from error
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])
            await self._store.close()

    async def _step(self) -> bool:
        """Do one chunk, or wait for others who do. False: there is nothing left."""
        chunks = await self._store.chunks(self._name)
        listing = next((chunk for chunk in chunks if chunk.number == _LIST), None)
        if listing is None:
            return False  # another process has done the last one
        parts = [chunk for chunk in chunks if chunk.number != _LIST]
        if listing.is_done:
            self._report(sum(chunk.is_done for chunk in parts), len(parts))
        open_ones = [chunk for chunk in parts if not chunk.is_done] if listing.is_done else [listing]
        if not open_ones:
            await self._store.forget_chunks(self._name)
            return False
        for chunk in open_ones:
            begun = self._monotonic()
            epoch = None
            if not chunk.is_leased:
                epoch = await self._store.acquire(self._name, chunk.epoch, chunk.number)
            if epoch is None:
                continue
            self._until = begun + self._ttl - _MARGIN
            await self._work(chunk, epoch)
            return True
        await asyncio.sleep(_LOOK_INTERVAL)
        return True

    async def _work(self, chunk: Chunk, epoch: int) -> None:
        done = False
        try:
            await (self._list(epoch) if chunk.number == _LIST else self._send(chunk, epoch))
            done = True
        except LeaseLost:
            logger.warning("backfill of %s: chunk %d was taken by another process", self._name, chunk.number)
            return
        finally:
            try:
                await self._store.release(self._name, epoch, chunk.number, done=done)
            except DatabaseError as error:
                logger.debug("backfill of %s: a lease is left to expire: %s", self._name, error)

    async def _list(self, epoch: int) -> None:
        """List the chunks, one after the other.

        Those of a process that was broken off go: rows that came since would lie between them and new ones.
        """
        table = self._polling.table
        await self._store.forget_chunks(self._name, listed_only=True)
        number, first = 1, None
        async with self._engine.connect() as connection:
            while True:
                self._check()
                key = None if first is None else cursor.read_key(first)
                found = (await connection.execute(table.key_after(key, self._chunk_rows))).first()
                await connection.rollback()
                last = None if found is None else cursor.write_key(tuple(found))
                if not await self._store.add_chunk(self._name, number, first=first, last=last, epoch=epoch):
                    raise LeaseLost
                if last is None:
                    return
                number, first = number + 1, last

    async def _send(self, chunk: Chunk, epoch: int) -> None:
        key = chunk.key or chunk.first
        while True:
            self._check()
            rows, key = await self._polling.resend(key, chunk.last)
            self.rows += rows
            if key is None:
                return
            if not await self._store.save(self._name, epoch, Position("", key), chunk.number):
                raise LeaseLost

    def _check(self) -> None:
        if self._monotonic() >= self._until:
            raise LeaseLost

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._ttl / 3)
            begun = self._monotonic()
            if begun >= self._until:
                continue  # it may be another process's by now
            try:
                await self._store.renew()
            except DatabaseError as error:
                logger.debug("leases of a backfill could not be renewed: %s", error)
                continue
            self._until = begun + self._ttl - _MARGIN

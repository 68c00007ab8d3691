"""Tells processes elsewhere that rows were committed, where the database can do that: PostgreSQL's NOTIFY.

NOTIFY within the transaction that writes would take a lock of the whole database at its commit, and all commits would
wait for each other. So it goes out afterwards, on a connection of its own, once for all that was committed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.direct import DirectConnection
from deimos_async.errors import DatabaseError
from deimos_async.outbox.signal import CHANNEL, OutboxSignal, write_notice

__all__ = ["OutboxNotifier"]

logger = logging.getLogger("deimos_async.outbox")

_PAUSE = 0.005
"""Seconds between two notices, in which shards are gathered."""
_RETRY_PAUSE = 1.0
"""Seconds without notices after the database has failed."""


class OutboxNotifier:
    """A service. It connects with the first rows that nobody in this process sends.

    Args:
        engine: On PostgreSQL, by asyncpg.
        signal: What is committed in this process.
    """

    name = "outbox notifier"

    def __init__(self, engine: AsyncEngine, signal: OutboxSignal) -> None:
        self._connection = DirectConnection(engine, timeout=5.0)
        self._signal = signal
        self._stopping = asyncio.Event()
        self._is_failing = False

    def request_stop(self) -> None:
        """End soon; a notice that waits is not sent any more."""
        self._stopping.set()

    async def run(self, started: asyncio.Event) -> None:
        """Send notices until stopped. The database's errors are told once, and otherwise passed over."""
        listener = self._signal.listen()
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            started.set()
            while not self._stopping.is_set():
                heard = asyncio.ensure_future(listener.wait())
                try:
                    await asyncio.wait([heard, stopped], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    heard.cancel()
                if heard.done() and not heard.cancelled():
                    pause = await self._tell(heard.result() - self._signal.served)
                    await asyncio.wait([stopped], timeout=pause)
        finally:
            listener.close()
            stopped.cancel()
            await self._connection.close()

    async def _tell(self, shards: frozenset[int]) -> float:
        """Returns the seconds until the next notice."""
        if not shards:
            return 0.0
        try:
            if not self._connection.is_usable:
                await self._connection.open()
            await self._connection.fetch("SELECT pg_notify($1, $2)", CHANNEL, write_notice(shards))
        except DatabaseError as error:
            if not self._is_failing:
                logger.warning("whoever sends the outbox cannot be told of new rows and must look by itself: %s", error)
            self._is_failing = True
            return _RETRY_PAUSE
        self._is_failing = False
        return _PAUSE

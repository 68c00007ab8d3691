"""Watches one consumer from outside: a member that does not get on is replaced; if that does not help, it fails.

The client library can be stuck after a restart of the brokers or a rebalance without telling. Whether a consumer
gets on is judged by its own numbers (`progress`). A handler that runs is never taken for a stall, however long it runs:
a new member would only call it a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from deimos_async.consuming.runner import RunnerStatus
from deimos_async.errors import BrokerError
from deimos_async.plain_text import described

__all__ = ["Watchable", "WatchedConsumer"]

logger = logging.getLogger("deimos_async.consuming")

_GRACE = 5.0
"""Seconds that a stalled member has to end before it is cancelled."""


class Watchable(Protocol):
    """What is watched: a `ConsumerRunner`."""

    name: str
    started: bool

    async def run(self, started: asyncio.Event) -> None: ...

    def request_stop(self) -> None: ...

    def status(self) -> RunnerStatus: ...

    @property
    def is_handling(self) -> bool:
        """Whether a handler is running."""

    @property
    def has_fetched(self) -> bool:
        """Whether it has fetched anything in its present assignment."""


class WatchedConsumer:
    """A service that keeps one consumer alive by replacing its member when that is stalled.

    Args:
        make: Makes a member, not started; called for the first one and for each that replaces it.
        interval: Seconds between two looks.
    """

    def __init__(self, make: Callable[[], Watchable], *, interval: float) -> None:
        self._make = make
        self._interval = interval
        self._member = make()
        self._stopping = False
        self.name = self._member.name

    @property
    def started(self) -> bool:
        """Whether the present member has started."""
        return self._member.started

    def status(self) -> RunnerStatus:
        """What the present member is doing."""
        return self._member.status()

    def request_stop(self) -> None:
        """Soft, any number of times, before or after `run`."""
        self._stopping = True
        self._member.request_stop()

    async def run(self, started: asyncio.Event) -> None:
        """Run until stopped.

        Raises:
            BrokerError: A member that had replaced a stalled one fetched nothing either.
            Whatever the member raises.
        """
        replaced = False
        while True:
            member = self._member
            running = asyncio.create_task(member.run(started), name=f"{self.name} member")
            try:
                if not await self._until_stalled(member, running):
                    return
            finally:
                if not running.done():
                    await self._end(member, running)
            if self._stopping:
                return
            if replaced and not member.has_fetched:
                raise BrokerError(f"{self.name} made no progress, and a new member made none either")
            logger.error("%s made no progress for too long; a new member takes over", self.name)
            replaced = True
            self._member = self._make()

    async def _until_stalled(self, member: Watchable, running: asyncio.Task[None]) -> bool:
        """True: it is stalled. False: it has ended; what it raised is raised here."""
        while True:
            await asyncio.wait([running], timeout=self._interval)
            if running.done():
                running.result()
                return False
            if not self._stopping and not member.is_handling and member.status().stalled:
                return True

    async def _end(self, member: Watchable, running: asyncio.Task[None]) -> None:
        member.request_stop()
        _, late = await asyncio.wait([running], timeout=0.0 if self._stopping else _GRACE)
        if late:
            running.cancel()
            await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            logger.warning("%s: the member that ended raised %s: %s", self.name, type(error).__name__, described(error))

"""That rows were committed: told at once to whoever sends them in this process, or in others where that works.

A signal that is lost costs time, never a row: whoever sends looks by itself too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

__all__ = ["CHANNEL", "LEASES_NOTICE", "Listener", "OutboxSignal", "parse_notice", "write_notice"]

CHANNEL = "deimos_outbox"
"""PostgreSQL's name for what notices are sent through."""
LEASES_NOTICE = "leases"
"""Text of a notice that slots were given up."""


class OutboxSignal:
    """Shards that have new rows.

    Attributes:
        served: Shards that somebody in this process sends; other processes need not be told of their rows.
    """

    def __init__(self) -> None:
        self.served: frozenset[int] = frozenset()
        self._listeners: list[Listener] = []

    def wake(self, shards: Iterable[int]) -> None:
        """Rows of these shards were committed. From any thread; nothing is waited for and nothing raised."""
        told = frozenset(shards)
        for listener in tuple(self._listeners):
            listener._hear(told)

    def listen(self) -> Listener:
        """Hear of what is committed from now on, in the running loop. To be closed."""
        listener = Listener(self._listeners)
        self._listeners.append(listener)
        return listener


class Listener:
    """Collects shards until somebody asks. It belongs to the loop in which it was made."""

    def __init__(self, among: list[Listener]) -> None:
        self._among = among
        self._loop = asyncio.get_running_loop()
        self._shards: set[int] = set()
        self._heard = asyncio.Event()

    async def wait(self) -> frozenset[int]:
        """Wait until there is something, and take it. Cancelled: it is there for the next one who asks."""
        await self._heard.wait()
        return self.take()

    def take(self) -> frozenset[int]:
        """What has come since it was last asked; may be empty."""
        taken = frozenset(self._shards)
        self._shards.clear()
        self._heard.clear()
        return taken

    def close(self) -> None:
        """Hear no more; any number of times."""
        if self in self._among:
            self._among.remove(self)

    def _hear(self, shards: frozenset[int]) -> None:
        if _running_loop() is self._loop:
            self._add(shards)
            return
        try:
            self._loop.call_soon_threadsafe(self._add, shards)
        except RuntimeError:
            self.close()  # its loop has ended without it

    def _add(self, shards: frozenset[int]) -> None:
        self._shards |= shards
        if self._shards:
            self._heard.set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def write_notice(shards: Iterable[int]) -> str:
    """Text of a notice: numbers and nothing else."""
    return ",".join(map(str, sorted(shards)))


def parse_notice(text: str) -> frozenset[int]:
    """Shards of a notice; what is no number is left out, as anybody can send on that channel."""
    return frozenset(int(part) for part in text.split(",") if part.isascii() and part.isdecimal() and len(part) < 6)

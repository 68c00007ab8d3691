"""The time that messages wait by: until their next attempt, and until they are due in a retry topic.

Tests move it; everything else has the time of the system and the timers of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from deimos_async.consuming.waiting import Timer

__all__ = ["Clock", "LoopClock"]


class Clock(Protocol):
    """Tells the time and wakes at one."""

    def time(self) -> float:
        """Seconds since the epoch."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call back once, `delay` seconds from now, in the running event loop; never within this call."""


class LoopClock:
    """The system's time, and the event loop's timers."""

    def time(self) -> float:
        """Seconds since the epoch, by the system."""
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """See `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(delay, callback)

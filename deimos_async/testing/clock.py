"""The time by which messages wait in a test: it passes as ever, and can be moved on."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

__all__ = ["MovableClock"]

_SLACK = 0.001
"""Seconds beyond a timer's end to which `advance_to_next` goes: due times are kept in whole milliseconds."""


class _Timer:
    """Rings at a time of the clock; the event loop's own timer rings when it comes without being moved."""

    def __init__(self, clock: MovableClock, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self._clock = clock
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self.wind()

    def wind(self) -> None:
        """Have the event loop ring when it is due; again after the clock was moved."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = asyncio.get_running_loop().call_later(max(0.0, self.due - self._clock.time()), self.ring)

    def ring(self) -> None:
        self.cancel()
        self._callback()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._clock.timers.discard(self)


class MovableClock:
    """The system's time and a span ahead of it, which only grows.

    Attributes:
        timers: Those that have not rung.
    """

    def __init__(self) -> None:
        self.timers: set[_Timer] = set()
        self._ahead = 0.0

    @property
    def ahead(self) -> float:
        """Seconds by which it is ahead of the system's time."""
        return self._ahead

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time() + self._ahead

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Timer:
        """See the port, `deimos_async.consuming.clock.Clock`."""
        timer = _Timer(self, self.time() + delay, callback)
        self.timers.add(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Move on; timers that are due then ring within this call, the earliest first.

        Raises:
            ValueError: The span is negative or not finite.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"time goes forward, by a number of seconds; {seconds!r} is none")
        self._ahead += seconds
        now = self.time()
        for timer in sorted(self.timers, key=lambda timer: timer.due):
            if timer.due <= now:
                timer.ring()
            else:
                timer.wind()

    def advance_to_next(self) -> bool:
        """Move on to the end of the earliest timer; False if there is none."""
        if not self.timers:
            return False
        first = min(timer.due for timer in self.timers)
        self.advance(max(0.0, first - self.time()) + _SLACK)
        return True

    def clear(self) -> None:
        """Forget all timers: whoever set them is gone."""
        for timer in tuple(self.timers):
            timer.cancel()

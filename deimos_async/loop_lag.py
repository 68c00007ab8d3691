"""Measures how late the event loop is: one handler that computes for seconds without waiting holds up everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics

__all__ = ["LoopLag"]

logger = logging.getLogger("deimos_async.loop")

_INTERVAL = 0.5
_GAUGE_INTERVAL = 5.0
_QUIET = 30.0
"""Seconds between two warnings; the next one tells the worst of what was left out."""


class LoopLag:
    """Wakes every half second and compares with the clock. A service.

    Args:
        metrics: Gets the gauge `deimos.loop_lag` every 5 s: the worst of that time.
        warn_above: Seconds; 0 warns of nothing.
        clock: Monotonic seconds.
    """

    name = "loop lag"

    def __init__(self, metrics: Metrics, *, warn_above: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._warn_above = warn_above
        self._clock = clock
        self._stop = asyncio.Event()
        self._worst = 0.0
        self._worst_unsaid = 0.0
        self._gauge_due = self._warning_due = float("-inf")

    def request_stop(self) -> None:
        """Soft, any number of times, before or after `run`."""
        self._stop.set()

    async def run(self, started: asyncio.Event) -> None:
        """Measure until stopped."""
        started.set()
        while not self._stop.is_set():
            asked = self._clock()
            try:
                async with asyncio.timeout(_INTERVAL):
                    await self._stop.wait()
            except TimeoutError:
                now = self._clock()
                self.observe(max(0.0, now - asked - _INTERVAL), now)

    def observe(self, late: float, now: float) -> None:
        """The loop came back `late` seconds after it was asked to.

        Args:
            now: Monotonic seconds; decides whether the gauge and the warning are due.
        """
        self._worst = max(self._worst, late)
        if now >= self._gauge_due:
            self._gauge_due = now + _GAUGE_INTERVAL
            self._metrics.gauge(names.LOOP_LAG, self._worst)
            self._worst = 0.0
        if 0 < self._warn_above < late:
            self._worst_unsaid = max(self._worst_unsaid, late)
        if self._worst_unsaid and now >= self._warning_due:
            self._warning_due = now + _QUIET
            logger.warning(
                "the event loop came back %.2f s late: something computes or blocks in it without awaiting, and "
                "heartbeats, fetches and requests wait meanwhile; handlers that block belong into `def` functions "
                "(setting 'consumers.loop_lag_warning' is %g s)",
                self._worst_unsaid, self._warn_above,
            )  # fmt: skip
            self._worst_unsaid = 0.0

"""A histogram whose cost is bounded, for what may happen thousands of times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from deimos_async.telemetry.protocol import Metrics, Tags

__all__ = ["SampledHistogram"]

_INTERVAL = 0.01


class SampledHistogram:
    """Records one observation in a hundredth of a second at most and leaves out the others.

    An observation costs OpenTelemetry's SDK about as much as the decoding of several messages, and a hundred a second
    are enough for a distribution. Counters are never sampled.
    """

    __slots__ = ("_clock", "_due", "_metrics", "_name", "_tags")

    def __init__(self, metrics: Metrics, name: str, tags: Tags, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._name = name
        self._tags = dict(tags)
        self._clock = clock
        self._due = float("-inf")

    def record(self, value: float) -> None:
        """Record, or leave out."""
        now = self._clock()
        if now >= self._due:
            self._due = now + _INTERVAL
            self._metrics.histogram(self._name, value, tags=self._tags)

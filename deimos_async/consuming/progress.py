"""Whether a consumer gets on, judged by numbers that are there anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

__all__ = ["Arrivals", "Progress", "is_stalled"]


def is_stalled(*, assigned: int, in_flight: int, unfetched: int, parked: int, quiet: float, timeout: float) -> bool:
    """Whether a consumer has something to do and does not get on with it.

    Args:
        assigned: Partitions that it has.
        in_flight: Messages fetched whose handling has not ended.
        unfetched: Messages behind what was fetched, as far as is known.
        parked: Messages that wait for their next attempt; a timer goes on with them.
        quiet: Seconds since anything was fetched, ended or put off.
        timeout: Seconds of quiet that are allowed, at least as many as the longest handler call needs.
    """
    return assigned > 0 and parked == 0 and (in_flight > 0 or unfetched > 0) and quiet >= timeout


class Progress:
    """Remembers since when a consumer's numbers have not changed."""

    __slots__ = ("_seen", "_since")

    def __init__(self, now: float) -> None:
        self._seen: Hashable = None
        self._since = now

    def quiet(self, seen: Hashable, now: float) -> float:
        """Seconds since the numbers were first seen to be these.

        Args:
            seen: Numbers of which one at least changes whenever something is fetched, ended or put off.
            now: Seconds of a clock that never goes back.
        """
        if seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since


class Arrivals:
    """How old the next message of a partition is, from one mark for each fetch, not one for each message."""

    __slots__ = ("_marks", "_newest")

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        self._newest: int | None = None

    def add(self, offset: int, timestamp: int | None, newest: int | None) -> None:
        """Records were fetched: offset and timestamp of the first one, timestamp of the last one.

        Timestamps in milliseconds since the epoch; None or negative where Kafka has none.
        """
        if timestamp is not None and timestamp >= 0:
            self._marks.append((offset, timestamp))
        self._newest = newest if newest is not None and newest >= 0 else None

    def lag_time(self, *, position: int | None, in_flight: int, lag: int, now: float) -> float:
        """Seconds for which the next message has waited; 0 where nothing waits or nothing is known.

        Args:
            position: Next offset to be handled; None if nothing has ended yet.
            in_flight: Messages fetched whose handling has not ended.
            lag: Messages between the position and the end of the partition.
            now: Seconds since the epoch.

        Where messages are in hand it is the age of the first one of the fetch in which the next one came (so it is
        never too small); where all were handled but more are known to be there, the age of the last one that was
        handled.
        """
        marks = self._marks
        while len(marks) > 1 and position is not None and marks[1][0] <= position:
            marks.popleft()
        began = None
        if in_flight:
            began = marks[0][1] if marks else None
        elif lag > 0:
            began = self._newest
        return 0.0 if began is None else max(0.0, now - began / 1000)

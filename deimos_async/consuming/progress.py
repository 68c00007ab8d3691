"""Whether a consumer gets on, judged by numbers that are there anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from deimos_async.message import TopicPartition

__all__ = ["Arrivals", "Progress", "Stalls", "Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What one assigned partition has to do.

    Attributes:
        position: Next offset to be handled; None if nothing has ended yet.
        in_hand: Messages fetched whose handling has not ended.
        unfetched: Messages behind what was fetched, as far as is known.
        waits: Something else goes on with it: a timer with a message that waits for its next attempt, or whoever looks
            for the offset at which it begins.
        busy: A handler is at work on it.
    """

    position: int | None
    in_hand: int
    unfetched: int
    waits: bool
    busy: bool


class Stalls:
    """Since when each partition of a consumer has something to do and does not get on with it.

    Judged for each partition apart, so that neither a message that waits in one of them nor a handler that takes long
    hides another one that is stuck. A partition gets on when something of it was fetched or has ended. What it has in
    hand may also wait for a worker, while all of them are at work; what was not fetched waits for nobody.
    """

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[TopicPartition, tuple[tuple[int | None, int], float]] = {}

    def look(self, standings: Mapping[TopicPartition, Standing], *, has_free_worker: bool, now: float) -> None:
        """See where everything stands. To be called often: what happens between two looks counts from the second one.

        Args:
            standings: Of the partitions that it has; others are forgotten.
            has_free_worker: Whether what is in hand would be handled at once.
            now: Seconds of a clock that never goes back.
        """
        since = {}
        for id, standing in standings.items():
            if standing.waits or standing.busy:
                continue
            if has_free_worker if standing.in_hand else standing.unfetched > 0:
                mark = (standing.position, standing.in_hand)
                seen = self._since.get(id)
                since[id] = seen if seen is not None and seen[0] == mark else (mark, now)
        self._since = since

    def longer_than(self, timeout: float, now: float) -> frozenset[TopicPartition]:
        """Partitions that have not got on for so many seconds, at least as many as a fetch may take."""
        return frozenset(id for id, (_, since) in self._since.items() if now - since >= timeout)


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

"""Which offset of a partition may be committed, given that handling may end in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["OffsetFrontier"]


class OffsetFrontier:
    """Highest offset that may be committed for one partition.

    It is the first offset whose handling has not ended, or the one after the last that ended: everything below has
    ended, whatever the order in which handlers returned. Offsets may have gaps (compaction, transaction markers).
    """

    __slots__ = ("_finished", "_started", "position")

    def __init__(self) -> None:
        self._started: deque[int] = deque()
        self._finished: set[int] = set()
        self.position: int | None = None
        """Next offset that the group should read after a restart; None until something has ended."""

    def started(self, offsets: Iterable[int]) -> None:
        """These offsets, ascending and above all earlier ones, are in our hands from now on."""
        self._started.extend(offsets)

    def finished(self, offset: int) -> None:
        """The handling of this offset has ended. Each started offset ends once."""
        started = self._started
        if started[0] == offset:
            started.popleft()
            position = offset + 1
            if self._finished:
                while started and started[0] in self._finished:
                    last = started.popleft()
                    self._finished.remove(last)
                    position = last + 1
            self.position = position
        else:
            self._finished.add(offset)

    @property
    def reached(self) -> int:
        """The offset after the highest one that has ended; 0 until something has."""
        return max(self._finished) + 1 if self._finished else self.position or 0

    @property
    def span(self) -> int:
        """How many started offsets are not below the position, whether they have ended or not."""
        return len(self._started)

    @property
    def unfinished(self) -> int:
        """How many started offsets have not ended."""
        return len(self._started) - len(self._finished)

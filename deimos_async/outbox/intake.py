"""Which shards are read next, and from where.

- A shard's floor is the highest id that was read of it; reading goes on above it, past what was deleted.
- Ids become visible out of order: a transaction may commit a lower id after a higher one was read. So, short of a
  backlog, a shard is read from above the floor that it had a moment ago; and all are read from the start from time to
  time. What is read twice for that is left alone by whoever knows that it is on its way.
- `dirty` shards may have rows: somebody said so, there were more than fitted, a row came back, or it is time to look.
  They are read in the order in which they became dirty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Intake", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading.

    Attributes:
        floors: Shards, and from above which id each is read.
        from_start: Those that are read from the start.
        is_whole: Whether that is all there are.
    """

    floors: Mapping[int, int]
    from_start: frozenset[int]
    is_whole: bool


class Intake:
    """Shards that one pump reads."""

    def __init__(self) -> None:
        self._floors: dict[int, int] = {}
        self._trail: dict[int, int] = {}
        self._next_trail: dict[int, int] = {}
        self._dirty: dict[int, None] = {}
        self._from_start: set[int] = set()
        self._behind: set[int] = set()
        """Shards that had more rows than were read."""

    @property
    def shards(self) -> Collection[int]:
        """Shards that are read."""
        return self._floors.keys()

    def open(self, shards: Iterable[int]) -> None:
        """Read these, from the start."""
        for shard in shards:
            self._floors[shard] = self._trail[shard] = self._next_trail[shard] = 0
            self._dirty[shard] = None

    def close(self, shards: Iterable[int]) -> None:
        """Read these no more."""
        for shard in shards:
            for marks in (self._floors, self._trail, self._next_trail, self._dirty):
                marks.pop(shard, None)
            self._from_start.discard(shard)
            self._behind.discard(shard)

    def look_at(self, shards: Iterable[int], *, from_start: bool = False) -> None:
        """These may have rows to be sent; with `from_start` also below their floors."""
        for shard in shards:
            if shard in self._floors:
                self._dirty[shard] = None
                if from_start:
                    self._from_start.add(shard)

    def look_at_all(self, *, from_start: bool) -> None:
        """All of them may."""
        self.look_at(list(self._floors), from_start=from_start)

    def let_pass(self) -> None:
        """A moment has passed: what had been read before the last one is not read again."""
        self._trail, self._next_trail = self._next_trail, dict(self._floors)

    def next(self, without: Collection[int]) -> Reading | None:
        """Begin a reading of dirty shards; None: there is nothing to be read.

        In a backlog it is half of all shards at most: the others are read while these are being sent.

        Args:
            without: Shards that must not be read now; they stay dirty.
        """
        shards = [shard for shard in self._dirty if shard not in without]
        if self._behind:
            shards = shards[: max(1, len(self._floors) // 2)]
        if not shards:
            return None
        start = self._from_start.intersection(shards)
        floors = {
            shard: 0 if shard in start else (self._floors if shard in self._behind else self._trail)[shard]
            for shard in shards
        }
        for shard in shards:
            del self._dirty[shard]
        self._from_start -= start
        return Reading(floors, frozenset(start), len(start) == len(self._floors))

    def failed(self, reading: Reading) -> None:
        """It gave nothing, and has to be made again."""
        self.look_at(reading.floors)
        self.look_at(reading.from_start, from_start=True)

    def done(self, reading: Reading, floors: Mapping[int, int], more: Collection[int]) -> None:
        """It has given rows.

        Args:
            floors: New floors.
            more: Shards that may have more rows above them.
        """
        for shard, floor in floors.items():
            if shard in self._floors:
                self._floors[shard] = floor
        self._behind.difference_update(reading.floors)
        self._behind.update(shard for shard in more if shard in self._floors)
        self.look_at(more)

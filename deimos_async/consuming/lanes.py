"""Which records must be handled one after another.

A lane is a queue of records of one partition that keep their order; different lanes run side by side. What decides
the lane is the consumer's `ordering`: one lane for the partition, one for each key, or one for each record. Records
without a key have no order among each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from deimos_async.consuming.offsets import OffsetFrontier
from deimos_async.consuming.progress import Arrivals
from deimos_async.consuming.waiting import Timer, Waiting
from deimos_async.message import InboundRecord, TopicPartition
from deimos_async.specs import Ordering

__all__ = ["Doom", "Kept", "Lane", "Partition"]


@dataclass(frozen=True, slots=True)
class Doom:
    """So many records at a lane's head leave the topic: as dead letters, or to the next retry topic."""

    count: int
    error: BaseException
    attempts: int
    deferred: bool = False
    first_failed_at: datetime | None = None
    """Aware. None: it fails now for the first time, or the record itself says when."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The record at a lane's head is to wait in the table `kafka_retries`, `delay` seconds from the moment it is there.

    `failed_at` is the time of its last attempt in place, in seconds since the epoch.
    """

    error: BaseException
    attempts: int
    delay: float
    failed_at: float


class Lane:
    """A queue of records that are handled in order. Only its head is ever being handled.

    Attributes:
        is_whole_partition: Every record of the partition is in this lane.
        records: What waits, the head included while it is being handled.
        attempt: Attempts that the head has had and failed.
        busy: A worker is at it.
        queued: It waits for a worker.
        parked: Its head waits for its next attempt; the lane is not offered to workers.
        timer: Wakes it: a parked lane, or an incomplete batch that is due.
        waits: How often its head has waited for the surroundings in a row.
        splits: Sizes of the parts, the next one last, into which a batch was cut to find its bad records.
        doomed: What at its head leaves the topic, with the error and the number of attempts.
        kept: What is to be stored about its head, which waits in the table from then on.
        settled: How many records at its head have ended, but for their offset, which could not be stored yet.
        waiting_since: Loop time at which its oldest record came, for batches.
    """

    __slots__ = (
        "attempt",
        "busy",
        "doomed",
        "is_whole_partition",
        "kept",
        "key",
        "parked",
        "partition",
        "queued",
        "records",
        "settled",
        "splits",
        "timer",
        "waiting_since",
        "waits",
    )

    def __init__(self, partition: Partition, key: bytes | None = None, *, is_whole_partition: bool = False) -> None:
        self.partition = partition
        self.key = key
        self.is_whole_partition = is_whole_partition
        self.records: deque[InboundRecord] = deque()
        self.attempt = 0
        self.busy = False
        self.queued = False
        self.parked = False
        self.timer: Timer | None = None
        self.waits = 0
        self.splits: list[int] = []
        self.doomed: Doom | None = None
        self.kept: Kept | None = None
        self.settled = 0
        self.waiting_since = 0.0


class Partition:
    """One assigned partition: its lanes, its frontier, and how much of it is in our hands.

    Attributes:
        halted: It is being given up, or the consumer stops: heads that run may end, nothing else begins.
        finish_below: While halted: heads below this offset are begun all the same. They are gaps below something that
            has ended: without them it could not be committed, and would be handled again.
        draining: It is being given up, but everything in hand is handled first.
        buffered: Records in hand whose handling has not ended.
        busy: Lanes at which a worker is.
        parked: Lanes whose head waits for a timer that goes on with it.
        paused: Fetching is paused for backpressure.
        record_bytes: Size of a large record of the last fetch.
        ended: Where the partition is one lane: records at its head that have ended and are not taken off it yet.
        committed: Last position that was committed, or None.
        first: Offset of the first record that came in this assignment, or None.
        arrivals: How old the next message is.
        passed_over: Offsets of records in hand that are not for this consumer: they end without being handled.
        unplaced: Where it goes on is kept in a database and was not read yet: nothing of it is fetched before.
        astray: What would be fetched next does not exist; when all that is in hand has ended it is placed anew.
        waiting: Keys whose messages wait in the table `kafka_retries`.
        held_up: Its next message must wait in that table, too, and there is no room.
    """

    __slots__ = (
        "_by_key",
        "_closes_gaps",
        "_frontier",
        "_ordering",
        "_position",
        "_single",
        "arrivals",
        "astray",
        "buffered",
        "busy",
        "committed",
        "draining",
        "ended",
        "finish_below",
        "first",
        "halted",
        "held_up",
        "id",
        "parked",
        "passed_over",
        "paused",
        "record_bytes",
        "unplaced",
        "waiting",
    )

    def __init__(self, id: TopicPartition, ordering: Ordering) -> None:
        self.id = id
        self.ended: list[InboundRecord] = []
        self._position: int | None = None
        self.buffered = 0
        self.busy = 0
        self.halted = False
        self.finish_below = 0
        self._closes_gaps = False
        self.draining = False
        self.parked = 0
        self.paused = False
        self.record_bytes = 1
        self.committed: int | None = None
        self.first: int | None = None
        self.arrivals = Arrivals()
        self.passed_over: set[int] = set()
        self.unplaced = False
        self.astray = False
        self.waiting = Waiting()
        self.held_up = False
        self._ordering = ordering
        self._single = Lane(self, is_whole_partition=True) if ordering == "partition" else None
        self._by_key: dict[bytes, Lane] = {}
        self._frontier = None if ordering == "partition" else OffsetFrontier()

    def add(self, records: Sequence[InboundRecord], now: float) -> Sequence[Lane]:
        """Put records (ascending, next after earlier ones) into their lanes.

        Returns:
            Lanes that were touched, each once.
        """
        self.buffered += len(records)
        self.arrivals.add(records[0].offset, records[0].timestamp, records[-1].timestamp)
        if self.first is None:
            self.first = records[0].offset
        single = self._single
        if single is not None:
            if not single.records:
                single.waiting_since = now
            single.records.extend(records)
            return (single,)
        assert self._frontier is not None
        self._frontier.started([record.offset for record in records])
        touched: dict[int, Lane] = {}
        by_key = self._by_key if self._ordering == "key" else None
        for record in records:
            key = record.key
            if by_key is None or key is None:
                lane = Lane(self)
            else:
                found = by_key.get(key)
                lane = found if found is not None else by_key.setdefault(key, Lane(self, key))
            lane.records.append(record)
            touched[id(lane)] = lane
        return tuple(touched.values())

    def finished(self, lane: Lane, records: Sequence[InboundRecord]) -> None:
        """These records at the lane's head have ended, one way or another."""
        frontier = self._frontier
        if len(records) == len(lane.records):
            lane.records.clear()
        else:
            for _ in records:
                lane.records.popleft()
        if frontier is None:
            self._position = records[-1].offset + 1
        else:
            for record in records:
                frontier.finished(record.offset)
            self._position = frontier.position
        self.buffered -= len(records)
        lane.attempt = lane.waits = 0
        if lane.key is not None and not lane.records:
            self._by_key.pop(lane.key, None)

    def placed(self, position: int, *, committed: int | None) -> None:
        """It goes on at this position, which was stored somewhere else than in Kafka.

        Args:
            committed: What is committed in Kafka.
        """
        self.unplaced = False
        self._position = position
        self.committed = committed

    @property
    def position(self) -> int | None:
        """Next offset that the group should read after a restart; None until something has ended."""
        return self.ended[-1].offset + 1 if self.ended else self._position

    def halt(self, *, closes_gaps: bool) -> None:
        """Begin nothing more, but what `finish_below` says.

        Args:
            closes_gaps: False: nothing at all, as what is handled now could not be committed, or time is up.
        """
        self.halted = True
        self._closes_gaps = closes_gaps and self._frontier is not None
        self.find_gaps()

    def find_gaps(self) -> None:
        """Set `finish_below` anew, after a head has ended or was put off.

        It stops at a head that waits for its next attempt: what comes after that cannot be committed anyway.
        """
        self.finish_below = 0
        if self._closes_gaps:
            assert self._frontier is not None
            parked = [lane.records[0].offset for lane in self._by_key.values() if lane.parked]
            self.finish_below = min([self._frontier.reached, *parked])

    def may_begin(self, lane: Lane) -> bool:
        """Whether the head of this lane, which has one, may be handled now."""
        return not self.halted or lane.records[0].offset < self.finish_below

    @property
    def has_gaps(self) -> bool:
        """Whether a halted partition has heads that are still to be begun."""
        return self.finish_below > 0 and any(
            lane.records and lane.records[0].offset < self.finish_below for lane in self._by_key.values()
        )

    @property
    def span(self) -> int:
        """Offsets between the position and the last record in hand: what comes again after a crash."""
        return self.buffered if self._frontier is None else self._frontier.span

    def lanes(self) -> Iterable[Lane]:
        """Lanes that may hold records, but for those of single records, which wait for a worker or a timer."""
        return (self._single,) if self._single is not None else tuple(self._by_key.values())

    @property
    def to_commit(self) -> int | None:
        """Position to commit now, or None if nothing new has ended."""
        position = self.position
        if position is None or (self.committed is not None and position <= self.committed):
            return None  # also where more was committed ahead of the handling, or elsewhere
        return position

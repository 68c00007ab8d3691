"""What was written, what was handled, and the checks between them. Nothing here imports the library under test.

Handlers tell each message by one line, written by `os.write` when they are done with it. The checks read these lines,
the acknowledgements of the writer (another client library) and the dead letters as that library reads them.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

GROUPS = ("partition", "key", "batch")
"""Consumer groups of the trial's members, named by how they work: in order by partition, by key, or in batches."""

Fate = Literal["fine", "flaky", "poison"]
Offsets = Mapping[int, int]
"""Offset by partition."""


def fate(key: str, number: int) -> Fate:
    """What a handler does with a message: always the same for the same message.

    `flaky` fails at its first attempt in each process, `poison` at every attempt.
    """
    lot = zlib.crc32(f"{key}:{number}".encode()) % 1000
    return "poison" if lot < 3 else "flaky" if lot < 10 else "fine"


class Line(NamedTuple):
    """A message that a handler was done with."""

    group: str
    partition: int
    offset: int
    key: str
    number: int
    at: int
    """Nanoseconds of the clock that all processes of a machine share (`time.monotonic_ns`)."""
    member: str


def format_line(group: str, partition: int, offset: int, key: str, number: int) -> bytes:
    """What a handler writes."""
    return f"+ {group} {partition} {offset} {key} {number} {time.monotonic_ns()}\n".encode()


def parse_line(text: str, member: str) -> Line:
    """What `format_line` wrote."""
    plus, group, partition, offset, key, number, at = text.split()
    assert plus == "+", text
    return Line(group, int(partition), int(offset), key, int(number), int(at), member)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something unclean that was done; only what it explains may be handled twice."""

    name: str
    began: int
    """Nanoseconds, as in the lines."""
    ended: int
    member: str | None
    """Whom it befell; None: everybody."""
    committed: Mapping[str, Offsets]
    """Offsets of the groups when it began, or earlier."""

    def explains(self, first: Line, again: Line) -> bool:
        """Whether a message may have been handled again: it had not been committed when the fault came between."""
        return (
            (self.member is None or self.member in (first.member, again.member))
            and first.at <= self.ended
            and again.at >= self.began
            and first.offset >= self.committed[first.group].get(first.partition, 0)
        )


class _Covered:
    """Offsets of one partition for which a group has done what there was to do."""

    __slots__ = ("ahead", "next")

    def __init__(self) -> None:
        self.next = 0
        self.ahead: set[int] = set()

    def add(self, offset: int) -> None:
        if offset >= self.next:
            self.ahead.add(offset)
            while self.next in self.ahead:
                self.ahead.discard(self.next)
                self.next += 1


@dataclass(slots=True)
class Ledger:
    """All that is known of one trial."""

    groups: Sequence[str]
    partitions: int
    lines: list[Line] = field(default_factory=list)
    letters: dict[str, dict[tuple[int, int], int]] = field(default_factory=lambda: defaultdict(dict))
    """What each group has put aside: (partition, offset) -> when its letter was last seen, in nanoseconds."""
    acknowledged: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    """(partition, offset) -> (key, number) of what the broker has acknowledged to the writer."""
    faults: list[Fault] = field(default_factory=list)
    latest: dict[tuple[str, int], int] = field(default_factory=dict)
    """When a group last handled something of a partition, in nanoseconds."""
    reached: dict[tuple[str, int], int] = field(default_factory=dict)
    """Offset after the highest one that a group is done with, of each partition."""
    _covered: dict[tuple[str, int], _Covered] = field(default_factory=lambda: defaultdict(_Covered))

    def handled(self, line: Line) -> None:
        self.lines.append(line)
        self.latest[line.group, line.partition] = line.at
        self._done(line.group, line.partition, line.offset)

    def put_aside(self, group: str, partition: int, offset: int) -> None:
        self.letters[group][partition, offset] = time.monotonic_ns()
        self._done(group, partition, offset)

    def _done(self, group: str, partition: int, offset: int) -> None:
        place = (group, partition)
        self._covered[place].add(offset)
        self.reached[place] = max(self.reached.get(place, 0), offset + 1)

    def covered(self, group: str, partition: int) -> int:
        """Every offset below was handled or put aside."""
        return self._covered[group, partition].next

    def slowest(self) -> int:
        """How far the group is that is behind the others: about so many messages it is done with."""
        return min(
            sum(self.reached.get((group, partition), 0) for partition in range(self.partitions))
            for group in self.groups
        )

    def covers(self, committed: Mapping[str, Offsets]) -> bool:
        """Whether everything below these offsets was handled or put aside: nothing was committed past a failure."""
        return all(
            self.covered(group, partition) >= offset
            for group, offsets in committed.items()
            for partition, offset in offsets.items()
        )

    def has_progressed(self, since: int) -> bool:
        """Whether every group has handled something of every partition since then."""
        return all(
            self.latest.get((group, partition), 0) > since
            for group in self.groups
            for partition in range(self.partitions)
        )


def problems(ledger: Ledger, *, fails: bool) -> list[str]:
    """Everything that is wrong at the end of a trial; empty when all is well.

    Args:
        fails: Whether handlers failed as `fate` says; else nothing may have been put aside.
    """
    poison = {place for place, (key, number) in ledger.acknowledged.items() if fails and fate(key, number) == "poison"}
    found: list[str] = []
    for group in ledger.groups:
        lines = sorted((line for line in ledger.lines if line.group == group), key=lambda line: line.at)
        places = {(line.partition, line.offset) for line in lines}
        letters = ledger.letters[group].keys()
        found += _say(group, "lost", ledger.acknowledged.keys() - places - letters)
        found += _say(group, "put aside though they were good", letters - poison)
        found += _say(group, "not put aside though they always fail", poison - letters)
        found += _say(group, "never written", places - ledger.acknowledged.keys())
        found += _say(
            group,
            "handled as something else",
            [
                (line.partition, line.offset)
                for line in lines
                if ledger.acknowledged.get((line.partition, line.offset)) not in (None, (line.key, line.number))
            ],
        )
        found += _say(group, "handled before an earlier one", out_of_order(lines, by_key=group == "key"))
        again = unexplained(lines, ledger.faults)
        if group == "key" and fails:
            again = not_held_back(again, lines, ledger)
        found += _say(group, "handled again without a reason", [(line.partition, line.offset) for _, line in again])
    return found


def _say(group: str, what: str, places: Collection[tuple[int, int]]) -> list[str]:
    shown = ", ".join(f"[{partition}]@{offset}" for partition, offset in sorted(places)[:10])
    return [f"group {group!r}: {len(places)} messages {what}: {shown}"] if places else []


def out_of_order(lines: Sequence[Line], *, by_key: bool) -> list[tuple[int, int]]:
    """Messages that were first handled after a later one of their key or partition.

    Args:
        lines: Of one group, in the order of time.
    """
    furthest: dict[str | int, int] = {}
    seen: set[tuple[int, int]] = set()
    found = []
    for line in lines:
        place = (line.partition, line.offset)
        if place in seen:
            continue
        seen.add(place)
        lane = line.key if by_key else line.partition
        if line.offset < furthest.get(lane, -1):
            found.append(place)
        furthest[lane] = max(furthest.get(lane, -1), line.offset)
    return found


def duplicates(lines: Sequence[Line]) -> int:
    """How many handlings were not the first one of their message, in any group."""
    return sum(count - 1 for count in Counter((line.group, line.partition, line.offset) for line in lines).values())


def unexplained(lines: Sequence[Line], faults: Sequence[Fault]) -> list[tuple[Line, Line]]:
    """Messages that were handled again although no fault came between that explains it: before, and again.

    Args:
        lines: Of one group, in the order of time.
    """
    previous: dict[tuple[int, int], Line] = {}
    found = []
    for line in lines:
        place = (line.partition, line.offset)
        before = previous.get(place)
        if before is not None and not any(fault.explains(before, line) for fault in faults):
            found.append((before, line))
        previous[place] = line
    return found


def not_held_back(again: Sequence[tuple[Line, Line]], lines: Sequence[Line], ledger: Ledger) -> list[tuple[Line, Line]]:
    """Those that could have been committed before they were handled again.

    With order by key others go on while a message waits for its next attempt. If its partition is given up meanwhile,
    nothing above it can be committed.

    Args:
        lines: All of the group.
    """
    failing: dict[tuple[int, int], int] = dict(ledger.letters["key"])
    for line in lines:
        if fate(line.key, line.number) == "flaky":
            failing[line.partition, line.offset] = line.at
    return [
        (before, line)
        for before, line in again
        if not any(
            partition == line.partition and offset < line.offset and until > before.at
            for (partition, offset), until in failing.items()
        )
    ]

"""Which keys of a partition have messages that wait in the table `kafka_retries`, as this process knows it.

What is known is never less than what the table held when the stored offset was what this member believes: rows are only
added together with that offset, so that a member that has missed one cannot commit anything (see `keyed`). It may be
more, where somebody else has ended a message; whoever comes to its row finds that out.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from deimos_async.message import InboundRecord

__all__ = ["Chain", "Timer", "Verdict", "Waiting", "key_hash"]

_Name: TypeAlias = int | tuple[int]
"""Of a chain: the hash of its key, or the offset of its one message that has no key."""


def key_hash(key: bytes) -> int:
    """64 bits, signed, by which keys are told apart. Two keys of one hash wait for each other, which does no harm."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big", signed=True)


class Timer(Protocol):
    """What wakes something later (an event loop's timer handle)."""

    def cancel(self) -> None:
        """Do not wake it. Any number of times, also after it has."""


@dataclass(slots=True)
class Verdict:
    """What follows a failed attempt of a message that waits. It is kept until the table has it.

    Attributes:
        what: Another attempt later, a dead letter, or nothing more.
        offset: The message's.
        before: How many attempts its row had before this one.
        error: What the attempt raised.
        attempts: The message's, this one included; 0 for one that cannot be decoded.
        delay: Seconds until the next attempt.
        is_sent: Whether the dead letter was acknowledged.
    """

    what: Literal["postpone", "bury", "drop"]
    offset: int
    before: int
    error: BaseException
    attempts: int
    delay: float = 0.0
    is_sent: bool = False


class Chain:
    """Messages of one key that wait, oldest first. Only the head is ever tried.

    Attributes:
        offsets: Of the messages, ascending; at least one while the chain is in use.
        timer: Brings it into line when its head is due; None: it is in line, or at work.
        waits: How often its head has waited for the surroundings in a row.
        verdict: What was decided about the head and is not in the table yet.
    """

    __slots__ = ("_name", "offsets", "timer", "verdict", "waits")

    def __init__(self, name: _Name) -> None:
        self._name = name
        self.offsets: list[int] = []
        self.timer: Timer | None = None
        self.waits = 0
        self.verdict: Verdict | None = None


class Waiting:
    """The chains of one partition. False while there are none.

    Attributes:
        rows: Messages that wait, of all keys.
    """

    __slots__ = ("_chains", "rows")

    def __init__(self) -> None:
        self._chains: dict[_Name, Chain] = {}
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._chains)

    @property
    def keys(self) -> int:
        """How many keys wait."""
        return len(self._chains)

    def chains(self) -> Iterable[Chain]:
        """All of them."""
        return tuple(self._chains.values())

    def holds(self, record: InboundRecord) -> bool:
        """Whether earlier messages of the record's key wait, so that it must queue behind them."""
        return record.key is not None and key_hash(record.key) in self._chains

    def fitting(self, records: Sequence[InboundRecord], per_key: int) -> int:
        """How many of the first ones of these records, whose keys wait, may queue up.

        Args:
            per_key: Most messages of a key that wait.
        """
        lengths: dict[int, int] = {}
        for count, record in enumerate(records):
            assert record.key is not None
            name = key_hash(record.key)
            found = self._chains.get(name)
            length = lengths[name] = lengths.get(name, 0 if found is None else len(found.offsets)) + 1
            if length > per_key:
                return count
        return len(records)

    def add(self, offset: int, hash: int | None) -> tuple[Chain, bool]:
        """A message waits in the table.

        Returns:
            Its chain, and whether that is new.
        """
        name: _Name = (offset,) if hash is None else hash
        chain = self._chains.get(name)
        is_new = chain is None
        if chain is None:
            chain = self._chains[name] = Chain(name)
        if not chain.offsets or offset > chain.offsets[-1]:
            chain.offsets.append(offset)
            self.rows += 1
        elif offset not in chain.offsets:  # the stored offset was set back by hand
            insort(chain.offsets, offset)
            self.rows += 1
        return chain, is_new

    def remove(self, chain: Chain, offset: int) -> bool:
        """A message waits no more; returns whether others of its key do."""
        chain.offsets.remove(offset)
        self.rows -= 1
        if not chain.offsets:
            del self._chains[chain._name]
        return bool(chain.offsets)

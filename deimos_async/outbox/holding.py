"""What must wait: keys with a row that cannot be sent, and whole topics that fail. Each is tried again after a while.

A key is known by its `order_hash`, so that the database can leave its rows out: else they would fill the front of
every read and starve the others. Nothing of this is stored; who takes a slot over finds out anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Backoff", "Held", "Holding"]


K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before the next try: doubled with each failure in a row."""

    initial: float
    maximum: float

    def delay(self, failures: int) -> float:
        """After so many failures in a row, from 1."""
        return float(min(self.maximum, self.initial * 2 ** min(failures - 1, 30)))


@dataclass(slots=True)
class Held:
    """Something that waits.

    Attributes:
        reason: Why, without anything of the message.
        failures: Failures in a row.
        due: When it is tried again.
        is_waiting: Whether it is not due yet.
    """

    reason: str
    failures: int
    due: float
    is_waiting: bool


class Holding(Generic[K]):
    """Things that failed, by name, and when each is tried again. `now` is any clock that only goes forward."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._held: dict[K, Held] = {}

    def fail(self, name: K, reason: str, now: float) -> Held:
        """It failed (again): it waits."""
        held = self._held.get(name)
        failures = 1 if held is None else held.failures + 1
        held = self._held[name] = Held(reason, failures, now + self._backoff.delay(failures), True)
        return held

    def succeed(self, name: K) -> bool:
        """It works. Returns whether it had failed before."""
        return self._held.pop(name, None) is not None

    def release(self, now: float) -> list[K]:
        """Let what is due be tried; returns their names. Their failures in a row are remembered."""
        released = []
        for name, held in self._held.items():
            if held.is_waiting and held.due <= now:
                held.is_waiting = False
                released.append(name)
        return released

    def forget(self, *names: K) -> None:
        """They are somebody else's now."""
        for name in names:
            self._held.pop(name, None)

    def waiting(self) -> list[K]:
        """Names of what waits."""
        return [name for name, held in self._held.items() if held.is_waiting]

    def failing(self) -> Mapping[K, Held]:
        """All that failed and has not worked since, also what is being tried."""
        return dict(self._held)

    def next_due(self) -> float | None:
        """When the next one is due."""
        return min((held.due for held in self._held.values() if held.is_waiting), default=None)

    def __len__(self) -> int:
        return len(self._held)

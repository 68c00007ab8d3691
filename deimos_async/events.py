"""Event names, their frozen payloads, and the bus that carries them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["EVENT_NAMES", "Event", "EventBus", "Subscription"]

EVENT_NAMES: frozenset[str] = frozenset(
    {
        "deimos.ar_consumer.consume_batch",
        "deimos.batch_consumption.initial_failure",
        "deimos.batch_consumption.invalid_records",
        "deimos.batch_consumption.valid_records",
        "deimos.encode_message",
        "deimos.error",
        "deimos.outbox.produce",
    }
)
"""The events of Deimos 2.6, by the same names, and `deimos.error` (a failed delivery, a consumer that stopped)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        name: One of `EVENT_NAMES`.
        payload: What it was about, by the names that the reference page lists for the event.
        duration: Seconds that the work took, or None where nothing was measured.
        error: What the work raised, or None. Events of work that failed are told too.
    """

    name: str
    payload: dict[str, Any]
    duration: float | None = None
    error: BaseException | None = None

    def __getitem__(self, field: str) -> Any:
        return self.payload[field]


@dataclass(frozen=True, slots=True)
class Subscription:
    """What `subscribe` returns; `cancel()` ends it, any number of times."""

    name: str
    callback: Callable[[Event], object]
    cancel: Callable[[], None]


class EventBus:
    """Events of one application. Subscribers run synchronously in order of subscription.

    An exception in a subscriber reaches the code that told the event, as in Deimos. Without subscribers nothing is
    measured or built: ask `wants(name)` first where building the payload costs something.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Subscription]] = {}

    def subscribe(self, name: str, callback: Callable[[Event], object]) -> Subscription:
        """Call `callback(event)` each time. Raises ValueError for a name that does not exist.

        A callback that is subscribed twice is called twice; each subscription is cancelled by itself.
        """
        _check(name)
        subscribers = self._subscribers.setdefault(name, [])

        def cancel() -> None:
            # By identity: an equal callback may have a subscription of its own.
            subscribers[:] = [other for other in subscribers if other is not subscription]

        subscription = Subscription(name, callback, cancel)
        subscribers.append(subscription)
        return subscription

    def clear(self, name: str | None = None) -> None:
        """Forget the subscribers of one event, or all."""
        if name is None:
            for subscribers in self._subscribers.values():
                subscribers.clear()
        else:
            _check(name)
            self._subscribers.get(name, []).clear()

    def wants(self, name: str) -> bool:
        """Whether anybody listens."""
        return bool(self._subscribers.get(name))

    def emit(
        self,
        name: str,
        payload: dict[str, Any],
        *,
        duration: float | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Tell an event to everybody who listens."""
        _check(name)
        subscribers = self._subscribers.get(name)
        if subscribers:
            event = Event(name, payload, duration, error)
            for subscription in tuple(subscribers):
                subscription.callback(event)

    @contextmanager
    def measure(self, name: str, payload: dict[str, Any]) -> Iterator[None]:
        """Tell the event after the block with its duration, and with the error if the block raises."""
        if not self.wants(name):
            yield
            return
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self.emit(name, payload, duration=time.perf_counter() - began, error=error)
            raise
        self.emit(name, payload, duration=time.perf_counter() - began)


def _check(name: str) -> None:
    if name not in EVENT_NAMES:
        known: Sequence[str] = sorted(EVENT_NAMES)
        raise ValueError(f"unknown event {name!r}; the events are {', '.join(known)}")

"""What a pump tells: metrics, the event `deimos.outbox.produce`, spans, and the log of messages of some topics."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from deimos_async.database.outbox.protocol import OutboxRow, Pending
from deimos_async.events import EventBus
from deimos_async.outbox.sending import Outcome
from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics, Tracing

__all__ = ["Describe", "Reports"]

logger = logging.getLogger("deimos_async.outbox")

Describe = Callable[[OutboxRow], Awaitable[object]]
"""What a row says, decoded. May raise anything."""

_EVENT = "deimos.outbox.produce"


class Reports:
    """Of one pump.

    Args:
        is_logged: Whether a topic's messages are logged before they are sent, at level debug.
        describe: How they are decoded for that.
        interval: Seconds between two counts of what waits.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        events: EventBus,
        tracing: Tracing,
        is_logged: Callable[[str], bool],
        describe: Describe,
        interval: float,
    ) -> None:
        self._metrics = metrics
        self._events = events
        self._tracing = tracing
        self._is_logged = is_logged
        self._describe = describe
        self.interval = interval
        self._waiting: set[str] = set()

    async def before(self, topic: str, rows: Sequence[OutboxRow]) -> None:
        """Rows are about to be sent."""
        if not logger.isEnabledFor(logging.DEBUG) or not self._is_logged(topic):
            return
        for row in rows:
            try:
                logger.debug("outbox row %d to %s: %s", row.id, topic, await self._describe(row))
            except Exception as error:
                # Codecs raise what they like, and a message that cannot be shown must still be sent.
                logger.debug("outbox row %d to %s cannot be shown: %s", row.id, topic, type(error).__name__)

    def span(self, topic: str, count: int) -> AbstractContextManager[object]:
        """Around sending."""
        if not self._tracing.enabled:
            return nullcontext()
        return self._tracing.produce_span(topic, count=count)

    def sent(self, topic: str, rows: Sequence[OutboxRow], outcome: Outcome, seconds: float) -> None:
        """Rows were sent, or not."""
        if outcome.done:
            self._metrics.increment(names.OUTBOX_SENT, by=len(outcome.done), tags={"topic": topic})
        if self._events.wants(_EVENT):
            error = outcome.failure
            try:
                self._events.emit(_EVENT, {"topic": topic, "messages": list(rows)}, duration=seconds, error=error)
            except Exception:
                # A subscriber's own error must not keep rows from being deleted that were sent.
                logger.exception("a subscriber of %s failed", _EVENT)

    def parked(self, topic: str, code: str) -> None:
        """A row was put aside."""
        self._metrics.increment(names.OUTBOX_PARKED, tags={"topic": topic, "error.type": code})

    def blocked(self, keys: int) -> None:
        """So many keys wait for rows that cannot be sent."""
        self._metrics.gauge(names.OUTBOX_BLOCKED_KEYS, keys)

    def pending(self, found: Sequence[Pending]) -> None:
        """What waits, for each topic."""
        for topic in self._waiting - {pending.topic for pending in found}:
            self._tell_pending(Pending(topic, 0, 0.0))
        self._waiting |= {pending.topic for pending in found}
        for pending in found:
            self._tell_pending(pending)

    def _tell_pending(self, pending: Pending) -> None:
        tags = {"topic": pending.topic}
        self._metrics.gauge(names.OUTBOX_PENDING, pending.rows, tags=tags)
        self._metrics.gauge(names.OUTBOX_MAX_WAIT, pending.age, tags=tags)

"""Where encoded messages go: acknowledged (`kafka`), buffered (`kafka_async`), or kept for tests (`test`)."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from deimos_async.brokers.protocol import BrokerProducer
from deimos_async.errors import BrokerError, DeliveryError, NotRunningError
from deimos_async.events import EventBus
from deimos_async.message import Delivery
from deimos_async.payload_log import payload_view
from deimos_async.producing.measuring import SendMeasurements
from deimos_async.producing.outlet import Outgoing

__all__ = ["DeliveryErrorHandler", "KafkaAsyncBackend", "KafkaBackend", "TestBackend"]

logger = logging.getLogger("deimos_async.producing")

DeliveryErrorHandler = Callable[[DeliveryError, list[Outgoing]], "Awaitable[None] | None"]
"""Gets the error and the messages that failed; may be async."""


class KafkaBackend:
    """Sends and waits for the acknowledgement of every message."""

    name = "kafka"

    def __init__(self, producers: Mapping[str, BrokerProducer]) -> None:
        self._producers = producers

    async def send(self, messages: Sequence[Outgoing]) -> list[Delivery]:
        """n messages -> n deliveries, in the order given; each cluster gets its own in one go.

        Raises:
            DeliveryError: Indexes are positions in `messages`.
        """
        clusters: dict[str, list[int]] = {}
        for index, message in enumerate(messages):
            clusters.setdefault(message.outlet.cluster, []).append(index)
        if len(clusters) == 1:
            return await self._producers[next(iter(clusters))].send([message.record for message in messages])
        deliveries: list[Delivery | None] = [None] * len(messages)
        failures: list[DeliveryError] = []
        for cluster, indexes in clusters.items():
            try:
                sent: Sequence[Delivery | None] = await self._producers[cluster].send(
                    [messages[index].record for index in indexes]
                )
            except DeliveryError as error:
                failures.append(error)
                sent = error.deliveries or [None] * len(indexes)
            for index, delivery in zip(indexes, sent, strict=True):
                deliveries[index] = delivery
        if failures:
            raise DeliveryError(
                "; ".join(str(failure) for failure in failures),
                indexes=[index for index, delivery in enumerate(deliveries) if delivery is None],
                deliveries=deliveries,
                unknown=any(failure.unknown for failure in failures),
                retriable=all(failure.retriable for failure in failures),
                of_topic=any(failure.of_topic for failure in failures),
            ) from failures[0]
        return [delivery for delivery in deliveries if delivery is not None]


class KafkaAsyncBackend:
    """Buffers and returns at once; one sender takes what has gathered. A service: it sends while it runs.

    Order is kept. What fails reaches the log, the metrics, the event `deimos.error` and `on_delivery_error`.
    """

    name = "kafka_async"

    def __init__(
        self,
        direct: KafkaBackend,
        *,
        buffer_messages: int,
        events: EventBus,
        measured: SendMeasurements,
        on_delivery_error: DeliveryErrorHandler | None,
    ) -> None:
        self._direct = direct
        self._most = buffer_messages
        self._events = events
        self._measured = measured
        self._on_delivery_error = on_delivery_error
        self._buffer: list[Outgoing] = []
        self._taken = 0
        """Messages ever buffered."""
        self._ended = 0
        """Messages ever acknowledged or failed; they end in the order in which they were buffered."""
        self._stopping = False
        self._changed = asyncio.Condition()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Buffer; waits while the buffer is full."""
        async with self._changed:
            while self._taken > self._ended and self._unsent + len(messages) > self._most and not self._stopping:
                await self._changed.wait()
            if self._stopping:
                raise NotRunningError("the application is stopping; nothing more is buffered")
            self._buffer.extend(messages)
            self._taken += len(messages)
            self._changed.notify_all()

    @property
    def _unsent(self) -> int:
        return self._taken - self._ended

    async def flush(self) -> None:
        """Wait until everything buffered so far was acknowledged or has failed, whatever is buffered meanwhile."""
        async with self._changed:
            last = self._taken
            while self._ended < last:
                await self._changed.wait()

    def request_stop(self) -> None:
        """Take nothing more; `run` returns when the buffer is empty."""
        self._stopping = True

    async def run(self, started: asyncio.Event) -> None:
        """Send what is buffered until stopped and empty. Cancelled: what is left is reported as unknown."""
        started.set()
        while True:
            async with self._changed:
                while not self._buffer and not self._stopping:
                    await self._changed.wait()
                messages, self._buffer = self._buffer, []
            if not messages:
                return
            try:
                await self._direct.send(messages)
            except DeliveryError as error:
                failed = [messages[index] for index in error.indexes] if error.indexes else messages
                await self._report(error, failed)
            except BrokerError as error:
                await self._report(DeliveryError(str(error), indexes=range(len(messages))), messages)
            except BaseException as error:
                left, self._buffer = messages + self._buffer, []
                lost = DeliveryError("sending was cut off; these may or may not be stored", unknown=True)
                lost.__cause__ = error
                await self._report(lost, left)
                self._ended = self._taken
                raise
            async with self._changed:
                self._ended += len(messages)
                self._changed.notify_all()

    async def stop(self) -> None:
        """Wake `run`, which sends what is left."""
        self.request_stop()
        async with self._changed:
            self._changed.notify_all()

    async def _report(self, error: DeliveryError, failed: list[Outgoing]) -> None:
        view = payload_view(failed, failed[0].outlet.payload_log) if failed else {}
        logger.error("delivery failed: %s: %s", error, view)
        self._measured.not_delivered(message.outlet.kafka_name for message in failed)
        try:
            self._events.emit("deimos.error", {"type": "delivery", "messages": failed}, error=error)
            if self._on_delivery_error is not None:
                outcome = self._on_delivery_error(error, failed)
                if inspect.isawaitable(outcome):
                    await outcome
        except Exception:
            # User code; the sender must go on for everybody else's messages.
            logger.exception("on_delivery_error or a subscriber of deimos.error failed")


class TestBackend:
    """Keeps messages in memory, encoded like any other."""

    __test__ = False  # not a test case, whatever pytest thinks of its name
    name = "test"

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        """In the order of sending."""

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Keep."""
        self.sent.extend(messages)

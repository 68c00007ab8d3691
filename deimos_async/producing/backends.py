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
from deimos_async.producing.outlet import Outgoing
from deimos_async.telemetry.protocol import Metrics

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
        metrics: Metrics,
        on_delivery_error: DeliveryErrorHandler | None,
    ) -> None:
        self._direct = direct
        self._most = buffer_messages
        self._events = events
        self._metrics = metrics
        self._on_delivery_error = on_delivery_error
        self._buffer: list[Outgoing] = []
        self._unsent = 0
        self._stopping = False
        self._changed = asyncio.Condition()

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Buffer; waits while the buffer is full."""
        async with self._changed:
            while self._unsent and self._unsent + len(messages) > self._most and not self._stopping:
                await self._changed.wait()
            if self._stopping:
                raise NotRunningError("the application is stopping; nothing more is buffered")
            self._buffer.extend(messages)
            self._unsent += len(messages)
            self._changed.notify_all()

    async def flush(self) -> None:
        """Wait until everything buffered so far was acknowledged or has failed."""
        async with self._changed:
            while self._unsent:
                await self._changed.wait()

    def request_stop(self) -> None:
        """Take nothing more; `run` returns when the buffer is empty."""
        self._stopping = True

    async def run(self, started: asyncio.Event) -> None:
        """Send what is buffered until stopped and empty."""
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
            finally:
                async with self._changed:
                    self._unsent -= len(messages)
                    self._changed.notify_all()

    async def stop(self) -> None:
        """Wake `run`, which sends what is left."""
        self.request_stop()
        async with self._changed:
            self._changed.notify_all()

    async def _report(self, error: DeliveryError, failed: list[Outgoing]) -> None:
        view = payload_view(failed, failed[0].outlet.payload_log) if failed else {}
        logger.error("delivery failed: %s: %s", error, view)
        for message in failed:
            self._metrics.increment("deimos.producer.delivery_failures", tags={"topic": message.topic})
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

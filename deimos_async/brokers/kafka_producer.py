"""Sending, by aiokafka's batches.

A call's records are queued for their partitions ("lanes") at once, in order. Each lane has one batch on its way at a
time; while it is, what is queued meanwhile gathers for the next one, so that many small sends become few requests, and
a single one does not wait. One batch at a time is also what keeps the order when the client must be replaced:

- aiokafka gives every batch of an idempotent producer a sequence number. After a batch that failed, the brokers refuse
  the partition's later ones of that producer for ever: the lane goes on with a new client.
- An idempotent batch never expires. After the delivery timeout the client is given up: it gets no new work, and after a
  short grace for batches of other lanes it is ended whatever it does. Only then the lane goes on, so that a stale batch
  cannot arrive after newer ones.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from aiokafka.protocol.metadata import MetadataRequest

from deimos_async.brokers import kafka_clients
from deimos_async.brokers.kafka_errors import describe, is_of_topic, is_refusal, is_too_large, translate
from deimos_async.brokers.kafka_options import KafkaOptions, check_extra
from deimos_async.brokers.partitioner import Partitioner, size_alone
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.errors import BrokerError, ConfigurationError, DeliveryError, NotRunningError
from deimos_async.message import Delivery, OutboundRecord

__all__ = ["KafkaProducer"]

_log = logging.getLogger(__name__)

_STOP_TIMEOUT = 5.0
"""Seconds of a stop for what is on its way, and again for the client's own end."""
_GRACE = 1.0
"""Seconds that batches of other partitions have when a client is given up for one that is stuck."""
_RETRY_INTERVAL = 0.5
"""Seconds between attempts to connect anew."""
_TOPIC_PATIENCE = 1.0
"""Seconds for which a topic that brokers do not know is asked for again: it may be new."""
_TURN = 5000
"""Records that are queued in one go, before other tasks have a turn."""
_AHEAD = 256
"""Queued records from which the next batch is built while one is on its way; fewer may become more until then."""

_ACCEPTED = frozenset(inspect.signature(AIOKafkaProducer.__init__).parameters) - {"self"}
_OURS = "it is set by the settings of producers"
_GUARDED = {
    "acks": "messages are acknowledged by all replicas",
    "enable_idempotence": "messages are sent idempotently",
    "transactional_id": "messages are sent idempotently, not in Kafka's transactions",
    "transaction_timeout_ms": "messages are sent idempotently, not in Kafka's transactions",
    "key_serializer": "records are bytes already",
    "value_serializer": "records are bytes already",
    "partitioner": "keys are placed as by the Java client; give records a partition for another choice",
    "linger_ms": "batches gather while another one is on its way, and never wait otherwise",
    "compression_type": _OURS,
    "max_batch_size": _OURS,
    "max_request_size": _OURS,
}


@dataclass(slots=True)
class _Failure:
    text: str
    cause: BaseException | None = None
    unknown: bool = False
    retriable: bool = False
    of_topic: bool = False


class _Call:
    """One `send`: its records, and what has become of them."""

    __slots__ = ("deliveries", "failures", "future", "is_over", "open", "records")

    def __init__(self, records: Sequence[OutboundRecord], future: asyncio.Future[None]) -> None:
        self.records = records
        self.deliveries: list[Delivery | None] = [None] * len(records)
        self.failures: list[tuple[Sequence[int], _Failure]] = []
        self.open = len(records)
        self.future = future
        self.is_over = False
        """Nobody waits any more: what is still queued must not be sent."""

    def delivered(self, topic: str, partition: int, indexes: Sequence[int], offset: int) -> None:
        deliveries = self.deliveries
        # What Delivery(topic, partition, n) does, at a third of its cost.
        places = zip(repeat(topic), repeat(partition), count(offset))
        made = map(tuple.__new__, repeat(Delivery), places)
        for index, delivery in zip(indexes, made, strict=False):  # the other one has no end
            deliveries[index] = delivery
        self._closed(len(indexes))

    def failed(self, indexes: Sequence[int], failure: _Failure) -> None:
        self.failures.append((indexes, failure))
        self._closed(len(indexes))

    def _closed(self, records: int) -> None:
        self.open -= records
        if not self.open and not self.future.done():
            self.future.set_result(None)

    def result(self) -> list[Delivery]:
        """Raises DeliveryError if any record failed."""
        if not self.failures and not self.open:
            return self.deliveries  # type: ignore[return-value]  # none is None when nothing failed
        indexes = [index for index, delivery in enumerate(self.deliveries) if delivery is None]
        failures = [failure for _, failure in self.failures]
        raise DeliveryError(
            f"{len(indexes)} of {len(self.records)} messages failed: {failures[0].text}",
            indexes=indexes,
            deliveries=self.deliveries,
            unknown=any(failure.unknown for failure in failures),
            retriable=all(failure.retriable for failure in failures),
            of_topic=any(failure.of_topic for failure in failures),
        ) from failures[0].cause


_Part = tuple[_Call, list[int]]
"""Some records of a call, for one lane."""


@dataclass(slots=True)
class _Batch:
    builder: Any
    parts: list[_Part]


@dataclass(slots=True, eq=False)
class _Flight:
    """A batch on its way."""

    lane: _Lane
    client: _Client
    batch: _Batch
    is_over: bool = False


class _Client:
    """An aiokafka producer, and what is on its way through it."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.producer = producer
        self.flights: set[_Flight] = set()
        self.is_retired = False
        self.until = math.inf
        """When a retired client is ended at the latest, by the event loop's clock."""
        self.idle = asyncio.Event()
        self.patience: asyncio.Timeout | None = None
        self.ending: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Lane:
    """What goes to one partition."""

    topic: str
    partition: int
    queue: deque[_Part] = field(default_factory=deque)
    queued: int = 0
    """Records in `queue`."""
    ahead: _Batch | None = None
    """The next batch, built while `flight` is on its way."""
    flight: _Flight | None = None
    spoiled: _Client | None = None
    """A client that cannot be used for this partition any more."""
    max_bytes: int | None = None
    """Smaller than the client's limit, if the broker has refused batches as too large."""
    task: asyncio.Task[None] | None = None


class KafkaProducer:
    """Idempotent, acks=all. Made by `KafkaBroker.producer`.

    Raises:
        ConfigurationError: Options that break a guarantee, or a compression whose library is missing.
    """

    def __init__(
        self, options: ProducerOptions, *, cluster: KafkaOptions, setting: str, extra: Mapping[str, Any]
    ) -> None:
        self._arguments = check_extra({**extra, **options.extra}, _ACCEPTED, _GUARDED, "producer")
        _check_compression(options.compression)
        self._options = options
        self._cluster = cluster
        self._setting = setting
        self._partitioner = Partitioner()
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._gates: dict[str, _Gate] = {}
        self._client: _Client | None = None
        self._clients: set[_Client] = set()
        self._connecting = asyncio.Lock()
        self._calls: set[_Call] = set()
        self._is_started = False
        self._stopping = asyncio.Event()
        self._stop_lock = asyncio.Lock()

    async def start(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: No broker answers within the connect timeout.
        """
        if self._is_started:
            raise NotRunningError("the producer was started before; make a new one")
        self._is_started = True
        try:
            await self._connected()
        except BaseException:
            await self.stop()
            raise

    async def send(self, records: Sequence[OutboundRecord]) -> list[Delivery]:
        """Send all and wait for every acknowledgement; see the port.

        Records of one partition keep their order also over calls that run side by side, by the time of the call.
        Cancelled: what was not on its way is not sent.

        Raises:
            DeliveryError: A record that cannot be sent (unknown topic or partition, too large) fails alone. After the
                delivery timeout `unknown` is set.
        """
        if not self._is_started or self._stopping.is_set():
            raise NotRunningError("the producer does not run")
        if not records:
            return []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.delivery_timeout
        call = _Call(records, loop.create_future())
        self._calls.add(call)
        try:
            async with asyncio.timeout_at(deadline):
                await self._queue_all(call)
                await call.future
        except TimeoutError as error:
            self._give_up(call, error)
        finally:
            call.is_over = True
            self._calls.discard(call)
        return call.result()

    async def stop(self) -> None:
        """Wait a few seconds for what is on its way, then close. What is left fails as unknown."""
        self._stopping.set()
        async with self._stop_lock:
            if waiting := [call.future for call in self._calls if not call.future.done()]:
                await asyncio.wait(waiting, timeout=_STOP_TIMEOUT)
            for client in list(self._clients):
                self._retire(client, 0.0)
            endings = [client.ending for client in self._clients if client.ending is not None]
            if endings:
                await asyncio.wait(endings)
            tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            failure = _Failure("the producer was stopped", unknown=True, retriable=True)
            for call in list(self._calls):
                if not call.future.done():
                    call.failures.append(((), failure))
                    call.future.set_result(None)

    # From a call to its lanes

    async def _queue_all(self, call: _Call) -> None:
        topics = {record.topic for record in call.records}
        client = self._client
        if (
            client is not None
            and not client.is_retired
            and len(call.records) <= _TURN
            and not any(topic in self._gates for topic in topics)
        ):
            cluster = client.producer.client.cluster
            counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
            if all(counts.values()):
                self._queue(call, range(len(call.records)), counts, {})
                return
        await self._queue_in_turns(call, topics)

    async def _queue_in_turns(self, call: _Call, topics: set[str]) -> None:
        """The way for calls that must wait in between: later calls for the same topics queue up behind them."""
        async with AsyncExitStack() as stack:
            for topic in sorted(topics):  # always in the same order: two calls cannot wait for each other
                await stack.enter_async_context(self._gates.get(topic) or _Gate(self._gates, topic))
            counts = {}
            missing: dict[str, _Failure] = {}
            for topic in topics:
                known = await self._count_partitions(topic)
                if isinstance(known, _Failure):
                    missing[topic] = known
                else:
                    counts[topic] = known
            indexes: Sequence[int] = range(len(call.records))
            if missing:
                for topic, failure in missing.items():
                    call.failed([i for i in indexes if call.records[i].topic == topic], failure)
                indexes = [i for i in indexes if call.records[i].topic not in missing]
            sticky: dict[str, tuple[int, int]] = {}
            for start in range(0, len(indexes), _TURN):
                if start:
                    await asyncio.sleep(0)
                self._queue(call, indexes[start : start + _TURN], counts, sticky)

    def _queue(
        self,
        call: _Call,
        indexes: Sequence[int],
        counts: Mapping[str, int],
        sticky: dict[str, tuple[int, int]],
    ) -> None:
        """Choose partitions, refuse what cannot be sent, and queue the rest."""
        records = call.records
        keyed = self._partitioner.keyed
        limit = self._options.max_request_bytes
        small = limit - 256
        shares: dict[str, dict[int, list[int]]] = {}
        last: str | None = None
        for index in indexes:
            record = records[index]
            topic, key, value = record.topic, record.key, record.value
            if topic is not last:
                last, partitions, places = topic, counts[topic], shares.setdefault(topic, {})
            rough = (len(value) if value else 0) + (len(key) if key else 0)
            for name, data in record.headers:
                # At most: four bytes for each character, and five for each of two lengths.
                rough += 4 * len(name) + 10 + (len(data) if data else 0)
            if rough > small:
                size = size_alone(record)
                if size > limit:
                    text = f"topic {topic!r}: a message of {size} bytes is above max_request_bytes ({limit})"
                    call.failed([index], _Failure(text))
                    continue
            partition = record.partition
            if partition is None:
                if record.partition_key is not None:
                    key = record.partition_key
                if key is not None:
                    partition = keyed(key, partitions)
                else:
                    partition, used = sticky.get(topic, (0, 0))
                    if used % Partitioner.STICKY_RECORDS == 0:
                        partition = self._partitioner.sticky(topic, partitions)
                    sticky[topic] = (partition, used + 1)
            elif not 0 <= partition < partitions:
                text = f"topic {topic!r} has no partition {partition}, it has {partitions}"
                call.failed([index], _Failure(text))
                continue
            share = places.get(partition)
            if share is None:
                places[partition] = [index]
            else:
                share.append(index)
        for topic, places in shares.items():
            for partition, share in places.items():
                lane = self._lanes.get((topic, partition))
                if lane is None:
                    lane = self._lanes[topic, partition] = _Lane(topic, partition)
                lane.queue.append((call, share))
                lane.queued += len(share)
                self._kick(lane)

    async def _count_partitions(self, topic: str) -> int | _Failure:
        """How many partitions the topic has; asks until the answer is certain, or the caller's deadline ends it."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + _TOPIC_PATIENCE
        while True:
            try:
                producer = (await self._connected()).producer
                known = producer.client.cluster.partitions_for_topic(topic)
                if known:
                    return len(known)
                # aiokafka's own question would make the topic where brokers allow that.
                response = await producer.client.send(
                    producer.client.get_random_node(), MetadataRequest([topic], allow_auto_topic_creation=False)
                )
                error = kafka.for_code(response.to_object()["topics"][0]["error_code"])
                if error in (kafka.NoError, kafka.LeaderNotAvailableError):
                    return len(await producer.partitions_for(topic))
                if error is not kafka.UnknownTopicOrPartitionError:
                    return _Failure(f"topic {topic!r}: {describe(error())}", error(), of_topic=True)
                if loop.time() > patience:
                    text = f"cluster of setting '{self._setting}' has no topic {topic!r}: create it first"
                    return _Failure(text, of_topic=True)
            except (kafka.KafkaError, BrokerError, NotRunningError) as failed:
                if not failed.retriable:
                    return _Failure(f"topic {topic!r}: {describe(failed)}", failed, of_topic=True)
                _log.debug("partitions of topic %s could not be found out yet: %r", topic, failed)
            if await self._stops_within(_RETRY_INTERVAL / 2):
                return _Failure("the producer was stopped", retriable=True)

    # From a lane to the broker

    def _kick(self, lane: _Lane) -> None:
        if lane.task is not None:
            return
        if lane.flight is None or (lane.ahead is None and lane.queued >= _AHEAD):
            lane.task = asyncio.get_running_loop().create_task(
                self._drive(lane), name=f"send {lane.topic}[{lane.partition}]"
            )

    async def _drive(self, lane: _Lane) -> None:
        try:
            while lane.queued or lane.ahead is not None:
                if lane.flight is not None:
                    if lane.ahead is None and lane.queued >= _AHEAD and not lane.flight.client.is_retired:
                        lane.ahead = self._build(lane, lane.flight.client)
                    return
                client = await self._client_for(lane)
                if client is not None:
                    await self._take_off(lane, client)
        finally:
            lane.task = None

    async def _client_for(self, lane: _Lane) -> _Client | None:
        """A client that this lane may use. None: it could not be had, and what cannot wait for it has failed."""
        if lane.spoiled is not None and lane.spoiled is self._client:
            self._retire(lane.spoiled, self._options.delivery_timeout)
        try:
            client = await self._connected()
            if not client.producer.client.cluster.partitions_for_topic(lane.topic):
                # A new client must ask. One that is given up meanwhile would never get an answer.
                async with asyncio.timeout(self._cluster.request_timeout):
                    await client.producer.partitions_for(lane.topic)
        except (kafka.KafkaError, BrokerError, NotRunningError, TimeoutError) as error:
            retriable = isinstance(error, TimeoutError) or error.retriable
            failure = _Failure(f"topic {lane.topic!r}: {describe(error)}", error, of_topic=True)
            self._drop(lane, None if retriable else failure)
            await self._stops_within(_RETRY_INTERVAL)
            return None
        lane.spoiled = None
        return None if client.is_retired else client

    def _drop(self, lane: _Lane, failure: _Failure | None) -> None:
        """Take out of the queue what nobody waits for any more, or with a failure everything."""
        if lane.ahead is not None:
            self._requeue(lane, lane.ahead.parts)
            lane.ahead = None
        parts, lane.queue = lane.queue, deque()
        for call, indexes in parts:
            if call.is_over:
                lane.queued -= len(indexes)
            elif failure is not None:
                lane.queued -= len(indexes)
                call.failed(indexes, failure)
            else:
                lane.queue.append((call, indexes))

    async def _take_off(self, lane: _Lane, client: _Client) -> None:
        batch, lane.ahead = lane.ahead, None
        if batch is not None and any(call.is_over for call, _ in batch.parts):
            self._requeue(lane, batch.parts)
            batch = None
        if batch is None:
            batch = self._build(lane, client)
        if not batch.parts:
            return
        flight = lane.flight = _Flight(lane, client, batch)
        client.flights.add(flight)
        client.idle.clear()
        try:
            # Does not wait: the topic is known, and no other batch of the partition is there.
            future = await client.producer.send_batch(batch.builder, lane.topic, partition=lane.partition)
        except kafka.ProducerClosed:
            self._land(flight)
            self._requeue(lane, batch.parts)
        except Exception as error:
            self._land(flight)
            lane.spoiled = client
            retriable = bool(getattr(error, "retriable", False))
            failure = _Failure(f"topic {lane.topic!r}: {describe(error)}", error, retriable=retriable)
            for call, indexes in batch.parts:
                call.failed(indexes, failure)
        else:
            future.add_done_callback(lambda done: self._landed(flight, done))

    def _build(self, lane: _Lane, client: _Client) -> _Batch:
        """Take from the queue what fits one batch."""
        builder = client.producer.create_batch()
        append = builder.append
        queue = lane.queue
        max_bytes = lane.max_bytes
        batch = _Batch(builder, [])
        is_full = False
        no_headers: list[tuple[str, bytes | None]] = []
        while queue and not is_full:
            call, indexes = queue.popleft()
            if call.is_over:
                lane.queued -= len(indexes)
                continue
            records = call.records
            taken = 0
            for index in indexes:
                record = records[index]
                headers = record.headers
                if max_bytes is not None and builder.record_count() and builder.size() + size_alone(record) > max_bytes:
                    is_full = True
                    break
                try:
                    appended = append(
                        timestamp=record.timestamp,
                        key=record.key,
                        value=record.value,
                        headers=list(headers) if headers else no_headers,
                    )
                except (TypeError, ValueError, OverflowError) as error:
                    # The builder is as before. Out with this one; what is left of the part comes back in front.
                    call.failed([index], _Failure(f"topic {lane.topic!r}: not a record: {describe(error)}", error))
                    lane.queued -= 1
                    queue.appendleft((call, indexes[taken + 1 :]))
                    indexes = indexes[:taken]
                    break
                if appended is None:
                    is_full = True
                    break
                taken += 1
            if is_full and taken < len(indexes):
                queue.appendleft((call, indexes[taken:]))
                indexes = indexes[:taken]
            if indexes:
                batch.parts.append((call, indexes))
                lane.queued -= len(indexes)
        builder.close()
        return batch

    def _requeue(self, lane: _Lane, parts: Sequence[_Part]) -> None:
        for call, indexes in reversed(parts):
            if not call.is_over and indexes:
                lane.queue.appendleft((call, indexes))
                lane.queued += len(indexes)

    def _landed(self, flight: _Flight, done: asyncio.Future[Any]) -> None:
        """The broker has answered for a batch."""
        error = None if done.cancelled() else done.exception()
        if flight.is_over:
            return
        lane = flight.lane
        self._land(flight)
        parts = flight.batch.parts
        if error is None and not done.cancelled():
            offset = done.result().offset
            for call, indexes in parts:
                call.delivered(lane.topic, lane.partition, indexes, offset)
                if offset >= 0:
                    offset += len(indexes)
        else:
            lane.spoiled = flight.client
            records = sum(len(indexes) for _, indexes in parts)
            if error is not None and is_too_large(error) and records > 1:
                # The topic's limit is below ours: smaller ones from now on, and what is larger goes, and fails, alone.
                lane.max_bytes = flight.batch.builder.size() // 2
                self._requeue(lane, parts)
            else:
                self._fail(flight, error)
        self._kick(lane)

    def _fail(self, flight: _Flight, error: BaseException | None) -> None:
        lane = flight.lane
        if error is None:
            failure = _Failure(
                f"topic {lane.topic!r} partition {lane.partition}: no acknowledgement; the broker may have stored it",
                unknown=True,
                retriable=True,
            )
        else:
            translated = translate(error, f"topic {lane.topic!r} partition {lane.partition}")
            failure = _Failure(
                str(translated),
                error,
                unknown=not is_refusal(error),
                retriable=translated.retriable,
                of_topic=is_of_topic(error),
            )
        for call, indexes in flight.batch.parts:
            call.failed(indexes, failure)

    def _land(self, flight: _Flight) -> None:
        flight.is_over = True
        flight.lane.flight = None
        flight.client.flights.discard(flight)
        if not flight.client.flights:
            flight.client.idle.set()

    def _give_up(self, call: _Call, error: TimeoutError) -> None:
        """The delivery timeout is over: whatever is on its way must not arrive after what is sent later."""
        call.is_over = True
        stuck = [
            flight
            for client in self._clients
            for flight in client.flights
            if any(part[0] is call for part in flight.batch.parts)
        ]
        for client in {flight.client for flight in stuck}:
            self._retire(client, _GRACE)
        topics = ", ".join(sorted({repr(record.topic) for record in call.records}))
        call.failures.append(
            (
                (),
                _Failure(
                    f"topic {topics}: no acknowledgement within {self._options.delivery_timeout:g} s"
                    + ("; the broker may have stored it" if stuck else ""),
                    error,
                    unknown=bool(stuck),
                    retriable=True,
                ),
            )
        )

    # Clients

    async def _connected(self) -> _Client:
        """The client in use, or a new one.

        Raises:
            BrokerError: It cannot be started.
        """
        client = self._client
        if client is not None and not client.is_retired:
            return client
        async with self._connecting:
            client = self._client
            if client is not None and not client.is_retired:
                return client
            if self._stopping.is_set():
                raise NotRunningError("the producer does not run")
            arguments = {
                **self._arguments,
                **self._cluster.connection(self._setting),
                "client_id": self._options.client_id,
                "acks": "all",
                "enable_idempotence": True,
                "linger_ms": 0,
                "compression_type": self._options.compression,
                "max_batch_size": self._options.max_batch_bytes,
                "max_request_size": self._options.max_request_bytes,
            }
            client = _Client(AIOKafkaProducer(**arguments))
            client.idle.set()
            try:
                await kafka_clients.connect(client.producer.start, self._cluster, self._setting)
            except BaseException:
                await self._close(client, _STOP_TIMEOUT)
                raise
            if self._stopping.is_set():
                await self._close(client, _STOP_TIMEOUT)
                raise NotRunningError("the producer does not run")
            self._client = client
            self._clients.add(client)
            return client

    def _retire(self, client: _Client, grace: float) -> None:
        """No new work for this client; it is ended when it has none left, after `grace` seconds at the latest."""
        loop = asyncio.get_running_loop()
        client.until = min(client.until, loop.time() + grace)
        client.is_retired = True
        if client.ending is None:
            client.ending = loop.create_task(self._end(client), name="end kafka producer")
        elif client.patience is not None:
            client.patience.reschedule(client.until)

    async def _end(self, client: _Client) -> None:
        try:
            async with asyncio.timeout_at(client.until) as client.patience:
                await client.idle.wait()
        except TimeoutError:
            pass
        client.patience = None
        # With batches that are stuck the client's own end would wait for them.
        await self._close(client, 0.0 if client.flights else _STOP_TIMEOUT)
        for flight in list(client.flights):
            self._land(flight)
            self._fail(flight, None)
            self._kick(flight.lane)
        self._clients.discard(client)

    async def _close(self, client: _Client, timeout: float) -> None:
        producer = client.producer
        await kafka_clients.close(
            producer.stop,
            lambda: (producer, producer._sender, producer._message_accumulator),
            producer.client,
            timeout=timeout,
        )

    async def _stops_within(self, seconds: float) -> bool:
        """Wait, or less if the producer is stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True


class _Gate:
    """A lock for a topic. It is in `gates` as long as somebody holds it or waits for it."""

    def __init__(self, gates: dict[str, _Gate], topic: str) -> None:
        self._gates = gates
        self._topic = topic
        self._lock = asyncio.Lock()
        self._users = 0

    async def __aenter__(self) -> None:
        self._gates[self._topic] = self
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            del self._gates[self._topic]


def _check_compression(compression: str | None) -> None:
    if compression is None:
        return
    known = AIOKafkaProducer._COMPRESSORS.get(compression)
    if known is None:
        raise ConfigurationError(f"compression {compression!r} is unknown; one of gzip, snappy, lz4, zstd, or none")
    if not known[0]():
        raise ConfigurationError(
            f"compression {compression!r} needs a library: pip install 'deimos-async[compression]'"
        )

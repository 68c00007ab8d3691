"""Sends rows, and finds out what has become of each.

A worker has one producer for each cluster, which all of its slots share: with one for each slot the same rows would
make several times as many requests, each of a fraction of the size. Then what is on its way can be abandoned as a whole
only; that is when leases are lost, and a worker loses all of them at once but in the rarest of cases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deimos_async.brokers.protocol import Broker, BrokerProducer, ProducerOptions, TopicLimits
from deimos_async.database.outbox.protocol import OutboxRow
from deimos_async.errors import BrokerError, DeliveryError, LifecycleError
from deimos_async.message import OutboundRecord
from deimos_async.outbox.book import RECENT, TopicBook
from deimos_async.outbox.checks import Problem, find_problem
from deimos_async.outbox.records import to_record
from deimos_async.outbox.settling import compact, deletable

__all__ = ["Outcome", "Sender"]

logger = logging.getLogger("deimos_async.outbox")

_MOST_PROBES = 20
"""Rows that are sent alone at a time to find out which ones are refused."""


@dataclass(slots=True)
class Outcome:
    """What has become of rows.

    Attributes:
        done: Rows that may be deleted.
        poison: Rows that cannot be sent, the first one of each key, and why.
        failure: Why the topic as a whole failed; None: it did not. All rows that are not in `done` stay.
    """

    done: Sequence[OutboxRow] = ()
    poison: list[tuple[OutboxRow, Problem]] = field(default_factory=list)
    failure: BaseException | None = None


class Sender:
    """Producers, one for each cluster, made when they are needed.

    Args:
        is_compacted: Whether only the last row of each key in a batch is sent, for a topic.
        may_send: Asked right before rows of these shards are handed to a producer.
    """

    def __init__(
        self,
        brokers: Mapping[str, Broker],
        options: ProducerOptions,
        book: TopicBook,
        *,
        is_compacted: Callable[[str], bool],
        may_send: Callable[[Iterable[int]], bool],
    ) -> None:
        self._brokers = brokers
        self._options = options
        self._book = book
        self._is_compacted = is_compacted
        self._may_send = may_send
        self._producers: dict[str, BrokerProducer] = {}
        self._starting = asyncio.Lock()
        self._is_stopped = False

    async def prepare(self) -> None:
        """Connect ahead of the first row. A cluster that is away shows with the first row again."""
        for cluster in self._brokers:
            try:
                await self._producer(cluster)
            except (BrokerError, LifecycleError) as error:
                logger.debug("no producer of the outbox for cluster %s yet: %s", cluster, error)

    async def send(self, topic: str, rows: Sequence[OutboxRow]) -> Outcome:
        """Send rows of one topic, in order, and wait until the fate of each is known.

        Cancelled: what is on its way is abandoned by `stop`; rows may have been stored.
        """
        try:
            limits = await self._book.limits(topic)
            producer = await self._producer(self._book.cluster_of(topic))
            checked = None if limits is None else self._checked(rows, limits)
            if checked is not None and checked[2]:
                # The topic may have been changed for these very rows.
                limits = await self._book.limits(topic, within=RECENT)
                checked = None if limits is None else self._checked(rows, limits)
        except (BrokerError, LifecycleError) as error:
            return Outcome(failure=error)
        if checked is None:
            return Outcome(failure=_unknown_topic(topic))
        rows, records, poison = checked
        if not rows:
            return Outcome(poison=poison)
        if self._is_compacted(topic):
            standing = compact([(row.order_hash, row.key) for row in rows])
        else:
            standing = list(range(len(rows)))
        places = sorted(set(standing))
        if not self._may_send({row.shard for row in rows}):
            return Outcome(poison=poison)
        refusal: DeliveryError | None = None
        unsent: set[int] = set()
        try:
            await producer.send(records if len(places) == len(rows) else [records[place] for place in places])
        except DeliveryError as error:
            refusal = error
            unsent = {places[index] for index in error.indexes}
        except (BrokerError, LifecycleError) as error:
            return Outcome(poison=poison, failure=error)
        orders = [row.order_hash for row in rows]
        failed_rows = {place for place, stands in enumerate(standing) if stands in unsent}
        outcome = Outcome([rows[place] for place in deletable(orders, failed_rows)], poison)
        if refusal is None:
            return outcome
        if refusal.retriable or refusal.of_topic:
            outcome.failure = refusal
            return outcome
        suspects = {place: (rows[place], records[place]) for place in sorted(unsent)}
        sent = await self._find_out(topic, suspects, producer, outcome)
        outcome.done = [*outcome.done, *(rows[place] for place, stands in enumerate(standing) if stands in sent)]
        return outcome

    def _checked(
        self, rows: Sequence[OutboxRow], limits: TopicLimits
    ) -> tuple[Sequence[OutboxRow], list[OutboundRecord], list[tuple[OutboxRow, Problem]]]:
        """Rows that can be sent, their records, and those that cannot; nothing of a key after such a row is sent."""
        poison: list[tuple[OutboxRow, Problem]] = []
        blocked: set[int] = set()
        kept: list[OutboxRow] = []
        records: list[OutboundRecord] = []
        most = self._options.max_request_bytes
        harmless = min(most, limits.max_message_bytes or most) // 2
        for row in rows:
            if blocked and row.order_hash in blocked:
                continue
            try:
                record = to_record(row)
                if row.size < harmless and row.headers is None and row.partition is None and row.key is not None:
                    problem = None  # nothing that could be wrong with it, without a call for each
                else:
                    problem = find_problem(record, limits, max_request_bytes=most)
            except ValueError:
                problem = Problem("headers", f"topic {row.topic!r}: the stored headers of row {row.id} cannot be read")
            if problem is not None:
                poison.append((row, problem))
                blocked.add(row.order_hash)
            else:
                kept.append(row)
                records.append(record)
        return kept, records, poison

    async def _find_out(
        self,
        topic: str,
        suspects: Mapping[int, tuple[OutboxRow, OutboundRecord]],
        producer: BrokerProducer,
        outcome: Outcome,
    ) -> set[int]:
        """Rows were refused for good, and not for their topic. One bad record fails the whole batch that it is in: the
        first one of each key is sent alone.

        Returns:
            Places of rows that could be sent alone.
        """
        sent: set[int] = set()
        try:
            limits = await self._book.limits(topic, within=0)
        except BrokerError as failed:
            outcome.failure = failed
            return sent
        if limits is None:
            outcome.failure = _unknown_topic(topic)
            return sent
        firsts: dict[int, tuple[int, OutboxRow, OutboundRecord]] = {}
        for place, (row, record) in suspects.items():
            firsts.setdefault(row.order_hash, (place, row, record))
        most = self._options.max_request_bytes
        unexplained = []
        for place, row, record in firsts.values():
            problem = find_problem(record, limits, max_request_bytes=most)
            if problem is not None:
                outcome.poison.append((row, problem))
            else:
                unexplained.append((place, row, record))
        for place, row, record in unexplained[:_MOST_PROBES]:
            if not self._may_send([row.shard]):
                return sent
            try:
                await producer.send([record])
                sent.add(place)
            except DeliveryError as failed:
                if failed.retriable or failed.of_topic:
                    outcome.failure = failed
                    break
                outcome.poison.append((row, Problem("refused", str(failed))))
            except (BrokerError, LifecycleError) as failed:
                outcome.failure = failed
                break
        return sent

    async def _producer(self, cluster: str) -> BrokerProducer:
        producer = self._producers.get(cluster)
        if producer is not None:
            return producer
        async with self._starting:
            producer = self._producers.get(cluster)
            if producer is not None:
                return producer
            if self._is_stopped:
                raise LifecycleError("what was on its way is abandoned")
            broker = self._brokers.get(cluster)
            if broker is None:
                raise BrokerError(f"there is no cluster {cluster!r}")
            producer = broker.producer(self._options)
            await producer.start()
            if self._is_stopped:
                await producer.stop()
                raise LifecycleError("what was on its way is abandoned")
            self._producers[cluster] = producer
            return producer

    async def stop(self) -> None:
        """Close the producers, in bounded time. Without calls of `send` that wait, what is on its way is cut off."""
        self._is_stopped = True
        producers, self._producers = list(self._producers.values()), {}
        await asyncio.gather(*(producer.stop() for producer in producers))


def _unknown_topic(topic: str) -> BrokerError:
    return BrokerError(f"topic {topic!r} does not exist: create it (python -m deimos_async topics create APP)")

"""Bringing assigned partitions to their stored offsets, before anything of them is handled.

A partition that was just assigned, or whose stored offset was moved by somebody else, is paused and `unplaced`. One
task reads where it goes on, checks that the topic still holds that, seeks there and lets it go. While the database or
the brokers are away it waits; other partitions are not held up by that.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping, Sequence

from deimos_async.brokers.protocol import BrokerConsumer
from deimos_async.consuming.dispatch import Dispatcher
from deimos_async.consuming.lanes import Partition
from deimos_async.consuming.on_error import backoff_delay
from deimos_async.consuming.stored_offsets import PATIENCE, Place, StoredOffsets, go_on_at
from deimos_async.database.protocol import Bookmark, WaitingRow
from deimos_async.errors import DatabaseUnavailableError, DeimosError
from deimos_async.message import TopicPartition

__all__ = ["Placer"]

logger = logging.getLogger("deimos_async.consuming")


class Placer:
    """Places the partitions of one consumer. `run` is a task of its own; the rest is called by the runner."""

    def __init__(self, offsets: StoredOffsets, consumer: BrokerConsumer, dispatcher: Dispatcher) -> None:
        self._offsets = offsets
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._wake = asyncio.Event()
        self._stopping = False
        self._due: dict[TopicPartition, float] = {}
        """When to look at a partition again, in loop time."""
        self._tries: dict[TopicPartition, int] = {}
        """How often in a row a partition was placed without anything being committed afterwards."""
        self._waits = 0
        """How often in a row nothing could be read."""
        self.failure: Exception | None = None
        """Why the consumer must stop: partitions that cannot be placed."""

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """They are ours from now on: nothing of them is fetched before they are placed."""
        self.forget(partitions)
        self._consumer.pause(partitions)
        self._wake.set()

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are not ours any more."""
        self._offsets.forget(partitions)
        for partition in partitions:
            self._due.pop(partition, None)
            self._tries.pop(partition, None)

    def restarted(self, partition: TopicPartition) -> None:
        """What was in hand of it was dropped, and where it goes on must be read again."""
        place = self._offsets.places.pop(partition, None)
        self._consumer.pause((partition,))
        got_on = place is not None and place.next_offset > place.began
        tries = self._tries[partition] = 1 if got_on else self._tries.get(partition, 0) + 1
        # If it is a member that has lost the partition and does not know yet, the two take turns until it does.
        delay = backoff_delay(self._dispatcher.work.policy.backoff, tries, random.random())  # noqa: S311  # jitter
        self._due[partition] = asyncio.get_running_loop().time() + delay
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Place partitions as they come, until `stop`, or until one cannot be (`failure`).

        Cancelled: what is unplaced stays so. Better is `stop`, as some drivers leave connections behind that are cut
        off while they are being opened.
        """
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._wake.clear()
            waiting = [part for part in self._dispatcher.partitions.values() if part.unplaced and not part.halted]
            due = [partition for partition in waiting if self._due.get(partition.id, 0.0) <= loop.time()]
            if due:
                try:
                    await self._try_to_place(due)
                except Exception as error:
                    # The runner stops the consumer for it, whatever the driver or the brokers have raised.
                    self.failure = error
                    self._dispatcher.work.on_failure(error, ())
                    self._dispatcher.on_change()
                    return
                continue
            next_due = min((self._due[partition.id] for partition in waiting), default=None)
            try:
                async with asyncio.timeout_at(next_due):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _try_to_place(self, partitions: Sequence[Partition]) -> None:
        work = self._dispatcher.work
        try:
            async with asyncio.timeout(PATIENCE):
                await self._place(partitions)
            self._waits = 0
            return
        except TimeoutError as error:
            failed: DeimosError = DatabaseUnavailableError(f"no answer within {PATIENCE:g} s")
            failed.__cause__ = error
        except DeimosError as error:
            if not error.retriable:
                raise
            failed = error
        self._waits += 1
        delay = backoff_delay(work.policy.backoff, self._waits, random.random())  # noqa: S311  # jitter
        logger.warning(
            "%s: where %d partitions go on cannot be read, next try in %.2f s: %s",
            work.name, len(partitions), delay, failed,
        )  # fmt: skip
        for partition in partitions:
            self._due[partition.id] = asyncio.get_running_loop().time() + delay

    async def _place(self, partitions: Sequence[Partition]) -> None:
        offsets, consumer, dispatcher = self._offsets, self._consumer, self._dispatcher
        store, group, topic = offsets.store, offsets.group, dispatcher.work.topic
        ids = [partition.id for partition in partitions]
        committed = await consumer.committed(ids)
        rows = await store.read(group, topic)
        if new := [id for id in ids if id.partition not in rows]:
            begins, extents = await consumer.starting_points(new), await consumer.extents(new)
            await store.insert(group, {id: Bookmark(begins[id], extents[id].topic_id) for id in new})
            rows = await store.read(group, topic)
        # After the rows: others may move them meanwhile, and an older end of the topic would not hold them.
        extents = await consumer.extents(ids)
        placed: list[tuple[Partition, Bookmark]] = []
        for partition in sorted(partitions, key=lambda partition: partition.id):
            id = partition.id
            row = rows.get(id.partition)
            if row is None:
                continue  # deleted meanwhile: looked at again at once
            wanted, problem = go_on_at(row, extents[id], on_lost=offsets.on_lost, group=group, partition=id)
            if problem is not None:
                logger.error("%s: %s", dispatcher.work.name, problem)
            if wanted != row and not await store.replace(group, id, row, wanted):
                continue  # moved meanwhile: looked at again at once
            placed.append((partition, wanted))
        # After the offsets: messages that were put aside since then were so with an offset that is not ours.
        waiting = await self._waiting([partition.id for partition, _ in placed])
        for partition, wanted in placed:
            id = partition.id
            if dispatcher.partitions.get(id) is not partition or id not in consumer.assignment():
                continue  # taken away meanwhile
            known = committed.get(id)
            if known is not None and known > wanted.next_offset:
                logger.warning(
                    "%s: %s[%d] goes on at the stored offset %d, though %d is committed in Kafka: the group has run "
                    "without effectively_once since, or an older state of the database was restored",
                    dispatcher.work.name, *id, wanted.next_offset, known,
                )  # fmt: skip
            offsets.places[id] = Place(wanted.next_offset, wanted.topic_id)
            self._due.pop(id, None)
            partition.placed(wanted.next_offset, committed=known)
            dispatcher.load(partition, waiting.get(id.partition, ()))
            consumer.seek(id, wanted.next_offset)
            consumer.resume((id,))
            dispatcher.on_change()

    async def _waiting(self, ids: Sequence[TopicPartition]) -> Mapping[int, Sequence[WaitingRow]]:
        """Messages of these partitions that wait in the database, where this consumer has such; by partition."""
        work = self._dispatcher.work
        found: dict[int, list[WaitingRow]] = {}
        if work.keyed is not None and ids:
            for row in await work.keyed.waiting(work.topic, [id.partition for id in ids]):
                found.setdefault(row.partition, []).append(row)
        return found

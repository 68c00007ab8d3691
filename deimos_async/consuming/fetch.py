"""The poll loop: asks the broker on and on, also while handlers work or everything is paused."""

from __future__ import annotations

from collections.abc import Sequence

from deimos_async.brokers.protocol import BrokerConsumer
from deimos_async.consuming.commit import Committer
from deimos_async.consuming.dispatch import Dispatcher
from deimos_async.consuming.lanes import Partition
from deimos_async.errors import OffsetOutOfRangeError
from deimos_async.message import InboundRecord, TopicPartition

__all__ = ["Fetcher"]

_POLL_TIMEOUT = 0.5
"""Seconds that one fetch waits for records. A stop wakes it."""


_SPAN = 10
"""How many times the buffer the offsets from the position on may be: one message that waits would else let what is read
again after a crash grow without end.
"""


_HEADER_OVERHEAD = 100
"""Bytes that a header takes in memory besides its name and its value: many small ones are not small."""


class Fetcher:
    """Moves records from the broker's consumer into the dispatcher, pausing partitions that are full."""

    def __init__(
        self, consumer: BrokerConsumer, dispatcher: Dispatcher, committer: Committer, *, max_records: int
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._committer = committer
        self._max_records = max_records
        self._stopped = False
        self.is_handing_over = False
        """Whether fetched records are not in the dispatcher's hands yet."""

    def stop(self) -> None:
        """Fetch no more; a fetch that waits ends soon."""
        self._stopped = True
        self._consumer.wake()

    async def run(self) -> None:
        """Until `stop`, or until the dispatcher failed. Raises what the broker's consumer raises."""
        consumer, dispatcher = self._consumer, self._dispatcher
        while not self._stopped and dispatcher.failure is None:
            fetched: Sequence[tuple[TopicPartition, Sequence[InboundRecord]]]
            try:
                fetched = await consumer.fetch(self._max_records, _POLL_TIMEOUT)
            except OffsetOutOfRangeError as error:
                if not self._is_astray(error.partition):
                    raise
                fetched = ()
            if self._stopped:
                return  # not handled, not committed: the next member reads them
            self.is_handing_over = True
            for id, records in fetched:
                partition = dispatcher.partitions.get(id)
                if partition is None or partition.unplaced or not records:
                    continue
                if dispatcher.work.delivery == "at_most_once" and not await self._commit_ahead(partition, records):
                    continue
                partition.record_bytes = _largest(records)
                dispatcher.add(partition, records)
            self.is_handing_over = False
            fetched = records = ()  # else they would be kept as long as the next fetch waits
            self.adjust_pauses()

    def _is_astray(self, id: TopicPartition | None) -> bool:
        """Whether the partition's place is kept elsewhere, where it is looked up again when all in hand has ended."""
        partition = None if id is None else self._dispatcher.partitions.get(id)
        if id is None or partition is None or self._dispatcher.work.offsets is None:
            return False
        if not partition.unplaced:
            partition.astray = True
            self._consumer.pause((id,))
        return True

    async def _commit_ahead(self, partition: Partition, records: Sequence[InboundRecord]) -> bool:
        if not await self._committer.commit_ahead(partition, records[-1].offset + 1):
            if partition.id in self._consumer.assignment():
                self._consumer.seek(partition.id, records[0].offset)
            return False
        return self._dispatcher.partitions.get(partition.id) is partition

    def adjust_pauses(self) -> None:
        """Pause partitions of which too much is in hand, resume those with room again."""
        partitions = self._dispatcher.partitions
        if not partitions:
            return
        work = self._dispatcher.work
        share = max(work.max_buffered // len(partitions), work.max_batch if work.batch else 1, 1)
        share_bytes = work.max_buffered_bytes // len(partitions)
        full, roomy = [], []
        for id, partition in tuple(partitions.items()):
            if partition.unplaced:
                continue
            if partition.astray:
                if not partition.buffered and not partition.busy:
                    self._dispatcher.restart(partition)
                continue
            most = min(share, max(1, share_bytes // partition.record_bytes))
            if partition.paused:
                if partition.buffered * 2 <= most and partition.span * 2 <= most * _SPAN:
                    partition.paused = False
                    roomy.append(id)
            elif partition.buffered >= most or partition.span >= most * _SPAN:
                partition.paused = True
                full.append(id)
        if full:
            self._consumer.pause(full)
        if roomy:
            self._consumer.resume(roomy)


def _largest(records: Sequence[InboundRecord]) -> int:
    """Bytes of the largest of a few records (at most eight), which stand for the others of the fetch."""
    step = len(records) // 8 + 1
    return max(1, max(map(_size, records[::step])))


def _size(record: InboundRecord) -> int:
    size = len(record.value or b"") + len(record.key or b"")
    if record.headers:
        size += sum(len(name) + len(value or b"") + _HEADER_OVERHEAD for name, value in record.headers)
    return size

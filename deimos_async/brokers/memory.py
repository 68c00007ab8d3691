"""A real broker within one process: groups, rebalances, fenced commits. For tests and for `run --embedded`.

It keeps Kafka's meanings: a rebalance stops the group, gives every old member the time to finish (`on_revoked`), raises
the generation and hands out the partitions anew, round robin; commits are accepted from members of the current
generation only. It has no threads and no clock but the event loop's; records and offsets belong to the broker object
and outlive an event loop, members die with theirs. A group without offset that starts at `"latest"` has its first
positions committed at once, so that a rebalance before the first commit skips nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime

from deimos_async.brokers.partitioner import Partitioner, size_alone
from deimos_async.brokers.protocol import (
    ConsumerOptions,
    Extent,
    NewTopic,
    ProducerOptions,
    RebalanceListener,
    StoredOffset,
    TopicInfo,
    TopicLimits,
)
from deimos_async.errors import (
    BrokerError,
    CommitError,
    ConfigurationError,
    DeliveryError,
    NotRunningError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from deimos_async.message import Delivery, InboundRecord, OutboundRecord, TopicPartition

__all__ = ["MemoryBroker", "MemoryConsumer", "MemoryProducer", "MemoryRecord"]

_log = logging.getLogger(__name__)

_STOP_TIMEOUT = 5.0
"""Seconds that `stop` waits for a callback of the listener that is still running."""
_METADATA_BYTES = 4096
"""Most bytes of a text beside an offset (the default of Kafka's `offset.metadata.max.bytes`)."""
_READ_RECORDS = 500
"""Most records in one list of `MemoryBroker.read`."""


class MemoryRecord:
    """A stored record; fits `InboundRecord`."""

    __slots__ = ("headers", "key", "offset", "partition", "timestamp", "topic", "value")

    def __init__(self, record: OutboundRecord, partition: int, offset: int, now: int) -> None:
        self.topic = record.topic
        self.partition = partition
        self.offset = offset
        self.timestamp: int | None = now if record.timestamp is None else record.timestamp
        self.key = record.key
        self.value = record.value
        self.headers: Sequence[tuple[str, bytes | None]] = tuple(record.headers)

    def __repr__(self) -> str:
        return f"MemoryRecord(topic={self.topic!r}, partition={self.partition}, offset={self.offset})"


class _Log:
    """One partition: the records from `start` (included) to `end` (excluded)."""

    __slots__ = ("records", "start")

    def __init__(self) -> None:
        self.start = 0
        self.records: list[MemoryRecord] = []

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def read(self, position: int, limit: int) -> list[MemoryRecord]:
        first = position - self.start
        return self.records[first : first + limit]

    def first_at(self, timestamp: int) -> int:
        """Offset of the first record at or after a timestamp (milliseconds), else the end."""
        for record in self.records:
            if record.timestamp is not None and record.timestamp >= timestamp:
                return record.offset
        return self.end


class _Group:
    """A consumer group.

    One task at a time rebalances (`MemoryBroker._rebalance`), as long as `is_dirty`. A member is in `members` from its
    join until it leaves, is lost, or overruns its rebalance timeout. Assignments are of the current `generation`.
    """

    __slots__ = ("generation", "is_dirty", "members", "name", "notes", "offsets", "task")

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 0
        self.members: list[MemoryConsumer] = []
        self.offsets: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, StoredOffset] = {}
        """What was stored with a text; out of date where `offsets` says something else."""
        self.is_dirty = False
        self.task: asyncio.Task[None] | None = None


class MemoryBroker:
    """A cluster in memory.

    Args:
        name: Name of the cluster.
        partitions: Count for topics that are made on first use.
        auto_create: Make unknown topics when something is sent to them or subscribes to them. False: errors, as Kafka.
    """

    def __init__(self, name: str = "default", *, partitions: int = 4, auto_create: bool = True) -> None:
        if partitions < 1:
            raise ConfigurationError(f"MemoryBroker(partitions={partitions}): at least 1")
        self.name = name
        self._partitions = partitions
        self._auto_create = auto_create
        self._topics: dict[str, list[_Log]] = {}
        self._topic_ids: dict[str, str] = {}
        self._limits: dict[str, TopicLimits] = {}
        self._groups: dict[str, _Group] = {}
        self._partitioner = Partitioner()
        self._waiters: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        """Nothing to close; records and offsets stay."""

    def consumer(self, options: ConsumerOptions, listener: RebalanceListener) -> MemoryConsumer:
        """A member of a group, not started."""
        return MemoryConsumer(self, options, listener)

    def producer(self, options: ProducerOptions) -> MemoryProducer:
        """A producer, not started."""
        return MemoryProducer(self, options)

    async def topics(self, names: Iterable[str] | None = None) -> Mapping[str, TopicInfo]:
        """Topics of the cluster (those of `names` that exist, or all)."""
        wanted = self._topics if names is None else [name for name in dict.fromkeys(names) if name in self._topics]
        return {name: TopicInfo(name, len(self._topics[name])) for name in wanted}

    async def create_topics(self, topics: Sequence[NewTopic]) -> frozenset[str]:
        """Make those that do not exist yet; returns the names that were made.

        Raises:
            ConfigurationError: Fewer than one partition.
        """
        if problems := [
            f"topic {topic.name!r}: partitions={topic.partitions}, at least 1"
            for topic in topics
            if topic.partitions < 1
        ]:
            raise ConfigurationError(*problems)
        made = set()
        for topic in topics:
            if topic.name not in self._topics:
                self._make_topic(topic.name, topic.partitions)
                most = topic.config.get("max.message.bytes")
                self._limits[topic.name] = TopicLimits(
                    topic.partitions,
                    None if most is None else int(most),
                    "compact" in topic.config.get("cleanup.policy", ""),
                )
                made.add(topic.name)
        return frozenset(made)

    async def limits(self, names: Iterable[str]) -> Mapping[str, TopicLimits]:
        """What those topics take that exist; those that are made on first use are made by being asked about."""
        found = {name: self._find_topic(name) for name in names}
        return {
            name: self._limits.get(name) or TopicLimits(len(logs)) for name, logs in found.items() if logs is not None
        }

    async def group_offsets(self, group: str) -> Mapping[TopicPartition, int]:
        """What that group has committed."""
        return dict(self._groups[group].offsets) if group in self._groups else {}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets of partitions.

        Raises:
            TopicNotFoundError: One of them does not exist.
        """
        return {partition: self._log(partition).end for partition in partitions}

    async def begin_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """First offsets that partitions still hold.

        Raises:
            TopicNotFoundError: One of them does not exist.
        """
        return {partition: self._log(partition).start for partition in partitions}

    async def read(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, limit: int | None = None
    ) -> AsyncGenerator[Sequence[InboundRecord], None]:
        """Records without any group; see the port."""
        stops = {partition: min(stop, self._log(partition).end) for partition, (_, stop) in ranges.items()}
        for partition, (start, _) in ranges.items():
            log, stop = self._log(partition), stops[partition]
            position, left = start, limit
            while (position := max(position, log.start)) < stop and left != 0:
                count = min(_READ_RECORDS, stop - position, *([] if left is None else [left]))
                records = log.read(position, count)
                position += count
                left = None if left is None else left - count
                yield records
                await asyncio.sleep(0)  # nothing here waits: other tasks get their turn

    async def stored_offsets(self, group: str) -> Mapping[TopicPartition, StoredOffset]:
        """What that group has stored, with the texts."""
        found = self._groups.get(group)
        if found is None:
            return {}
        return {
            partition: note if (note := found.notes.get(partition)) and note.offset == offset else StoredOffset(offset)
            for partition, offset in found.offsets.items()
        }

    async def store_offsets(self, group: str, offsets: Mapping[TopicPartition, StoredOffset]) -> None:
        """Store offsets of a group that has no members.

        Raises:
            CommitError: The group has members, or a text is longer than Kafka keeps.
        """
        if any(len(stored.metadata.encode()) > _METADATA_BYTES for stored in offsets.values()):
            raise CommitError(f"group {group!r}: a text beside an offset has more than {_METADATA_BYTES} bytes")
        found = self._groups.setdefault(group, _Group(group))
        if found.members:
            raise CommitError(f"group {group!r}: only its members commit, and it has some", lost=True)
        for partition, stored in offsets.items():
            found.offsets[partition] = stored.offset
            found.notes[partition] = stored
        self._notify()

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """Delete every record below the offset given for its partition.

        Raises:
            TopicNotFoundError: One of them does not exist; nothing is deleted then.
        """
        logs = {partition: self._log(partition) for partition in offsets}
        for partition, offset in offsets.items():
            self.delete_records(*partition, offset)
        return {partition: log.start for partition, log in logs.items()}

    # What tests look at, and do

    def records(self, topic: str) -> list[MemoryRecord]:
        """Every record of a topic, partition after partition; none if it does not exist."""
        return [record for log in self._topics.get(topic, ()) for record in log.records]

    def lag(self, group: str) -> Mapping[TopicPartition, int]:
        """Records that the group has not committed yet, for each partition of the topics that it reads or has read.

        Without a committed offset everything from the position at which a member begins, else from the start, counts.
        """
        found = self._groups.get(group)
        if found is None:
            return {}
        topics = {topic for member in found.members for topic in member.options.topics}
        topics |= {partition.topic for partition in found.offsets}
        begins = {partition: at for member in found.members for partition, at in member._begins.items()}
        lag = {}
        for topic in sorted(topics & self._topics.keys()):
            for number, log in enumerate(self._topics[topic]):
                partition = TopicPartition(topic, number)
                done = found.offsets.get(partition, begins.get(partition, log.start))
                lag[partition] = max(0, log.end - max(done, log.start))
        return lag

    async def changed(self) -> None:
        """Wait until the next change: records, offsets, topics, members and their partitions.

        Check the condition, then await this, then check again: nothing is missed as long as no other await is between.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Drop the records below that offset, as retention does.

        Raises:
            TopicNotFoundError: No such partition.
        """
        log = self._log(TopicPartition(topic, partition))
        kept = max(log.start, min(before, log.end))
        del log.records[: kept - log.start]
        log.start = kept
        self._notify()

    def delete_topic(self, topic: str) -> None:
        """Delete a topic that no member reads, with what groups have committed for it.

        Raises:
            TopicNotFoundError: No such topic.
        """
        if topic not in self._topics:
            raise TopicNotFoundError(f"cluster {self.name!r} has no topic {topic!r}")
        del self._topics[topic], self._topic_ids[topic]
        self._limits.pop(topic, None)
        for group in self._groups.values():
            for partition in [partition for partition in group.offsets if partition.topic == topic]:
                del group.offsets[partition]
        self._notify()

    def expire(self, consumer: MemoryConsumer) -> None:
        """Let a member's session run out: its partitions go to others at once, it hears `on_lost`, and joins again."""
        if consumer._group is not None and consumer in consumer._group.members:
            self._leave(consumer)
            consumer._lose()

    # Inside

    def _make_topic(self, name: str, partitions: int) -> list[_Log]:
        logs = self._topics[name] = [_Log() for _ in range(partitions)]
        self._topic_ids[name] = uuid.uuid4().hex
        self._notify()
        return logs

    def _find_topic(self, name: str) -> list[_Log] | None:
        """The topic's partitions; None if it does not exist and may not be made."""
        logs = self._topics.get(name)
        if logs is None and self._auto_create:
            logs = self._make_topic(name, self._partitions)
        return logs

    def _log(self, partition: TopicPartition) -> _Log:
        logs = self._topics.get(partition.topic, [])
        if not 0 <= partition.partition < len(logs):
            raise TopicNotFoundError(f"topic {partition.topic!r} has no partition {partition.partition}")
        return logs[partition.partition]

    def _notify(self) -> None:
        for waiter in self._waiters:
            # A waiter of a loop that was closed can be told nothing; whoever awaited it is gone.
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(None)
        self._waiters.clear()
        for group in self._groups.values():
            for member in group.members:
                if member._loop is not None and not member._loop.is_closed():
                    member._signal.set()

    def _join(self, consumer: MemoryConsumer) -> _Group:
        group = self._groups.setdefault(consumer.options.group, _Group(consumer.options.group))
        loop = asyncio.get_running_loop()
        group.members = [member for member in group.members if member._loop is loop]
        group.members.append(consumer)
        self._rebalance_soon(group)
        return group

    def _leave(self, consumer: MemoryConsumer) -> None:
        group = consumer._group
        if group is not None and consumer in group.members:
            group.members.remove(consumer)
            self._rebalance_soon(group)

    def _rebalance_soon(self, group: _Group) -> None:
        group.is_dirty = True
        loop = asyncio.get_running_loop()
        if group.task is None or group.task.done() or group.task.get_loop() is not loop:
            group.task = loop.create_task(self._rebalance(group), name=f"group {group.name}")

    async def _rebalance(self, group: _Group) -> None:
        while group.is_dirty:
            group.is_dirty = False
            await asyncio.gather(*(self._revoke(group, member) for member in list(group.members)))
            group.generation += 1
            shares = self._assign(group.members)
            assigned = [member._assign(group, shares[member]) for member in group.members]
            self._notify()
            if assigned:
                await asyncio.wait(assigned)
                self._notify()

    async def _revoke(self, group: _Group, member: MemoryConsumer) -> None:
        """Let a member finish; one that takes longer than its rebalance timeout is out, and joins again later."""
        revoking = member._revoke()
        if revoking is None:
            return
        await asyncio.wait({revoking}, timeout=member.options.rebalance_timeout)
        if not revoking.done() and member in group.members:
            _log.warning("group %s: a member did not give up its partitions in time and is out", group.name)
            group.members.remove(member)
            revoking.add_done_callback(lambda task: None if task.cancelled() else member._rejoin())

    def _assign(self, members: Sequence[MemoryConsumer]) -> dict[MemoryConsumer, frozenset[TopicPartition]]:
        """Round robin over all partitions, skipping members that do not read the topic."""
        shares: dict[MemoryConsumer, set[TopicPartition]] = {member: set() for member in members}
        turn = 0
        for topic in sorted({topic for member in members for topic in member.options.topics}):
            for number in range(len(self._topics.get(topic, ()))):
                while topic not in members[turn % len(members)].options.topics:
                    turn += 1
                shares[members[turn % len(members)]].add(TopicPartition(topic, number))
                turn += 1
        return {member: frozenset(share) for member, share in shares.items()}


class MemoryConsumer:
    """One member of a group. Made by `MemoryBroker.consumer`."""

    def __init__(self, broker: MemoryBroker, options: ConsumerOptions, listener: RebalanceListener) -> None:
        if isinstance(options.start_from, datetime):
            if options.start_from.tzinfo is None:
                raise ConfigurationError(f"group {options.group!r}: start_from must be an aware datetime")
        elif options.start_from not in ("earliest", "latest"):
            raise ConfigurationError(
                f"group {options.group!r}: start_from={options.start_from!r}; "
                "give 'earliest', 'latest' or an aware datetime"
            )
        self.options = options
        self._broker = broker
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group: _Group | None = None
        self._generation = -1
        self._owned: frozenset[TopicPartition] = frozenset()
        self._begins: dict[TopicPartition, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._order: list[TopicPartition] = []
        self._paused: set[TopicPartition] = set()
        self._is_settled = False
        self._is_stopped = False
        self._is_woken = False
        self._signal = asyncio.Event()
        self._callback: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def start(self) -> None:
        """Join the group; `on_assigned` follows when the others have given up their partitions.

        Raises:
            TopicNotFoundError: A topic does not exist and may not be made.
        """
        if self._loop is not None:
            raise NotRunningError("the consumer was started before; make a new one")
        self._loop = asyncio.get_running_loop()
        missing = [topic for topic in self.options.topics if self._broker._find_topic(topic) is None]
        if missing:
            raise TopicNotFoundError(
                f"cluster {self._broker.name!r} has no topic {', '.join(map(repr, missing))}: create it first"
            )
        self._group = self._broker._join(self)

    async def fetch(self, max_records: int, timeout: float) -> Sequence[tuple[TopicPartition, Sequence[InboundRecord]]]:
        """Next records; see the port. Partitions take turns."""
        deadline = asyncio.get_running_loop().time() + timeout
        await asyncio.sleep(0)  # with records at hand nothing below gives way to other tasks
        while True:
            self._check_running()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._is_settled and (found := self._take(max_records)):
                return found
            if self._is_woken:
                self._is_woken = False
                return []
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return []
            self._signal.clear()
            try:
                async with asyncio.timeout(remaining):
                    await self._signal.wait()
            except TimeoutError:
                return []

    def _take(self, max_records: int) -> list[tuple[TopicPartition, Sequence[InboundRecord]]]:
        ready: list[tuple[TopicPartition, _Log]] = []
        for partition in self._order:
            if partition in self._paused:
                continue
            log = self._broker._log(partition)
            position = self._positions[partition]
            if not log.start <= position <= log.end:
                raise OffsetOutOfRangeError(
                    f"group {self.options.group!r}: offset {position} of topic {partition.topic!r} partition "
                    f"{partition.partition} does not exist; the partition holds {log.start} to {log.end}",
                    partition=partition,
                )
            if position < log.end:
                ready.append((partition, log))
        if not ready:
            return []
        # Each gets its share, at least one record; who goes first changes with every call.
        share = max(1, max_records // len(ready))
        found: list[tuple[TopicPartition, Sequence[InboundRecord]]] = []
        for partition, log in ready:
            if max_records <= 0:
                break
            records = log.read(self._positions[partition], min(share, max_records))
            max_records -= len(records)
            self._positions[partition] += len(records)
            found.append((partition, records))
            self._order.remove(partition)
            self._order.append(partition)
        return found

    def wake(self) -> None:
        """End the wait of a running `fetch`, or of the next one."""
        self._is_woken = True
        self._signal.set()

    def assignment(self) -> frozenset[TopicPartition]:
        """Partitions that are ours now."""
        return self._owned

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """No records of these until `resume`."""
        self._paused.update(self._owned.intersection(partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Undo `pause`."""
        self._paused.difference_update(partitions)
        self._signal.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the next offset to read for each partition."""
        self._check_running()
        group = self._group
        if (
            group is None
            or self not in group.members
            or group.generation != self._generation
            or not self._owned.issuperset(offsets)
        ):
            raise CommitError(
                f"group {self.options.group!r}: partitions to commit belong to another member by now", lost=True
            )
        group.offsets.update(offsets)
        self._broker._notify()

    async def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """The group's stored offsets; None where there is none."""
        stored = await self._broker.group_offsets(self.options.group)
        return {partition: stored.get(partition) for partition in partitions}

    async def starting_points(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where the group begins: at its stored offset, else as `start_from` says."""
        stored = await self._broker.group_offsets(self.options.group)
        return {
            partition: stored[partition] if partition in stored else self._begin(self._broker._log(partition))
            for partition in partitions
        }

    async def extents(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, Extent]:
        """What these partitions hold."""
        self._check_running()
        logs = {partition: self._broker._log(partition) for partition in partitions}
        ids = self._broker._topic_ids
        return {partition: Extent(log.start, log.end, ids[partition.topic]) for partition, log in logs.items()}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Next fetch of this partition begins here. Raises BrokerError if it is not assigned."""
        if partition not in self._owned:
            raise BrokerError(f"cannot seek in topic {partition.topic!r} partition {partition.partition}: not assigned")
        self._positions[partition] = offset
        self._signal.set()

    def positions_end(self) -> Mapping[TopicPartition, int]:
        """End offsets of assigned partitions."""
        return {partition: self._broker._log(partition).end for partition in self._owned}

    def unfetched(self) -> Mapping[TopicPartition, int]:
        """Records of assigned partitions behind the positions."""
        behind = {
            partition: self._broker._log(partition).end - position
            for partition, position in self._positions.items()
            if partition in self._owned
        }
        return {partition: count for partition, count in behind.items() if count > 0}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets."""
        return await self._broker.end_offsets(partitions)

    async def stop(self) -> None:
        """Leave the group. A callback of the listener that still runs gets a few seconds to end."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._signal.set()
        if self._loop is asyncio.get_running_loop():
            self._broker._leave(self)
        self._drop()
        callback = self._callback
        if callback is not None and callback is not asyncio.current_task() and self._loop is callback.get_loop():
            await asyncio.wait({callback}, timeout=_STOP_TIMEOUT)
            callback.cancel()
        self._broker._notify()

    # Called by the broker

    def _revoke(self) -> asyncio.Task[None] | None:
        """Begin to give up all partitions; None if there are none. They are gone when the task is done."""
        self._is_settled = False
        if not self._owned:
            return None
        self._callback = asyncio.get_running_loop().create_task(
            self._tell_revoked(self._owned), name=f"group {self.options.group} on_revoked"
        )
        return self._callback

    async def _tell_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        generation = self._generation
        try:
            await self._listener.on_revoked(partitions)
        except Exception as error:
            self._carry(error, "on_revoked")
        finally:
            if self._generation == generation:
                self._drop()

    def _assign(self, group: _Group, partitions: frozenset[TopicPartition]) -> asyncio.Task[None]:
        """Take over partitions, with their first positions decided here and now."""
        self._generation = group.generation
        self._owned = partitions
        self._order = sorted(partitions)
        for partition in self._order:
            position = group.offsets.get(partition)
            if position is None:
                position = self._begin(self._broker._log(partition))
                self._begins[partition] = position
                if self.options.start_from == "latest":
                    group.offsets[partition] = position
            self._positions[partition] = position
        self._callback = asyncio.get_running_loop().create_task(
            self._tell_assigned(partitions, group.generation), name=f"group {self.options.group} on_assigned"
        )
        return self._callback

    async def _tell_assigned(self, partitions: frozenset[TopicPartition], generation: int) -> None:
        try:
            if partitions:
                await self._listener.on_assigned(partitions)
        except Exception as error:
            self._carry(error, "on_assigned")
        if self._generation == generation and not self._is_stopped:
            self._is_settled = True
            self._signal.set()

    def _lose(self) -> None:
        partitions = self._owned
        self._drop()
        loop = asyncio.get_running_loop()
        self._callback = loop.create_task(self._tell_lost(partitions), name=f"group {self.options.group} on_lost")

    async def _tell_lost(self, partitions: frozenset[TopicPartition]) -> None:
        try:
            if partitions:
                await self._listener.on_lost(partitions)
        except Exception as error:
            self._carry(error, "on_lost")
        self._rejoin()

    def _rejoin(self) -> None:
        if not self._is_stopped:
            self._group = self._broker._join(self)

    def _drop(self) -> None:
        self._generation = -1
        self._owned = frozenset()
        self._order = []
        self._positions.clear()
        self._begins.clear()
        self._paused.clear()
        self._is_settled = False

    def _begin(self, log: _Log) -> int:
        start_from = self.options.start_from
        if isinstance(start_from, datetime):
            return log.first_at(round(start_from.timestamp() * 1000))
        return log.end if start_from == "latest" else log.start

    def _carry(self, error: Exception, callback: str) -> None:
        _log.error("group %s: %s raised", self.options.group, callback, exc_info=error)
        self._error = error
        self._signal.set()

    def _check_running(self) -> None:
        if self._group is None or self._is_stopped:
            raise NotRunningError(f"the consumer of group {self.options.group!r} does not run")


class MemoryProducer:
    """Sends records. Made by `MemoryBroker.producer`."""

    def __init__(self, broker: MemoryBroker, options: ProducerOptions) -> None:
        self._broker = broker
        self._options = options
        self._is_running = False

    async def start(self) -> None:
        """Nothing to connect to."""
        self._is_running = True

    async def send(self, records: Sequence[OutboundRecord]) -> list[Delivery]:
        """Store all records; those that cannot be stored fail alone.

        Raises:
            DeliveryError: Unknown topic or partition, or a record above `max_request_bytes`.
        """
        if not self._is_running:
            raise NotRunningError("the producer does not run")
        await asyncio.sleep(0)
        now = time.time_ns() // 1_000_000
        sticky: dict[str, tuple[int, int]] = {}
        deliveries: list[Delivery | None] = []
        problems: dict[int, str] = {}
        for index, record in enumerate(records):
            logs = self._broker._find_topic(record.topic)
            problem = self._problem(record, logs)
            if problem is not None or logs is None:
                problems[index] = problem or ""
                deliveries.append(None)
                continue
            number = self._place(record, len(logs), sticky)
            log = logs[number]
            stored = MemoryRecord(record, number, log.end, now)
            log.records.append(stored)
            deliveries.append(Delivery(record.topic, number, stored.offset))
        self._broker._notify()
        if problems:
            first = next(iter(problems.values()))
            raise DeliveryError(
                f"{len(problems)} of {len(records)} messages failed: {first}",
                indexes=list(problems),
                deliveries=deliveries,
                of_topic=any(self._broker._topics.get(records[index].topic) is None for index in problems),
            )
        return [delivery for delivery in deliveries if delivery is not None]

    async def stop(self) -> None:
        """No more sending."""
        self._is_running = False

    def _problem(self, record: OutboundRecord, logs: list[_Log] | None) -> str | None:
        if logs is None:
            return f"cluster {self._broker.name!r} has no topic {record.topic!r}: create it first"
        if record.partition is not None and not 0 <= record.partition < len(logs):
            return f"topic {record.topic!r} has no partition {record.partition}, it has {len(logs)}"
        limits = self._broker._limits.get(record.topic)
        if limits is not None and limits.is_compacted and record.key is None:
            return f"topic {record.topic!r} is compacted: it takes no messages without a key"
        size = size_alone(record)
        if limits is not None and limits.max_message_bytes is not None and size > limits.max_message_bytes:
            return (
                f"topic {record.topic!r}: a message of {size} bytes is above the topic's max.message.bytes "
                f"({limits.max_message_bytes})"
            )
        if size > self._options.max_request_bytes:
            return (
                f"topic {record.topic!r}: a message of {size} bytes is above max_request_bytes "
                f"({self._options.max_request_bytes})"
            )
        return None

    def _place(self, record: OutboundRecord, partitions: int, sticky: dict[str, tuple[int, int]]) -> int:
        if record.partition is not None:
            return record.partition
        key = record.key if record.partition_key is None else record.partition_key
        if key is not None:
            return self._broker._partitioner.keyed(key, partitions)
        number, count = sticky.get(record.topic, (0, 0))
        if count % Partitioner.STICKY_RECORDS == 0:
            number = self._broker._partitioner.sticky(record.topic, partitions)
        sticky[record.topic] = (number, count + 1)
        return number

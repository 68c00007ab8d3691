"""A member of a consumer group, by aiokafka.

What aiokafka leaves to its user, and how it is done here:

- A fetch is never cancelled: that would leave aiokafka's count of running fetches wrong for ever, and its guard against
  stuck consumers off. `fetch` takes what is buffered, and else leaves one `getmany` running in a task that outlives the
  call. `wake` and time-outs end our wait for that task, not the task. What it brings later is held for the next
  `fetch`, and dropped when its partition is sought or given up.
- Nothing is handed out while the group rebalances, nor before `on_assigned` has returned.
- With `auto_offset_reset="none"` the first position of a partition without offset is decided here, once for each
  assignment, before `on_assigned`. For `"latest"` it is committed at once: else a rebalance before the first commit
  would decide again, and skip what came between.
- A commit that is still being repeated when its partitions are given up is ended: aiokafka would send it again with the
  next generation.
- A static member whose place another process has taken ends with an error; aiokafka would take it back.
- aiokafka knows no "lost": its generation was reset when `on_partitions_revoked` is called after an expired session.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.protocol.group import LeaveGroupRequest

from deimos_async.brokers import kafka_clients
from deimos_async.brokers.kafka_errors import translate, translate_commit
from deimos_async.brokers.kafka_fencing import is_fenced
from deimos_async.brokers.kafka_options import KafkaOptions, check_extra, milliseconds
from deimos_async.brokers.kafka_topic_ids import topic_ids
from deimos_async.brokers.protocol import ConsumerOptions, Extent, RebalanceListener, TopicInfo
from deimos_async.errors import (
    BrokerError,
    BrokerUnavailableError,
    CommitError,
    ConfigurationError,
    NotRunningError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from deimos_async.message import InboundRecord, TopicPartition

__all__ = ["KafkaConsumer"]

_log = logging.getLogger(__name__)

_POLL_TIMEOUT_MS = 30_000
"""How long one `getmany` waits in the background; its end has no effect but a new one."""
_STOP_TIMEOUT = 5.0
"""Seconds to leave the group before the connections are closed without."""
_JOIN_PATIENCE = 0.5
"""Seconds of a stop after which a join that is under way is ended by leaving."""
_FAIR_PARTITIONS = 64
"""Above that many partitions taking turns would cost more than it gives; their buffers take turns by themselves."""

_ACCEPTED = frozenset(inspect.signature(AIOKafkaConsumer.__init__).parameters) - {"self", "topics"}
_OURS = "it is set by the consumer's own options"
_GUARDED = {
    "enable_auto_commit": "offsets are committed when handling has ended",
    "auto_commit_interval_ms": "offsets are committed when handling has ended",
    "auto_offset_reset": "use start_from; an offset that is out of range is an error and never skipped",
    "key_deserializer": "records are decoded later, so that one that cannot be decoded does not stop the partition",
    "value_deserializer": "records are decoded later, so that one that cannot be decoded does not stop the partition",
    "max_poll_records": "use consumers.max_records",
    "group_id": _OURS,
    "group_instance_id": _OURS,
    "session_timeout_ms": _OURS,
    "heartbeat_interval_ms": _OURS,
    "rebalance_timeout_ms": _OURS,
    "max_poll_interval_ms": _OURS,
    "fetch_max_bytes": _OURS,
    "max_partition_fetch_bytes": _OURS,
}

_Records = Sequence[tuple[TopicPartition, Sequence[InboundRecord]]]


class KafkaConsumer:
    """One member of a group. Made by `KafkaBroker.consumer`.

    Raises:
        ConfigurationError: Options that contradict each other or break a guarantee.
    """

    def __init__(
        self,
        options: ConsumerOptions,
        listener: RebalanceListener,
        *,
        cluster: KafkaOptions,
        setting: str,
        extra: Mapping[str, Any],
        find_topics: Callable[[Iterable[str]], Awaitable[Mapping[str, TopicInfo]]],
    ) -> None:
        where = f"consumer group {options.group!r}"
        self._arguments = check_extra({**extra, **options.extra}, _ACCEPTED, _GUARDED, where)
        _check(options, self._arguments)
        self._options = options
        self._listener = listener
        self._cluster = cluster
        self._setting = setting
        self._find_topics = find_topics
        self._client: AIOKafkaConsumer | None = None
        self._is_stopped = False
        self._stop_lock = asyncio.Lock()

        self._owned: frozenset[TopicPartition] = frozenset()
        self._is_settled = False
        """Whether `on_assigned` has returned for the current assignment."""
        self._undecided: set[TopicPartition] = set()
        self._held: dict[TopicPartition, list[InboundRecord]] = {}
        self._paused: set[TopicPartition] = set()
        self._served: set[KafkaPartition] = set()
        self._poll: asyncio.Task[dict[KafkaPartition, list[InboundRecord]]] | None = None
        self._commits: set[asyncio.Task[None]] = set()
        self._signal = asyncio.Event()
        self._is_woken = False
        self._error: Exception | None = None
        self._member_id = ""
        """Our name in the current assignment, or the last one."""
        self._fenced: BrokerError | None = None
        """Another process has our instance id; nothing can follow."""
        self._before_unreadable: int | None = None
        """Records to ask for at most, while there is one that cannot be read behind them."""

    async def start(self) -> None:
        """Connect, and begin to join; `on_assigned` tells when that is done.

        Raises:
            BrokerUnavailableError: No broker answers within the connect timeout.
            TopicNotFoundError: A topic does not exist; none is made.
        """
        if self._client is not None or self._is_stopped:
            raise NotRunningError("the consumer was started before; make a new one")
        options = self._options
        found = await self._find_topics(options.topics)
        if missing := [topic for topic in options.topics if topic not in found]:
            raise TopicNotFoundError(
                f"cluster of setting '{self._setting}' has no topic {', '.join(map(repr, missing))}: create it first"
            )
        arguments = {
            "check_crcs": True,
            **self._arguments,
            **self._cluster.connection(self._setting),
            "client_id": options.client_id,
            "group_id": options.group,
            "group_instance_id": options.instance_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "session_timeout_ms": milliseconds(options.session_timeout),
            "heartbeat_interval_ms": milliseconds(options.heartbeat_interval),
            "rebalance_timeout_ms": milliseconds(options.rebalance_timeout),
            "max_poll_interval_ms": milliseconds(options.max_poll_interval),
            "fetch_max_bytes": options.fetch_max_bytes,
            "max_partition_fetch_bytes": options.max_partition_fetch_bytes,
        }
        client = self._client = AIOKafkaConsumer(**arguments)
        try:
            await kafka_clients.connect(client.start, self._cluster, self._setting)
            kafka_clients.ask_first_servers_again(client._client, self._cluster, self._setting)
            client.subscribe(list(options.topics), listener=_Listener(self))
        except BaseException:
            await self.stop()
            raise

    async def fetch(self, max_records: int, timeout: float) -> _Records:
        """Next records; see the port. Partitions take turns."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await asyncio.sleep(0)  # with records at hand nothing below gives way to other tasks, heartbeats among them
        while True:
            self._signal.clear()  # before all that is looked at, so that nothing that changes meanwhile is missed
            client = self._running()
            if self._fenced is not None:
                raise self._fenced
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            await self._harvest()
            if self._before_unreadable is not None:
                max_records = min(max_records, self._before_unreadable)
            if self._is_settled and self._undecided:
                await self._decide_again(deadline)
            # Asked anew: a rebalance may have begun meanwhile.
            if self._is_settled and (found := self._take_held(max_records) or await self._read(client, max_records)):
                return found
            if self._poll is None:
                # Also while the group rebalances: aiokafka takes a consumer that does not ask for dead, and says
                # what is wrong with the group only to one that asks.
                self._poll = loop.create_task(
                    client.getmany(timeout_ms=_POLL_TIMEOUT_MS, max_records=max_records),
                    name=f"group {self._options.group} getmany",
                )
                self._poll.add_done_callback(self._on_polled)
            if self._is_woken:
                self._is_woken = False
                return []
            try:
                async with asyncio.timeout_at(deadline):
                    await self._signal.wait()
            except TimeoutError:
                if self._poll is not None and not self._poll.done():
                    return []
                deadline = loop.time()  # what it brought, and a rebalance may have taken up already

    def _on_polled(self, _: object) -> None:
        self._signal.set()

    async def _harvest(self) -> None:
        """Hold what the `getmany` in the background brought; raise what it raised."""
        poll = self._poll
        if poll is None or not poll.done():
            return
        self._poll = None
        try:
            self._hold(poll.result())
        except Exception as error:
            await self._failed(error)

    def _hold(self, records: Mapping[KafkaPartition, list[InboundRecord]]) -> None:
        for partition, found in records.items():
            self._held.setdefault(TopicPartition(*partition), []).extend(found)

    def _take_held(self, max_records: int) -> _Records:
        taken: list[tuple[TopicPartition, Sequence[InboundRecord]]] = []
        for partition in [partition for partition in self._held if partition not in self._paused]:
            if max_records <= 0:
                break
            records = self._held.pop(partition)
            if len(records) > max_records:
                self._held[partition] = records[max_records:]
                del records[max_records:]
            max_records -= len(records)
            taken.append((partition, records))
        return taken

    async def _read(self, client: AIOKafkaConsumer, max_records: int) -> _Records:
        """What is buffered now, of partitions that had no turn yet, if there is any. Does not wait.

        aiokafka hands out one partition's buffer (up to a megabyte) before it turns to the next.
        """
        if self._poll is not None:
            return ()  # it takes what comes
        records: dict[KafkaPartition, list[InboundRecord]] = {}
        try:
            if self._served and len(self._owned) <= _FAIR_PARTITIONS:
                others = [partition for partition in client.assignment() if partition not in self._served]
                if others:
                    records = await client.getmany(*others, timeout_ms=0, max_records=max_records)
            if not records:
                self._served.clear()
                records = await client.getmany(timeout_ms=0, max_records=max_records)
        except Exception as error:
            await self._failed(error)
        self._served.update(records)
        return [(TopicPartition(*partition), found) for partition, found in records.items()]

    async def _failed(self, error: Exception) -> None:
        """Raise a `getmany`'s error translated; return if there is nothing wrong any more."""
        client = self._running()
        _repair_fetch_count(client)
        group = self._options.group
        match error:
            case kafka.ConsumerStoppedError():
                raise NotRunningError(f"the consumer of group {group!r} does not run") from error
            case kafka.NoOffsetForPartitionError():
                # From before the first position was decided, or because it could not be: then `_undecided` says so.
                return
            case kafka.OffsetOutOfRangeError():
                for partition, offset in error.args[0].items():
                    if TopicPartition(*partition) in self._paused:
                        continue  # asked for before; it is asked for again when it is resumed
                    if partition in client.assignment() and await client.position(partition) == offset:
                        raise OffsetOutOfRangeError(
                            f"group {group!r}: offset {offset} of topic {partition.topic!r} partition "
                            f"{partition.partition} does not exist (any more); nothing is skipped: set the group's "
                            "offset to where it shall go on",
                            partition=TopicPartition(*partition),
                        ) from error
            case UnicodeDecodeError():
                await self._unreadable(client, error)
            case kafka.KafkaError() | OSError():
                if await self._has_lost_its_place(client):
                    assert self._fenced is not None
                    raise self._fenced from error
                raise translate(error, f"group {group!r}: fetch failed") from error
            case _:
                raise error

    def _find_unreadable(self, client: AIOKafkaConsumer) -> tuple[KafkaPartition, int] | None:
        """Partition and offset of the record whose header name is not UTF-8, after aiokafka has failed at it."""
        for partition, result in client._fetcher._records.items():
            records = getattr(result, "_partition_records", None)
            iterator = getattr(records, "_records_iterator", None)
            # The generator that raised has no frame any more, and stands at the record.
            if records is not None and iterator is not None and iterator.gi_frame is None:
                return partition, records.next_fetch_offset
        return None

    async def _unreadable(self, client: AIOKafkaConsumer, error: UnicodeDecodeError) -> None:
        """Raise for a record that aiokafka cannot give us, unless there are others before it in its partition.

        aiokafka has dropped those and fetches them again; then no more than they are asked for.
        """
        found = self._find_unreadable(client)
        if found is None:
            raise BrokerError(f"group {self._options.group!r}: the name of a header is not UTF-8") from error
        partition, offset = found
        before = offset - await client.position(partition)
        if before > 0:
            self._before_unreadable = before
            return
        self._before_unreadable = None
        raise BrokerError(
            f"group {self._options.group!r}: topic {partition.topic!r} partition {partition.partition} "
            f"offset {offset}: the name of a header is not UTF-8; the client library cannot read this record"
        ) from error

    def wake(self) -> None:
        """End the wait of a running `fetch`, or of the next one, at once."""
        self._is_woken = True
        self._signal.set()

    def assignment(self) -> frozenset[TopicPartition]:
        """Partitions that are ours now."""
        return self._owned

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """No records of these until `resume`. What was fetched for them is fetched again then."""
        pausing = self._owned.intersection(partitions)
        self._paused |= pausing
        if self._client is not None:
            self._client.pause(*(KafkaPartition(*partition) for partition in pausing))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Undo `pause`."""
        resuming = self._owned.intersection(partitions)
        self._paused -= resuming
        if self._client is not None:
            self._client.resume(*(KafkaPartition(*partition) for partition in resuming))
        self._signal.set()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the next offset to read for each partition; never longer than the request timeout.

        Cancelled: the offsets may or may not have been stored.
        """
        client = self._running()
        if not offsets:
            return
        if not self._owned.issuperset(offsets) or _is_lost(client):
            raise CommitError(
                f"group {self._options.group!r}: partitions to commit belong to another member by now", lost=True
            )
        await self._commit(client, offsets)

    async def _commit(self, client: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        group = self._options.group
        committing = asyncio.get_running_loop().create_task(
            client.commit({KafkaPartition(*partition): offset for partition, offset in offsets.items()}),
            name=f"group {group} commit",
        )
        self._commits.add(committing)
        try:
            await asyncio.wait({committing}, timeout=self._cluster.request_timeout)
        finally:
            self._commits.discard(committing)
            committing.cancel()
        if not committing.done():
            raise CommitError(
                f"group {group!r}: no answer to a commit within {self._cluster.request_timeout:g} s", retriable=True
            )
        if committing.cancelled():
            raise CommitError(f"group {group!r}: partitions were given up while they were committed", lost=True)
        if (error := committing.exception()) is not None:
            raise translate_commit(error, group) from error

    async def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """The group's stored offsets; None where there is none.

        Raises:
            BrokerError: No answer within the request timeout, or refused.
        """
        client = self._running()
        wanted = list(dict.fromkeys(partitions))
        found = await self._ask(
            asyncio.gather(*(client.committed(KafkaPartition(*partition)) for partition in wanted)), "committed offsets"
        )
        return dict(zip(wanted, found, strict=True))

    async def starting_points(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where the group begins: at its stored offset, else as `start_from` says.

        Raises:
            BrokerError: No answer within the request timeout, or refused.
        """
        stored = await self.committed(partitions)
        new = [KafkaPartition(*partition) for partition, offset in stored.items() if offset is None]
        begins = await self._ask(self._first_offsets(self._running(), new), "first positions")
        return {partition: begins[partition] if offset is None else offset for partition, offset in stored.items()}

    async def extents(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, Extent]:
        """What these partitions hold, asked from the brokers now.

        Raises:
            BrokerError: No answer within the request timeout, or refused.
        """
        client = self._running()
        asked = [KafkaPartition(*partition) for partition in dict.fromkeys(partitions)]
        ids = await self._ask(topic_ids(client._client, sorted({partition.topic for partition in asked})), "topic ids")
        # A partition ends after its beginning also where retention works in between: the beginning is asked first.
        begins = await self._ask(client.beginning_offsets(asked), "first offsets")
        ends = await self._ask(client.end_offsets(asked), "end offsets")
        return {
            TopicPartition(*partition): Extent(begins[partition], ends[partition], ids.get(partition.topic))
            for partition in asked
        }

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Next fetch of this partition begins here. Raises BrokerError if it is not assigned."""
        if partition not in self._owned or self._client is None:
            raise BrokerError(f"cannot seek in topic {partition.topic!r} partition {partition.partition}: not assigned")
        self._drop_fetched({partition})
        self._undecided.discard(partition)
        self._before_unreadable = None
        self._client.seek(KafkaPartition(*partition), offset)
        self._signal.set()

    def positions_end(self) -> Mapping[TopicPartition, int]:
        """High watermarks that the last answers carried."""
        client = self._client
        if client is None:
            return {}
        known = client.assignment()
        ends = {}
        for partition in self._owned:
            if KafkaPartition(*partition) in known:
                end = client.highwater(KafkaPartition(*partition))
                if end is not None:
                    ends[partition] = end
        return ends

    def unfetched(self) -> Mapping[TopicPartition, int]:
        """Offsets between the positions and the ends that the last answers carried.

        aiokafka's public `position` is a coroutine that may wait; the state that it reads passes markers of
        transactions, which are never given to anybody. Records of open transactions cannot be fetched yet, unless
        they are wanted. What was taken from aiokafka and not handed out is counted as well.
        """
        client = self._client
        if client is None:
            return {}
        known = client.assignment()
        committed_only = client._isolation_level == "read_committed"
        counts = {TopicPartition(*id): len(records) for id, records in self._held.items()}
        poll = self._poll
        if poll is not None and poll.done() and not poll.cancelled() and poll.exception() is None:
            for id, records in poll.result().items():
                partition = TopicPartition(id.topic, id.partition)
                counts[partition] = counts.get(partition, 0) + len(records)
        for partition in self._owned:
            if KafkaPartition(*partition) not in known:
                continue
            state = client._subscription.subscription.assignment.state_value(KafkaPartition(*partition))
            end = state.lso if committed_only and state.lso is not None and state.lso >= 0 else state.highwater
            if end is not None and state.has_valid_position:
                counts[partition] = counts.get(partition, 0) + max(0, end - state.position)
        return {partition: count for partition, count in counts.items() if count > 0}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets, asked from the brokers now.

        Raises:
            BrokerError: No answer within the request timeout, or refused.
        """
        client = self._running()
        ends = await self._ask(
            client.end_offsets([KafkaPartition(*partition) for partition in partitions]), "end offsets"
        )
        return {TopicPartition(*partition): end for partition, end in ends.items()}

    async def stop(self) -> None:
        """Leave the group and close: a few seconds at most, also when the brokers are away."""
        self._is_stopped = True
        self._signal.set()
        async with self._stop_lock:
            client, self._client = self._client, None
            if client is None:
                return
            for committing in self._commits:
                committing.cancel()
            poll, self._poll = self._poll, None
            try:
                await kafka_clients.close(
                    lambda: _stop(client),
                    lambda: (client, client._coordinator, client._fetcher),
                    client._client,
                    timeout=_STOP_TIMEOUT,
                )
            finally:
                self._forget_assignment()
                if poll is not None:
                    poll.cancel()
                    await asyncio.wait({poll})
                    if not poll.cancelled():
                        poll.exception()

    # Rebalances. aiokafka awaits these two, and only logs what they raise.

    def on_partitions_revoked(self) -> Awaitable[None]:
        # Not a coroutine function: the flag must be down before anything else runs.
        self._is_settled = False
        self._drop_fetched(self._owned)
        return self._give_up()

    async def _give_up(self) -> None:
        owned = self._owned
        client = self._client
        if client is not None and owned and not self._is_stopped:
            lost = _is_lost(client)
            if lost:
                self._forget_assignment()
            try:
                if lost:
                    await self._listener.on_lost(owned)
                else:
                    await self._listener.on_revoked(owned)
            except Exception as error:
                self._carry(error, "on_lost" if lost else "on_revoked")
        self._forget_assignment()
        for committing in self._commits:
            committing.cancel()
        if client is not None and not self._is_stopped and _is_lost(client) and await self._has_lost_its_place(client):
            self._signal.set()
            # Of the task that would join next. An error would only be logged.
            raise asyncio.CancelledError

    async def _has_lost_its_place(self, client: AIOKafkaConsumer) -> bool:
        """Whether another process has joined with our instance id; then `fetch` raises from now on."""
        instance_id = self._options.instance_id
        if instance_id is None or not self._member_id:
            return False
        timeout = min(self._cluster.request_timeout, self._options.session_timeout)
        if not await is_fenced(client, member_id=self._member_id, instance_id=instance_id, timeout=timeout):
            return False
        self._fenced = BrokerError(
            f"group {self._options.group!r}: another process has joined as {instance_id!r} and has taken the place of "
            "this one; give each process a consumers.instance_id of its own"
        )
        return True

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        owned = frozenset(TopicPartition(*partition) for partition in assigned)
        self._forget_assignment()
        if self._client is not None:
            self._member_id = self._client._coordinator.member_id
        self._owned = owned
        self._undecided = set(owned)
        if self._is_stopped:
            return
        # No heartbeat goes out before aiokafka has its callback back.
        patience = min(self._cluster.request_timeout, self._options.session_timeout / 3)
        try:
            async with asyncio.timeout(patience):
                await self._decide_positions()
        except NotRunningError:
            return
        except (kafka.KafkaError, BrokerError, OSError, TimeoutError) as error:
            _log.warning(
                "group %s: first positions could not be found out, trying again: %r", self._options.group, error
            )
        try:
            if owned:
                await self._listener.on_assigned(owned)
        except Exception as error:
            self._carry(error, "on_assigned")
        self._is_settled = True
        self._signal.set()

    async def _decide_again(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(max(deadline, asyncio.get_running_loop().time() + 1)):
                await self._decide_positions()
        except (kafka.KafkaError, BrokerError, OSError, TimeoutError) as error:
            translated = translate(error, f"group {self._options.group!r}: first positions")
            if not translated.retriable:
                raise translated from error
            _log.debug("group %s: first positions could not be found out yet: %r", self._options.group, error)

    async def _decide_positions(self) -> None:
        """Seek to `start_from` in partitions without a committed offset; aiokafka goes to committed ones by itself."""
        client = self._running()
        asked = [partition for partition in self._undecided if partition in self._owned]
        offsets = await asyncio.gather(*(client.committed(KafkaPartition(*partition)) for partition in asked))
        new = [partition for partition, offset in zip(asked, offsets, strict=True) if offset is None]
        begins = await self._first_offsets(client, [KafkaPartition(*partition) for partition in new])
        if self._options.start_from == "latest" and begins:
            await self._commit_first(client, begins)
        for partition in asked:
            # An await may have brought a seek or another assignment.
            if partition in self._undecided and partition in self._owned:
                self._undecided.discard(partition)
                if partition in begins:
                    client.seek(KafkaPartition(*partition), begins[partition])

    async def _commit_first(self, client: AIOKafkaConsumer, begins: Mapping[TopicPartition, int]) -> None:
        try:
            await self._commit(client, begins)
        except CommitError as error:
            if not error.lost:
                raise
            # The next owner decides; it has seen nothing less than we have.
            _log.info("group %s: rebalanced before its first positions were committed", self._options.group)

    async def _first_offsets(
        self, client: AIOKafkaConsumer, partitions: Sequence[KafkaPartition]
    ) -> dict[TopicPartition, int]:
        start_from = self._options.start_from
        found: dict[KafkaPartition, int]
        if not partitions:
            found = {}
        elif start_from == "earliest":
            found = await client.beginning_offsets(partitions)
        elif start_from == "latest":
            found = await client.end_offsets(partitions)
        else:
            assert isinstance(start_from, datetime)
            moment = max(0, round(start_from.timestamp() * 1000))
            at = await client.offsets_for_times(dict.fromkeys(partitions, moment))
            found = {partition: place.offset for partition, place in at.items() if place is not None}
            if beyond := [partition for partition in partitions if partition not in found]:
                found |= await client.end_offsets(beyond)
        return {TopicPartition(*partition): offset for partition, offset in found.items()}

    def _forget_assignment(self) -> None:
        self._is_settled = False
        self._drop_fetched(self._owned)
        self._owned = frozenset()
        self._undecided = set()
        self._held.clear()
        self._paused.clear()
        self._served.clear()
        self._before_unreadable = None

    def _drop_fetched(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget records that were fetched but not handed out, those in the ended `getmany` included."""
        poll = self._poll
        if poll is not None and poll.done() and not poll.cancelled() and poll.exception() is None:
            self._poll = None
            self._hold(poll.result())
        for partition in partitions:
            self._held.pop(partition, None)

    def _carry(self, error: Exception, callback: str) -> None:
        _log.error("group %s: %s raised", self._options.group, callback, exc_info=error)
        self._error = error
        self._signal.set()

    async def _ask(self, answer: Awaitable[Any], what: str) -> Any:
        doing = f"group {self._options.group!r}: {what}"
        try:
            async with asyncio.timeout(self._cluster.request_timeout):
                return await answer
        except TimeoutError as error:
            raise BrokerUnavailableError(f"{doing}: no answer within {self._cluster.request_timeout:g} s") from error
        except kafka.KafkaError as error:
            raise translate(error, doing) from error

    def _running(self) -> AIOKafkaConsumer:
        if self._client is None or self._is_stopped:
            raise NotRunningError(f"the consumer of group {self._options.group!r} does not run")
        return self._client


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: object) -> Awaitable[None]:
        return self._consumer.on_partitions_revoked()

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        await self._consumer.on_partitions_assigned(assigned)


def _check(options: ConsumerOptions, arguments: Mapping[str, Any]) -> None:
    where = f"consumer group {options.group!r}"
    problems = []
    if isinstance(options.start_from, datetime):
        if options.start_from.tzinfo is None:
            problems.append(f"{where}: start_from must be an aware datetime")
    elif options.start_from not in ("earliest", "latest"):
        problems.append(f"{where}: start_from={options.start_from!r}; give 'earliest', 'latest' or an aware datetime")
    assignors = arguments.get("partition_assignment_strategy", ())
    if any(isinstance(assignor, type) and issubclass(assignor, StickyPartitionAssignor) for assignor in assignors):
        problems.append(
            f"{where}: StickyPartitionAssignor cannot be used: aiokafka keeps its state for the whole process and "
            "leaves partitions without an owner; remove it from extra"
        )
    if problems:
        raise ConfigurationError(*problems)


def _is_lost(client: AIOKafkaConsumer) -> bool:
    """Whether the coordinator does not know this member any more: aiokafka has reset its generation.

    A commit would then go out as that of a client without a group, which Kafka accepts when no member is left.
    """
    coordinator = client._coordinator
    return coordinator is None or coordinator.generation < 0


async def _stop(client: AIOKafkaConsumer) -> None:
    """aiokafka's own stop, which waits for the answer to a join that is under way: until all others have joined.

    Leaving meanwhile, on another connection (the one of the join is not read by the broker before it is answered),
    ends that wait, and spares the others to wait for our session's end.
    """
    stopping = asyncio.get_running_loop().create_task(client.stop(), name="stop kafka consumer")
    await asyncio.wait({stopping}, timeout=_JOIN_PATIENCE)
    coordinator = client._coordinator
    if (
        not stopping.done()
        and coordinator is not None
        and coordinator.coordinator_id is not None
        and coordinator.member_id
        and coordinator._group_instance_id is None
    ):
        request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        with contextlib.suppress(kafka.KafkaError):
            await client._client.send(coordinator.coordinator_id, request)
    await stopping


def _repair_fetch_count(client: AIOKafkaConsumer) -> None:
    """A fetch that raises stays counted as running in aiokafka 0.14, and its guard against stuck consumers is off."""
    subscription = client._subscription
    if subscription._fetch_count:
        subscription._fetch_count = 0
        subscription._last_fetch_ended = time.monotonic()

"""The port to a Kafka cluster. Adapters pass one contract suite (`tests/contract/test_brokers.py`).

All calls belong to one event loop, the one that called `start`. Adapters translate every error of their client library
into `deimos_async.errors`; none of its types or option names passes, except through the `extra` mappings.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from deimos_async.message import Delivery, InboundRecord, OutboundRecord, TopicPartition

__all__ = [
    "Broker",
    "BrokerConsumer",
    "BrokerProducer",
    "ConsumerOptions",
    "Extent",
    "NewTopic",
    "ProducerOptions",
    "RebalanceListener",
    "StartFrom",
    "StoredOffset",
    "TopicInfo",
    "TopicLimits",
]

StartFrom = str | datetime
"""`"earliest"`, `"latest"`, or an aware datetime: first record at or after it, else the end."""


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """A member of a consumer group on some topics (names in Kafka, prefix included). Durations in seconds."""

    group: str
    topics: tuple[str, ...]
    start_from: StartFrom = "earliest"
    session_timeout: float = 45.0
    heartbeat_interval: float = 3.0
    rebalance_timeout: float = 60.0
    max_poll_interval: float = 300.0
    instance_id: str | None = None
    client_id: str = "deimos-async"
    fetch_max_bytes: int = 16 * 1024 * 1024
    max_partition_fetch_bytes: int = 1024 * 1024
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options of the client library, passed through; ignored by the broker in memory."""


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    """Idempotent, acks=all. Durations in seconds."""

    client_id: str = "deimos-async"
    delivery_timeout: float = 60.0
    compression: str | None = None
    """None, `"gzip"`, `"snappy"`, `"lz4"` or `"zstd"`."""
    max_batch_bytes: int = 128 * 1024
    max_request_bytes: int = 1024 * 1024 + 12
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as the cluster knows it."""

    name: str
    partitions: int


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """What a topic takes.

    Attributes:
        max_message_bytes: Largest record, as `deimos_async.brokers.partitioner.size_alone` counts it; None: not known.
        is_compacted: Whether records must have a key.
    """

    partitions: int
    max_message_bytes: int | None = None
    is_compacted: bool = False


class StoredOffset(NamedTuple):
    """What a group has stored for a partition: the next offset to read, and a text of its own beside it."""

    offset: int
    metadata: str = ""
    """Kafka keeps at most 4,096 bytes unless the brokers say otherwise (`offset.metadata.max.bytes`)."""


class Extent(NamedTuple):
    """What a partition holds: offsets from `begin` (included) to `end` (excluded)."""

    begin: int
    end: int
    topic_id: str | None = None
    """Kafka's id of the topic, which a topic of the same name that is made later does not have; None: not known."""


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to be made. `replication_factor` -1 takes the broker's default."""

    name: str
    partitions: int
    replication_factor: int = -1
    config: Mapping[str, str] = field(default_factory=dict)


class RebalanceListener(Protocol):
    """Told when partitions come and go. The adapter awaits each call before the group goes on."""

    async def on_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These partitions are ours from now on; nothing of them was fetched yet in this assignment."""

    async def on_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """These partitions are about to go. Until this returns, commits for them are still accepted."""

    async def on_lost(self, partitions: frozenset[TopicPartition]) -> None:
        """These partitions are somebody else's already (the session ran out): nothing can be committed for them."""


class BrokerConsumer(Protocol):
    """One member of a group. Offsets are only ever moved by `commit` and `seek`, never by themselves."""

    async def start(self) -> None:
        """Connect and join. Raises BrokerUnavailableError, TopicNotFoundError (names the topic)."""

    async def fetch(self, max_records: int, timeout: float) -> Sequence[tuple[TopicPartition, Sequence[InboundRecord]]]:
        """Next records of assigned, unpaused partitions, ascending in offset, each record once for each assignment.

        Waits up to `timeout` seconds for the first one; an empty answer is normal, also while the group rebalances or
        the brokers are away. At most `max_records` in all. Must be called on and on, also while everything is paused.
        It is never cancelled by the caller; `wake` ends its wait.
        A partition without a committed offset begins at `start_from`.

        Raises:
            OffsetOutOfRangeError: A position does not exist in its partition (names topic, partition, offset).
                After `seek` or `pause` of that partition the others go on.
            BrokerError: Not authorised, fenced: the member cannot go on.
        """

    def wake(self) -> None:
        """End the wait of a running `fetch` soon (at most its timeout later). Any number of times, in any state."""

    def assignment(self) -> frozenset[TopicPartition]:
        """Partitions that are ours now."""

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """No records of these until `resume`. Unassigned ones are ignored. Pauses end with the assignment."""

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Undo `pause`."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the next offset to read for each partition.

        Raises:
            CommitError: `lost` if this member does not own the partitions any more (fenced by the group's
                generation); `retriable` if the brokers are away for now.
        """

    async def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """The group's stored offsets; None where there is none."""

    async def starting_points(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Where the group begins in these partitions: at its stored offset, else as `start_from` says."""

    async def extents(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, Extent]:
        """What these partitions hold, asked from the brokers now.

        Raises:
            BrokerError: No answer within the request timeout, or refused.
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Next fetch of this assigned partition begins here. Records fetched before are dropped."""

    def positions_end(self) -> Mapping[TopicPartition, int]:
        """Last known end offset (high watermark) of assigned partitions, where known; no request is made."""

    def unfetched(self) -> Mapping[TopicPartition, int]:
        """How many offsets of assigned partitions the next fetches could give, as far as is known; no request is made.

        Only partitions that have some are in it. Unlike with the lag of what was handled, one does not stay in it where
        it ends with markers of transactions.
        """

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets, asked from the brokers now."""

    async def stop(self) -> None:
        """Leave the group and close, in bounded time, any number of times. `on_revoked` is not called: drain first."""


class BrokerProducer(Protocol):
    """Sends records, idempotent with acks=all."""

    async def start(self) -> None:
        """Connect. Raises BrokerUnavailableError."""

    async def send(self, records: Sequence[OutboundRecord]) -> list[Delivery]:
        """Send all and wait for every acknowledgement: n records -> n deliveries, in the order given.

        Records of one partition are stored in the order given, also over several calls made one after another.
        Partition: `partition`, else murmur2 of `partition_key` or `key` as the Java client does, else sticky.
        Cancelled: records may or may not have been stored.

        Raises:
            DeliveryError: With the indexes that failed. Never later than the delivery timeout.
        """

    async def stop(self) -> None:
        """Close in bounded time, any number of times."""


class Broker(Protocol):
    """One cluster."""

    name: str
    """Name of the cluster in the settings; `"default"` for the one of `kafka.*`."""

    async def start(self) -> None:
        """Make sure that the cluster answers, within the connect timeout. Raises BrokerUnavailableError."""

    def consumer(self, options: ConsumerOptions, listener: RebalanceListener) -> BrokerConsumer:
        """A member of a group, not started."""

    def producer(self, options: ProducerOptions) -> BrokerProducer:
        """A producer, not started."""

    async def topics(self, names: Iterable[str] | None = None) -> Mapping[str, TopicInfo]:
        """Topics of the cluster (those of `names` that exist, or all but internal ones)."""

    async def limits(self, names: Iterable[str]) -> Mapping[str, TopicLimits]:
        """What those topics take that exist. Where their settings may not be read, only their partitions are known.

        Raises:
            BrokerUnavailableError: No broker answers.
        """

    async def create_topics(self, topics: Sequence[NewTopic]) -> frozenset[str]:
        """Make those that do not exist yet; returns the names that were made. Ready to be used on return."""

    async def group_offsets(self, group: str) -> Mapping[TopicPartition, int]:
        """What that group has committed."""

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets of partitions."""

    async def begin_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """First offsets that partitions still hold; equal to the end where they are empty.

        Raises:
            TopicNotFoundError: One of them does not exist.
        """

    def read(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, limit: int | None = None
    ) -> AsyncGenerator[Sequence[InboundRecord], None]:
        """Records of partitions without any group: nothing is joined, committed or left behind.

        Gives lists of at least one record, all of one partition and ascending; partitions come in any order. It ends
        when every partition was read from `start` (included) to `stop` (excluded), cut down to what the partition holds
        when the reading begins: what is written later is never waited for, offsets that do not exist (any more) are
        passed over. Close it (`aclosing`) to end early. Records of transactions that were aborted are given too.

        Args:
            ranges: For each partition `(start, stop)`.
            limit: At most so many records of each partition, its first ones.

        Raises:
            TopicNotFoundError: One of the partitions does not exist.
            BrokerUnavailableError: Nothing came within the request timeout.
            BrokerError: Not allowed, or a record that the client library cannot read.
        """

    async def stored_offsets(self, group: str) -> Mapping[TopicPartition, StoredOffset]:
        """As `group_offsets`, with the texts."""

    async def store_offsets(self, group: str, offsets: Mapping[TopicPartition, StoredOffset]) -> None:
        """Store offsets of a group that has no members, in place of what it had for these partitions.

        Raises:
            CommitError: `lost` if the group has members: only they commit.
            BrokerError: A text is too long, or not allowed.
        """

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """Delete every record below the offset given for its partition; at most those that it holds.

        Returns:
            The first offset that each partition holds now.

        Raises:
            TopicNotFoundError: One of them does not exist.
            BrokerError: Refused, as for a compacted topic.
        """

    async def stop(self) -> None:
        """Close what `start` opened, in bounded time, any number of times.

        Consumers and producers are closed by their owners.
        """

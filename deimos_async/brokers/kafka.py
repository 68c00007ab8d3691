"""A Kafka cluster, by aiokafka.

Consumers and producers have clients of their own (`kafka_consumer.py`, `kafka_producer.py`). Questions about the
cluster are rare: each opens a client and closes it, so that addresses that changed since the start do no harm.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin import NewTopic as KafkaNewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from deimos_async.brokers import kafka_clients
from deimos_async.brokers.kafka_consumer import KafkaConsumer
from deimos_async.brokers.kafka_errors import translate, translate_commit
from deimos_async.brokers.kafka_options import KafkaOptions, check_extra
from deimos_async.brokers.kafka_producer import KafkaProducer
from deimos_async.brokers.kafka_reading import read_ranges
from deimos_async.brokers.protocol import (
    ConsumerOptions,
    NewTopic,
    ProducerOptions,
    RebalanceListener,
    StoredOffset,
    TopicInfo,
    TopicLimits,
)
from deimos_async.errors import BrokerError, BrokerUnavailableError, TopicNotFoundError
from deimos_async.message import InboundRecord, TopicPartition

__all__ = ["KafkaBroker", "KafkaOptions"]

_CLOSE_TIMEOUT = 5.0
_START_INTERVAL = 0.5
"""Seconds between attempts to reach a cluster at start."""
_READY_TIMEOUT = 30.0
"""Seconds for new topics to have leaders that every broker knows of."""

_MOVING = (kafka.GroupCoordinatorNotAvailableError, kafka.NotCoordinatorForGroupError, kafka.GroupLoadInProgressError)
"""The group's coordinator is being chosen, or reads what it has to know: ask again."""

_COORDINATOR_PAUSE = 0.1


def _parameters(client: type) -> frozenset[str]:
    return frozenset(inspect.signature(client.__init__).parameters) - {"self", "topics"}  # type: ignore[misc]


_CONSUMER, _PRODUCER = _parameters(AIOKafkaConsumer), _parameters(AIOKafkaProducer)
_EVERY = _parameters(AIOKafkaAdminClient)


class KafkaBroker:
    """One cluster.

    Args:
        name: Name of the cluster in the settings; `"default"` for the one of `kafka.*`.
        options: How it is reached.

    Raises:
        ConfigurationError: A certificate, a token provider or an extra option cannot be used.
    """

    def __init__(self, name: str, options: KafkaOptions) -> None:
        self.name = name
        self._setting = "kafka" if name == "default" else f"clusters.{name}"
        self._options = options
        self._extra = check_extra(options.extra, _CONSUMER | _PRODUCER | _EVERY, {}, f"setting '{self._setting}.extra'")
        options.connection(self._setting)

    async def start(self) -> None:
        """Make sure that the cluster answers, within the connect timeout.

        Raises:
            BrokerUnavailableError: It does not; names the setting and the servers.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.connect_timeout
        while True:
            try:
                async with self._network():
                    return
            except BrokerUnavailableError:
                # Brokers that are being started refuse connections at once: they have until the deadline.
                if loop.time() + _START_INTERVAL >= deadline:
                    raise
            await asyncio.sleep(_START_INTERVAL)

    async def stop(self) -> None:
        """Nothing stays open here."""

    def consumer(self, options: ConsumerOptions, listener: RebalanceListener) -> KafkaConsumer:
        """A member of a group, not started.

        Raises:
            ConfigurationError: Options that contradict each other or break a guarantee.
        """
        extra = {name: value for name, value in self._extra.items() if name in _CONSUMER}
        return KafkaConsumer(
            options,
            listener,
            cluster=self._options,
            setting=self._setting,
            extra=extra,
            find_topics=self.topics,
        )

    def producer(self, options: ProducerOptions) -> KafkaProducer:
        """A producer, not started.

        Raises:
            ConfigurationError: Options that break a guarantee, or a compression whose library is missing.
        """
        extra = {name: value for name, value in self._extra.items() if name in _PRODUCER}
        return KafkaProducer(options, cluster=self._options, setting=self._setting, extra=extra)

    async def topics(self, names: Iterable[str] | None = None) -> Mapping[str, TopicInfo]:
        """Topics of the cluster (those of `names` that exist, or all but internal ones). None is made by asking.

        Raises:
            BrokerUnavailableError: No broker answers.
        """
        wanted = None if names is None else list(dict.fromkeys(names))
        if wanted == []:
            return {}
        async with self._network() as network:
            described = await self._describe(network, wanted)
        return {topic: TopicInfo(topic, len(leaders)) for topic, leaders in described.items()}

    async def limits(self, names: Iterable[str]) -> Mapping[str, TopicLimits]:
        """What those topics take that exist; see the port. Settings that may not be read are not known.

        Raises:
            BrokerUnavailableError: No broker answers.
        """
        topics = await self.topics(names)
        if not topics:
            return {}
        asked = {"max.message.bytes": None, "cleanup.policy": None}
        async with self._admin() as admin:
            responses = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name, configs=dict(asked)) for name in topics]
            )
        settings: dict[str, dict[str, str]] = {}
        for response in responses:
            for code, _, _, name, entries in response.resources:
                if kafka.for_code(code) is kafka.NoError:
                    settings[name] = {entry[0]: entry[1] or "" for entry in entries}
        return {name: _limits(info, settings.get(name, {})) for name, info in topics.items()}

    async def create_topics(self, topics: Sequence[NewTopic]) -> frozenset[str]:
        """Make those that do not exist yet; returns the names that were made. Ready to be used on return.

        Raises:
            BrokerError: The cluster refused one; names it and the reason. Others may have been made.
        """
        existing = await self.topics([topic.name for topic in topics])
        new = {topic.name: topic for topic in topics if topic.name not in existing}
        if not new:
            return frozenset()
        made = set()
        async with self._admin() as admin:
            response = await admin.create_topics(
                # An empty assignment of replicas: without it the client refuses the broker's default (-1).
                [
                    KafkaNewTopic(topic.name, topic.partitions, topic.replication_factor, {}, dict(topic.config))
                    if topic.replication_factor == -1
                    else KafkaNewTopic(
                        topic.name, topic.partitions, topic.replication_factor, topic_configs=dict(topic.config)
                    )
                    for topic in new.values()
                ]
            )
            for name, code, *text in response.topic_errors:
                error = kafka.for_code(code)
                if error is kafka.NoError:
                    made.add(name)
                elif error is not kafka.TopicAlreadyExistsError:  # somebody else was quicker
                    reason = text[0] if text and text[0] else error.__name__
                    raise BrokerError(f"topic {name!r} could not be made: {reason}")
        await self._wait_until_ready(new)
        return frozenset(made)

    async def _wait_until_ready(self, topics: Mapping[str, NewTopic]) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT
        async with self._network() as network:
            while True:
                # Brokers hear of a new topic one after another.
                nodes = [broker.nodeId for broker in network.cluster.brokers()]
                described = [await self._describe(network, list(topics), node) for node in nodes]
                if all(
                    len(found.get(topic.name, ())) >= topic.partitions and all(found[topic.name])
                    for found in described
                    for topic in topics.values()
                ):
                    return
                if asyncio.get_running_loop().time() > deadline:
                    raise BrokerUnavailableError(
                        f"topics {', '.join(topics)} were made, but have no leaders after {_READY_TIMEOUT:g} s"
                    )
                await asyncio.sleep(0.05)

    async def group_offsets(self, group: str) -> Mapping[TopicPartition, int]:
        """What that group has committed.

        Raises:
            BrokerError: No answer, or not allowed.
        """
        return {partition: stored.offset for partition, stored in (await self.stored_offsets(group)).items()}

    async def stored_offsets(self, group: str) -> Mapping[TopicPartition, StoredOffset]:
        """What that group has stored, with the texts.

        Raises:
            BrokerError: No answer, or not allowed.
        """
        async with self._admin() as admin:
            # Not by the admin client's own method, which takes a refusal for a group without offsets.
            response = await _at_coordinator(admin, group, lambda: OffsetFetchRequest(group, None))
        found = {}
        for topic, partitions in response.topics:
            for partition, offset, metadata, code in partitions:
                _raise_for(code, f"group {group!r}: the offset of {topic}[{partition}] cannot be read")
                if offset >= 0:
                    found[TopicPartition(topic, partition)] = StoredOffset(offset, metadata or "")
        return found

    async def store_offsets(self, group: str, offsets: Mapping[TopicPartition, StoredOffset]) -> None:
        """Store offsets of a group that has no members.

        Raises:
            CommitError: The group has members, a text is too long, or it is not allowed.
            BrokerError: No answer.
        """
        if not offsets:
            return
        by_topic: dict[str, list[tuple[int, int, str]]] = {}
        for (topic, partition), stored in offsets.items():
            by_topic.setdefault(topic, []).append((partition, *stored))
        # Without a member's name and generation: Kafka takes that for a group that nobody is a member of.
        request = OffsetCommitRequest(group, -1, "", -1, list(by_topic.items()))
        async with self._admin() as admin:
            response = await _at_coordinator(admin, group, lambda: request)
        for _, partitions in response.topics:
            for _, code in partitions:
                error = kafka.for_code(code)
                if error is not kafka.NoError:
                    raise translate_commit(error(), group) from error()

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets of partitions.

        Raises:
            TopicNotFoundError: One of them does not exist.
            BrokerError: No answer.
        """
        return (await self._bounds(partitions))[1]

    async def begin_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """First offsets that partitions still hold.

        Raises:
            TopicNotFoundError: One of them does not exist.
            BrokerError: No answer.
        """
        return (await self._bounds(partitions))[0]

    async def _bounds(
        self, partitions: Iterable[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Where partitions begin and end."""
        wanted = await self._check_partitions(partitions)
        if not wanted:
            return {}, {}
        client = AIOKafkaConsumer(**self._arguments(_CONSUMER))
        async with self._opened(client, client.stop, lambda: _parts(client), client._client):
            asked = [KafkaPartition(*partition) for partition in wanted]
            # A partition ends after its beginning also where retention works in between: the beginning is asked first.
            begins, ends = await client.beginning_offsets(asked), await client.end_offsets(asked)
        return (
            {TopicPartition(*partition): begin for partition, begin in begins.items()},
            {TopicPartition(*partition): end for partition, end in ends.items()},
        )

    async def _check_partitions(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Each once. Raises TopicNotFoundError for one that does not exist; aiokafka would wait for it."""
        wanted = list(dict.fromkeys(partitions))
        known = await self.topics({partition.topic for partition in wanted})
        for partition in wanted:
            if partition.topic not in known or not 0 <= partition.partition < known[partition.topic].partitions:
                raise TopicNotFoundError(f"topic {partition.topic!r} has no partition {partition.partition}")
        return wanted

    async def read(
        self, ranges: Mapping[TopicPartition, tuple[int, int]], *, limit: int | None = None
    ) -> AsyncGenerator[Sequence[InboundRecord], None]:
        """Records without any group; see the port."""
        begins, ends = await self._bounds(ranges)
        cut = {
            partition: (max(start, begins[partition]), min(stop, ends[partition]))
            for partition, (start, stop) in ranges.items()
        }
        cut = {partition: (start, stop) for partition, (start, stop) in cut.items() if start < stop}
        if not cut or limit == 0:
            return
        extra = {name: value for name, value in self._extra.items() if name in _CONSUMER}
        client = AIOKafkaConsumer(
            **extra
            | self._options.connection(self._setting)
            | {
                "group_id": None,
                "enable_auto_commit": False,
                "key_deserializer": None,
                "value_deserializer": None,
                "max_poll_records": None,
                "auto_offset_reset": "earliest",
                "isolation_level": "read_uncommitted",
                "check_crcs": True,
            }
        )
        async with self._connected(client, client.stop, lambda: _parts(client), client._client):
            records = read_ranges(client, cut, limit=limit, timeout=self._options.request_timeout)
            async with aclosing(records):
                async for found in records:
                    yield found

    async def delete_before(self, offsets: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, int]:
        """Delete every record below the offset given for its partition.

        Raises:
            TopicNotFoundError: One of them does not exist; nothing is deleted then.
            BrokerError: Refused, as for a compacted topic; records of other partitions may have been deleted.
        """
        begins, ends = await self._bounds(offsets)
        below = {
            KafkaPartition(*partition): RecordsToDelete(min(offset, ends[partition]))
            for partition, offset in offsets.items()
            if min(offset, ends[partition]) > begins[partition]
        }
        if not below:
            return begins
        async with self._admin() as admin:
            left = await admin.delete_records(below)
        return begins | {TopicPartition(*partition): begin for partition, begin in left.items()}

    def _arguments(self, accepted: frozenset[str]) -> dict[str, Any]:
        extra = {name: value for name, value in self._extra.items() if name in accepted & _EVERY}
        return extra | self._options.connection(self._setting)

    @asynccontextmanager
    async def _network(self) -> AsyncIterator[AIOKafkaClient]:
        network = AIOKafkaClient(**self._arguments(_EVERY))
        async with self._opened(network, network.close, lambda: (), network, start=network.bootstrap):
            yield network

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(**self._arguments(_EVERY))
        async with self._opened(admin, admin.close, lambda: (admin,), admin._client):
            yield admin

    @asynccontextmanager
    async def _opened(
        self, client: Any, stop: Any, parts: Any, network: Any, *, start: Any = None
    ) -> AsyncIterator[None]:
        async with self._connected(client, stop, parts, network, start=start):
            try:
                async with asyncio.timeout(self._options.request_timeout):
                    yield
            except TimeoutError as error:
                options = self._options
                raise BrokerUnavailableError(
                    f"cluster at {options.bootstrap_servers}: no answer within {options.request_timeout:g} s"
                ) from error

    @asynccontextmanager
    async def _connected(
        self, client: Any, stop: Any, parts: Any, network: Any, *, start: Any = None
    ) -> AsyncIterator[None]:
        try:
            await kafka_clients.connect(start or client.start, self._options, self._setting)
            yield
        except (kafka.KafkaError, OSError) as error:
            raise translate(error, f"cluster at {self._options.bootstrap_servers}") from error
        finally:
            await kafka_clients.close(stop, parts, network, timeout=_CLOSE_TIMEOUT)

    async def _describe(
        self, network: AIOKafkaClient, names: list[str] | None, node: int | None = None
    ) -> dict[str, list[bool]]:
        """Topics that exist, and whether each of their partitions has a leader."""
        response = await network.send(
            network.get_random_node() if node is None else node,
            MetadataRequest(names, allow_auto_topic_creation=False),
        )
        described = {}
        for topic in response.to_object()["topics"]:
            error = kafka.for_code(topic["error_code"])
            if error in (kafka.UnknownTopicOrPartitionError, kafka.InvalidTopicError):
                continue
            if names is None and topic["is_internal"]:
                continue
            if error not in (kafka.NoError, kafka.LeaderNotAvailableError):
                raise error(topic["topic"])
            described[topic["topic"]] = [
                kafka.for_code(partition["error_code"]) is kafka.NoError and partition["leader"] >= 0
                for partition in topic["partitions"]
            ]
        return described


def _limits(topic: TopicInfo, settings: Mapping[str, str]) -> TopicLimits:
    most = settings.get("max.message.bytes", "")
    return TopicLimits(
        topic.partitions, int(most) if most.isdecimal() else None, "compact" in settings.get("cleanup.policy", "")
    )


def _parts(client: AIOKafkaConsumer) -> tuple[object, ...]:
    """What owns tasks of a consumer."""
    return client, client._coordinator, client._fetcher


def _raise_for(code: int, doing: str) -> None:
    error = kafka.for_code(code)
    if error is not kafka.NoError:
        raise translate(error(), doing) from error()


async def _at_coordinator(admin: AIOKafkaAdminClient, group: str, request: Callable[[], Any]) -> Any:
    """Ask the group's coordinator, again and again while there is none (a new cluster makes its topic of offsets)."""
    while True:
        try:
            coordinator = await admin.find_coordinator(group)
            response = await admin._send_request(request(), coordinator)
        except _MOVING:
            await asyncio.sleep(_COORDINATOR_PAUSE)
            continue
        codes = {getattr(response, "error_code", 0)}
        codes |= {row[-1] for _, partitions in response.topics for row in partitions}
        errors = {kafka.for_code(code) for code in codes}
        if errors.isdisjoint(_MOVING):
            _raise_for(getattr(response, "error_code", 0), f"group {group!r}")
            return response
        await asyncio.sleep(_COORDINATOR_PAUSE)

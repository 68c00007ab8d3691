"""A Kafka cluster, by aiokafka.

Consumers and producers have clients of their own (`kafka_consumer.py`, `kafka_producer.py`). Questions about the
cluster are rare: each opens a client and closes it, so that addresses that changed since the start do no harm.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin import NewTopic as KafkaNewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from deimos_async.brokers import kafka_clients
from deimos_async.brokers.kafka_consumer import KafkaConsumer
from deimos_async.brokers.kafka_errors import translate
from deimos_async.brokers.kafka_options import KafkaOptions, check_extra
from deimos_async.brokers.kafka_producer import KafkaProducer
from deimos_async.brokers.protocol import ConsumerOptions, NewTopic, ProducerOptions, RebalanceListener, TopicInfo
from deimos_async.errors import BrokerError, BrokerUnavailableError, TopicNotFoundError
from deimos_async.message import TopicPartition

__all__ = ["KafkaBroker", "KafkaOptions"]

_CLOSE_TIMEOUT = 5.0
_READY_TIMEOUT = 30.0
"""Seconds for new topics to have leaders that every broker knows of."""


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
        async with self._network():
            pass

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
        async with self._admin() as admin:
            offsets = await admin.list_consumer_group_offsets(group)
        return {
            TopicPartition(*partition): stored.offset for partition, stored in offsets.items() if stored.offset >= 0
        }

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End offsets of partitions.

        Raises:
            TopicNotFoundError: One of them does not exist.
            BrokerError: No answer.
        """
        wanted = list(dict.fromkeys(partitions))
        if not wanted:
            return {}
        known = await self.topics({partition.topic for partition in wanted})
        for partition in wanted:
            if partition.topic not in known or not 0 <= partition.partition < known[partition.topic].partitions:
                raise TopicNotFoundError(f"topic {partition.topic!r} has no partition {partition.partition}")
        client = AIOKafkaConsumer(**self._arguments(_CONSUMER))
        async with self._opened(
            client, client.stop, lambda: (client, client._coordinator, client._fetcher), client._client
        ):
            ends = await client.end_offsets([KafkaPartition(*partition) for partition in wanted])
        return {TopicPartition(*partition): end for partition, end in ends.items()}

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
        try:
            await kafka_clients.connect(start or client.start, self._options, self._setting)
            async with asyncio.timeout(self._options.request_timeout):
                yield
        except TimeoutError as error:
            raise BrokerUnavailableError(
                f"cluster at {self._options.bootstrap_servers}: no answer within {self._options.request_timeout:g} s"
            ) from error
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

"""A Kafka cluster that is left as it was found: for tests of applications."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.kafka_consumer import KafkaConsumer
from deimos_async.brokers.protocol import ConsumerOptions, NewTopic, RebalanceListener
from deimos_async.errors import BrokerError

__all__ = ["DisposableKafkaBroker"]

_log = logging.getLogger(__name__)

_OF_A_CLUSTER = frozenset({"min.insync.replicas"})
"""Configuration of topics that asks for a certain number of brokers."""


class DisposableKafkaBroker(KafkaBroker):
    """A cluster whose topics and groups are deleted at `stop`: those that were made, or joined, through this object.

    Topics take the broker's default replication, whatever they ask for, as there may be one broker only. What cannot be
    deleted is logged and stays.
    """

    def __init__(self, name: str, options: KafkaOptions) -> None:
        super().__init__(name, options)
        self._made: set[str] = set()
        self._joined: set[str] = set()

    def consumer(self, options: ConsumerOptions, listener: RebalanceListener) -> KafkaConsumer:
        """See `KafkaBroker.consumer`."""
        self._joined.add(options.group)
        return super().consumer(options, listener)

    async def create_topics(self, topics: Sequence[NewTopic]) -> frozenset[str]:
        """See `KafkaBroker.create_topics`."""
        wanted = [
            replace(
                topic,
                replication_factor=-1,
                config={name: value for name, value in topic.config.items() if name not in _OF_A_CLUSTER},
            )
            for topic in topics
        ]
        existing = await self.topics([topic.name for topic in wanted])
        # noted before they are made: a call that is cut off may have made them
        self._made |= {topic.name for topic in wanted} - existing.keys()
        return await super().create_topics(wanted)

    async def stop(self) -> None:
        """Delete the groups, which have no members by now, and the topics. Any number of times."""
        topics, self._made = sorted(self._made), set()
        groups, self._joined = sorted(self._joined), set()
        try:
            await self._delete_groups(groups)
            await self._delete_topics(topics)
        except (BrokerError, kafka.KafkaError) as error:
            _log.warning("cluster %r keeps what was made for a test: %s", self.name, error)

    async def _delete_groups(self, groups: Sequence[str]) -> None:
        if not groups:
            return
        async with self._admin() as admin:
            for group in groups:
                coordinator = await admin.find_coordinator(group)
                response = await admin._send_request(_DeleteGroups([group]), coordinator)
                for name, code in response.results:
                    # A member that never got as far as joining leaves no group.
                    if kafka.for_code(code) not in (kafka.NoError, kafka.GroupIdNotFound):
                        _log.warning("group %r was not deleted: %s", name, kafka.for_code(code).__name__)

    async def _delete_topics(self, topics: Sequence[str]) -> None:
        if not topics:
            return
        async with self._admin() as admin:
            response = await admin.delete_topics(list(topics))
            for name, code in response.topic_error_codes:
                if kafka.for_code(code) not in (kafka.NoError, kafka.UnknownTopicOrPartitionError):
                    _log.warning("topic %r was not deleted: %s", name, kafka.for_code(code).__name__)


# aiokafka 0.14 has no request for deleting groups.
# Source: Apache Kafka protocol guide, DeleteGroups (key 42), version 0.


class _DeleteGroupsResponse(Response):  # type: ignore[misc]  # the library has no types
    API_KEY = 42
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32), ("results", Array(("group_id", String("utf-8")), ("error_code", Int16)))
    )


class _DeleteGroupsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 42
    API_VERSION = 0
    RESPONSE_TYPE = _DeleteGroupsResponse
    SCHEMA = Schema(("groups_names", Array(String("utf-8"))))


class _DeleteGroups(Request[_DeleteGroupsStruct]):  # type: ignore[misc]
    API_KEY = 42

    def __init__(self, groups: Sequence[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[_DeleteGroupsStruct]) -> Any:
        return request_struct_class(list(self._groups))

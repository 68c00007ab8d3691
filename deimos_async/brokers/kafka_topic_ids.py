"""Ids of topics, by which one that was deleted and made anew is told from the old one of that name.

aiokafka 0.14 asks for metadata by a version that has no ids.

Source: KIP-516; Metadata version 10 of Kafka's protocol (Kafka 2.8 and later).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

__all__ = ["topic_ids"]

_NO_ID = bytes(16)
"""The id that stands for none."""


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]  # the library has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponse(Response):  # type: ignore[misc]  # the library has no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]  # the library has no types
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_MetadataStruct]):  # type: ignore[misc]  # the library has no types
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(_NO_ID, topic, {}) for topic in self._topics], False, False, False, {})


async def topic_ids(network: AIOKafkaClient, topics: Sequence[str]) -> dict[str, str]:
    """Ids as Kafka's tools show them, of those topics that exist; none where the brokers are older than topic ids.

    Raises:
        kafka.KafkaError: No answer.
    """
    try:
        response = await network.send(network.get_random_node(), _Metadata(topics))
    except (NotImplementedError, kafka.IncompatibleBrokerVersion):
        return {}
    return {
        topic["name"]: base64.urlsafe_b64encode(topic["topic_id"]).decode().rstrip("=")
        for topic in response.to_object()["topics"]
        if kafka.for_code(topic["error_code"]) is kafka.NoError and topic["topic_id"] != _NO_ID
    }

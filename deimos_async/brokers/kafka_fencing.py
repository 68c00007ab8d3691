"""Whether another process has taken a static member's place.

aiokafka 0.14 sends no instance id along with heartbeats and commits, so that brokers answer a member whose place was
taken as one that they do not know. It would join anew and take the place back: two processes with one instance id would
drive each other out for ever, and handle the same messages in turn. A heartbeat that names the instance id tells the
two apart.

Source: KIP-345; Heartbeat version 3 of Kafka's protocol.
"""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Int16, Int32, Schema, String

__all__ = ["is_fenced"]

_FENCED_INSTANCE_ID = 82


class _HeartbeatResponse(Response):  # type: ignore[misc]  # the library has no types
    API_KEY = 12
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _HeartbeatStruct(RequestStruct):  # type: ignore[misc]  # the library has no types
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _Heartbeat(Request[_HeartbeatStruct]):  # type: ignore[misc]  # the library has no types
    API_KEY = 12

    def __init__(self, *values: str | int) -> None:
        self._values = values

    def build(self, request_struct_class: type[_HeartbeatStruct]) -> _HeartbeatStruct:
        return request_struct_class(*self._values)


async def is_fenced(client: AIOKafkaConsumer, *, member_id: str, instance_id: str, timeout: float) -> bool:
    """Ask the group's coordinator. False also where nobody answers: then the join that follows shows how things are.

    Args:
        client: A member of a group.
        member_id: Its name in its last assignment.
        timeout: Seconds.
    """
    coordinator = client._coordinator
    try:
        async with asyncio.timeout(timeout):
            await coordinator.ensure_coordinator_known()
            response = await client._client.send(
                coordinator.coordinator_id,
                _Heartbeat(coordinator.group_id, max(0, coordinator.generation), member_id, instance_id),
            )
    except (kafka.KafkaError, OSError, TimeoutError, NotImplementedError):
        # The last one: brokers older than this request know no static members.
        return False
    return bool(response.error_code == _FENCED_INSTANCE_ID)

"""Whether a row can be sent at all, seen before it is: nothing of its key must be on its way when that is found out."""

from __future__ import annotations

from typing import NamedTuple

from deimos_async.brokers.partitioner import size_alone
from deimos_async.brokers.protocol import TopicLimits
from deimos_async.message import OutboundRecord

__all__ = ["Problem", "find_problem"]

_HEADER_ROOM = 1024
"""Bytes that a record takes beside key, value and headers, at most."""


class Problem(NamedTuple):
    """Why a row cannot be sent."""

    code: str
    """`too_large`, `no_partition` or `no_key`."""
    text: str
    """Names topic, sizes and what to change; nothing of the message."""


def find_problem(record: OutboundRecord, limits: TopicLimits, *, max_request_bytes: int) -> Problem | None:
    """What keeps a record from being stored in its topic; None: nothing that can be seen from here.

    Args:
        max_request_bytes: The producer's own limit.
    """
    limit = max_request_bytes
    if limits.max_message_bytes is not None:
        limit = min(limit, limits.max_message_bytes)
    rough = (0 if record.value is None else len(record.value)) + (0 if record.key is None else len(record.key))
    if rough + _HEADER_ROOM > limit or len(record.headers) > 6:
        size = size_alone(record)
        if size > limit:
            whose = (
                "max_request_bytes (setting producers.max_request_bytes)"
                if limit == max_request_bytes
                else "the topic's max.message.bytes"
            )
            return Problem(
                "too_large", f"topic {record.topic!r}: a message of {size} bytes is above {whose}, which is {limit}"
            )
    if record.partition is not None and not 0 <= record.partition < limits.partitions:
        return Problem(
            "no_partition",
            f"topic {record.topic!r} has no partition {record.partition}, it has {limits.partitions}",
        )
    if record.key is None and limits.is_compacted:
        return Problem("no_key", f"topic {record.topic!r} is compacted: it takes no messages without a key")
    return None

"""What a dead letter looks like: key, payload and headers as they were, and where they came from in headers.

Source of the header set: the design document's own names; first-failure headers are never overwritten.
"""

from __future__ import annotations

from datetime import UTC, datetime

from deimos_async.message import InboundRecord, OutboundRecord

__all__ = ["HEADER_PREFIX", "build", "dead_letter_topic"]

HEADER_PREFIX = "deimos-dlq-"
_MESSAGE_LIMIT = 1000


def dead_letter_topic(topic: str, template: str) -> str:
    """Name of a topic's dead-letter topic: `("orders", "{topic}-dlt")` gives `orders-dlt`."""
    return template.replace("{topic}", topic)


def build(
    record: InboundRecord,
    error: BaseException,
    *,
    topic: str,
    group: str,
    attempts: int,
    now: datetime,
) -> OutboundRecord:
    """The record that goes to the dead-letter topic.

    Args:
        record: The failed one; its key, value and headers are taken as they are, bytes unchanged.
        error: Its class and text go into headers (one line, at most 1,000 characters); no stack trace.
        topic: Name of the dead-letter topic in Kafka.
        attempts: How often it was tried; 0 for what could not be decoded.
        now: Time of the failure, aware.
    """
    cls = type(error)
    text = " ".join(str(error).split())[:_MESSAGE_LIMIT]
    origin = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp if record.timestamp is not None else -1),
        "group": group,
        "attempts": str(attempts),
        "error-class": f"{cls.__module__}.{cls.__qualname__}",
        "error-message": text,
        "first-failed-at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    headers = list(record.headers)
    present = {name for name, _ in headers}
    headers += [
        (HEADER_PREFIX + name, value.encode()) for name, value in origin.items() if HEADER_PREFIX + name not in present
    ]
    timestamp = record.timestamp if record.timestamp is not None and record.timestamp >= 0 else None
    return OutboundRecord(
        topic,
        key=record.key,
        value=record.value,
        headers=headers,
        partition=record.partition,
        timestamp=timestamp,
    )

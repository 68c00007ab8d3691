"""What leaves a consumer's topic after an error: dead letters, and messages that wait in a retry topic.

Key, payload and headers stay as they were; where the message came from and what went wrong is in headers. A retry topic
is read by the same group as the topic it belongs to, a message no sooner than it is due; it carries where it came from
along, so that the dead letter at the end of the way names the original message.

Source of the header set: the design document's own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from deimos_async.message import InboundRecord, OutboundRecord

__all__ = [
    "HEADER_PREFIX",
    "REPLAYED_FROM",
    "REPLAYS",
    "REPLAY_GROUP",
    "RETRY_PREFIX",
    "bare",
    "build",
    "dead_letter_topic",
    "defer",
    "due",
    "for_other_groups",
    "is_dead_letter_topic",
    "retry_topic",
]

HEADER_PREFIX = "deimos-dlq-"
RETRY_PREFIX = "deimos-retry-"
REPLAYED_FROM = "deimos-replayed-from"
"""Where the letter of a replayed message lies, as `topic/partition/offset`."""
REPLAYS = "deimos-replays"
"""How often the message was replayed, in decimal."""
REPLAY_GROUP = "deimos-replay-group"
"""The one group that a replayed message is for. Without it, it is for all."""
_DUE = RETRY_PREFIX + "due"
_MEANT_FOR = frozenset({REPLAY_GROUP, RETRY_PREFIX + "group"})
_MESSAGE_LIMIT = 1000
_CARRIED = ("topic", "partition", "offset", "timestamp", "first-failed-at")
"""What the first failure says once and for all."""


def for_other_groups(records: Sequence[InboundRecord], group: bytes) -> set[int]:
    """Offsets of records that say that they are meant for another group: replayed for one, or waiting for its retry.

    Args:
        group: Name in Kafka of the group that reads.
    """
    return {
        record.offset
        for record in records
        if record.headers and any(name in _MEANT_FOR and value != group for name, value in record.headers)
    }


def dead_letter_topic(topic: str, template: str) -> str:
    """Name of a topic's dead-letter topic: `("orders", "{topic}-dlt")` gives `orders-dlt`."""
    return template.replace("{topic}", topic)


def is_dead_letter_topic(topic: str, template: str) -> bool:
    """Whether a topic's name is that of some topic's dead-letter topic."""
    return re.fullmatch(".+".join(map(re.escape, template.split("{topic}"))), topic) is not None


def retry_topic(topic: str, template: str, number: int) -> str:
    """Name of a topic's n-th retry topic, from 1: `("orders", "{topic}-retry-{n}", 2)` gives `orders-retry-2`."""
    return template.replace("{topic}", topic).replace("{n}", str(number))


def due(record: InboundRecord) -> float:
    """Seconds since the epoch until which a record of a retry topic waits; 0 where it does not say: it is due."""
    for name, value in record.headers:
        if name == _DUE and value is not None and value.isdigit():
            return int(value[:20]) / 1000
    return 0.0


def defer(
    record: InboundRecord,
    error: BaseException,
    *,
    topic: str,
    group: str,
    attempts: int,
    now: datetime,
    delay: float,
) -> OutboundRecord:
    """The record that goes to a retry topic, due `delay` seconds from now. Other arguments as for `build`."""
    about = _about(record, error, group=group, attempts=attempts, now=now)
    about["due"] = str(round((now.timestamp() + delay) * 1000))
    return _outbound(record, topic, RETRY_PREFIX, about)


def build(
    record: InboundRecord,
    error: BaseException,
    *,
    topic: str,
    group: str,
    attempts: int,
    now: datetime,
    as_spring: bool = False,
) -> OutboundRecord:
    """The record that goes to the dead-letter topic.

    Args:
        record: The failed one; its key, value and headers are taken as they are, bytes unchanged.
        error: Its class and text go into headers (one line, at most 1,000 characters); no stack trace.
        topic: Name of the dead-letter topic in Kafka.
        attempts: How often it was tried; 0 for what could not be decoded.
        now: Time of the failure, aware.
        as_spring: Say the same under spring-kafka's names, too.
    """
    about = _about(record, error, group=group, attempts=attempts, now=now)
    letter = _outbound(record, topic, HEADER_PREFIX, about)
    if as_spring:
        return letter._replace(headers=[*letter.headers, *_spring_headers(about)])
    return letter


def _spring_headers(about: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Source: spring-kafka's reference, "Publishing Dead-letter Records": integers are big-endian, of 4 and 8 bytes."""
    return [
        ("kafka_dlt-original-topic", about["topic"].encode()),
        ("kafka_dlt-original-partition", int(about["partition"]).to_bytes(4, "big", signed=True)),
        ("kafka_dlt-original-offset", int(about["offset"]).to_bytes(8, "big", signed=True)),
        ("kafka_dlt-original-timestamp", int(about["timestamp"]).to_bytes(8, "big", signed=True)),
        ("kafka_dlt-original-timestamp-type", b"CreateTime"),
        ("kafka_dlt-original-consumer-group", about["group"].encode()),
        ("kafka_dlt-exception-fqcn", about["error-class"].encode()),
        ("kafka_dlt-exception-message", about["error-message"].encode()),
    ]


def bare(record: InboundRecord, letter: OutboundRecord) -> OutboundRecord:
    """A letter without headers of ours: as large as the record was, so that a topic of equal limits takes it."""
    return OutboundRecord(
        letter.topic,
        key=letter.key,
        value=letter.value,
        headers=list(record.headers),
        partition=letter.partition,
        timestamp=letter.timestamp,
    )


def _about(record: InboundRecord, error: BaseException, *, group: str, attempts: int, now: datetime) -> dict[str, str]:
    """Where the message came from first, and how it failed last."""
    cls = type(error)
    carried = {
        name: value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith(RETRY_PREFIX) and value is not None
    }
    before = carried.get(RETRY_PREFIX + "attempts", "0")
    about = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp if record.timestamp is not None else -1),
        "first-failed-at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    about |= {name: carried[RETRY_PREFIX + name] for name in _CARRIED if RETRY_PREFIX + name in carried}
    return about | {
        "group": group,
        "attempts": str(attempts + (int(before) if before.isdecimal() else 0)),
        "error-class": f"{_public_module(cls)}.{cls.__qualname__}",
        "error-message": " ".join(str(error).split())[:_MESSAGE_LIMIT],
    }


def _public_module(cls: type) -> str:
    # Where the name can be imported from, not where we happen to keep it.
    return "deimos_async" if cls.__module__.startswith("deimos_async.") else cls.__module__


def _outbound(record: InboundRecord, topic: str, prefix: str, about: Mapping[str, str]) -> OutboundRecord:
    present = {name for name, _ in record.headers}
    headers = [(name, value) for name, value in record.headers if not name.startswith(RETRY_PREFIX)]
    headers += [
        (prefix + name, value.encode())
        for name, value in about.items()
        if prefix == RETRY_PREFIX or prefix + name not in present
    ]
    return OutboundRecord(
        topic,
        key=record.key,
        value=record.value,
        headers=headers,
        partition=record.partition,
        timestamp=record.timestamp if record.timestamp is not None and record.timestamp >= 0 else None,
    )

"""What leaves a consumer's topic after an error: dead letters, and messages that wait in a retry topic.

Key, payload and headers stay as they were; where the message came from and what went wrong is in headers. A retry topic
is read by the same group as the topic it belongs to, a message no sooner than it is due; it carries where it came from
along, so that the dead letter at the end of the way names the original message.

Whoever may write to a topic may write any header, so a header of ours is believed only where it is ours to write:
`deimos-retry-*` on the retry topics of the consumer, marks of a replay on the topic that they name, `deimos-dlq-*` in
dead letters. Elsewhere these names are what somebody has brought along. A letter keeps them, as `theirs-dlq-*` and
`theirs-retry-*`: names of the same length, so that a letter without headers of ours is never larger than the record.

Source of the header set: the design document's own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from deimos_async.message import InboundRecord, OutboundRecord
from deimos_async.plain_text import class_path, described

__all__ = [
    "HEADER_PREFIX",
    "MARKS",
    "OFFSET_LIMIT",
    "PARTITION_LIMIT",
    "REPLAYED_FROM",
    "REPLAYS",
    "REPLAY_GROUP",
    "REPLAY_TOPIC",
    "RETRY_PREFIX",
    "bare",
    "build",
    "dead_letter_topic",
    "defer",
    "due",
    "for_other_groups",
    "is_dead_letter_topic",
    "moment",
    "number",
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
REPLAY_TOPIC = "deimos-replay-topic"
"""Name in Kafka of the topic that a message was replayed to; on another one the marks of that replay mean nothing."""
MARKS = frozenset({REPLAYED_FROM, REPLAYS, REPLAY_GROUP, REPLAY_TOPIC})
"""What a replay adds to a message."""
PARTITION_LIMIT = 2**31 - 1
OFFSET_LIMIT = 2**63 - 2
"""The largest one that has a next."""
_OWN, _THEIRS = "deimos", "theirs"
_RETRY_GROUP = RETRY_PREFIX + "group"
_DUE = RETRY_PREFIX + "due"
_LAST_MILLISECOND = 253_402_300_799_999
"""Of the year 9999."""
_TIMESTAMP_LIMIT = 2**63 - 1
_ATTEMPTS_LIMIT = 2**31 - 1
_TOPIC_NAME = re.compile(rb"[A-Za-z0-9._-]{1,249}")


def number(value: bytes | None, most: int) -> int | None:
    """A whole number as our headers write it: decimal digits and nothing else, at most 19 of them; else None.

    Args:
        most: The largest that makes sense.
    """
    # int() would take signs, blanks, underscores and foreign digits, and raise for digits without end.
    if value is None or not value.isdigit() or len(value) > 19:
        return None
    found = int(value)
    return found if found <= most else None


def moment(value: bytes | None) -> datetime | None:
    """A time as our headers write it, in UTC; None where it is none, has no offset, or is none in UTC."""
    try:
        found = datetime.fromisoformat((value or b"").decode("ascii"))
        return None if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def for_other_groups(records: Sequence[InboundRecord], group: bytes, *, is_retry: bool = False) -> set[int]:
    """Offsets of records that say that they are meant for another group: replayed for one, or waiting for its retry.

    Args:
        group: Name in Kafka of the group that reads.
        is_retry: Whether they lie on a retry topic of the consumer.
    """
    names = (_RETRY_GROUP, REPLAY_GROUP) if is_retry else (REPLAY_GROUP,)
    return {
        record.offset
        for record in records
        if record.headers
        and any(name in names and value != group for name, value in record.headers)
        and _is_for_another(record, group, is_retry=is_retry)
    }


def _is_for_another(record: InboundRecord, group: bytes, *, is_retry: bool) -> bool:
    said = {name: value for name, value in record.headers if value is not None}
    if is_retry and said.get(_RETRY_GROUP, group) != group:
        return True
    return said.get(REPLAY_GROUP, group) != group and said.get(REPLAY_TOPIC) == record.topic.encode()


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
    milliseconds = 0
    for name, value in record.headers:
        if name == _DUE:
            milliseconds = number(value, _LAST_MILLISECOND) or 0
    return milliseconds / 1000


def defer(
    record: InboundRecord,
    error: BaseException,
    *,
    topic: str,
    group: str,
    attempts: int,
    now: datetime,
    delay: float,
    is_retry: bool = False,
) -> OutboundRecord:
    """The record that goes to a retry topic, due `delay` seconds from now. Other arguments as for `build`."""
    about = _about(record, error, group=group, attempts=attempts, now=now, is_retry=is_retry)
    about["due"] = str(round((now.timestamp() + delay) * 1000))
    foreign = () if is_retry else (RETRY_PREFIX,)
    return _outbound(record, topic, RETRY_PREFIX, about, _brought_along(record, foreign, is_retry=is_retry))


def build(
    record: InboundRecord,
    error: BaseException,
    *,
    topic: str,
    group: str,
    attempts: int,
    now: datetime,
    as_spring: bool = False,
    is_retry: bool = False,
) -> OutboundRecord:
    """The record that goes to the dead-letter topic. Whatever its headers and the error say, it can be built.

    Args:
        record: The failed one; its key, value and headers are taken as they are, bytes unchanged. Headers of names that
            are ours in a letter, and that it has brought along, are called `theirs-*` in the letter.
        error: Its class and text go into headers (one printable line, at most 1,000 characters); no stack trace.
        topic: Name of the dead-letter topic in Kafka.
        attempts: How often it was tried; 0 for what could not be decoded.
        now: Time of the failure, or of the first one where that is known, aware.
        as_spring: Say the same under spring-kafka's names, too.
        is_retry: Whether the record lies on a retry topic of the consumer. Only there `deimos-retry-*` says where it
            came from and how often it was tried; what of that makes no sense counts as missing.
    """
    about = _about(record, error, group=group, attempts=attempts, now=now, is_retry=is_retry)
    letter = _outbound(record, topic, HEADER_PREFIX, about, _in_letter(record, is_retry=is_retry))
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


def bare(record: InboundRecord, letter: OutboundRecord, *, is_retry: bool = False) -> OutboundRecord:
    """A letter without headers of ours: as large as the record was, so that a topic of equal limits takes it.

    Args:
        is_retry: As for `build`.
    """
    return letter._replace(headers=_in_letter(record, is_retry=is_retry))


def _about(
    record: InboundRecord, error: BaseException, *, group: str, attempts: int, now: datetime, is_retry: bool
) -> dict[str, str]:
    """Where the message came from first, and how it failed last."""
    said = {}
    if is_retry:
        said = {
            name.removeprefix(RETRY_PREFIX): value for name, value in record.headers if name.startswith(RETRY_PREFIX)
        }
    about = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp if record.timestamp is not None else -1),
        "first-failed-at": now.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    return (
        about
        | _carried(said)
        | {
            "group": group,
            "attempts": str(attempts + (number(said.get("attempts"), _ATTEMPTS_LIMIT) or 0)),
            "error-class": class_path(error),
            "error-message": described(error),
        }
    )


def _carried(said: Mapping[str, bytes | None]) -> dict[str, str]:
    """What the first failure has said once and for all, as far as it makes sense."""
    carried = {}
    topic = said.get("topic") or b""
    partition, offset = number(said.get("partition"), PARTITION_LIMIT), number(said.get("offset"), OFFSET_LIMIT)
    if _TOPIC_NAME.fullmatch(topic) and partition is not None and offset is not None:
        # One place: a part of it beside a part of another would be a place that never was.
        carried = {"topic": topic.decode(), "partition": str(partition), "offset": str(offset)}
        timestamp = number(said.get("timestamp"), _TIMESTAMP_LIMIT)
        carried["timestamp"] = str(-1 if timestamp is None else timestamp)
    first = moment(said.get("first-failed-at"))
    if first is not None:
        carried["first-failed-at"] = first.isoformat(timespec="milliseconds")
    return carried


def _in_letter(record: InboundRecord, *, is_retry: bool) -> list[tuple[str, bytes | None]]:
    foreign = (HEADER_PREFIX,) if is_retry else (HEADER_PREFIX, RETRY_PREFIX)
    return _brought_along(record, foreign, is_retry=is_retry)


def _brought_along(
    record: InboundRecord, foreign: tuple[str, ...], *, is_retry: bool
) -> list[tuple[str, bytes | None]]:
    """The record's headers, those that begin like `foreign` as theirs; without what is ours on a retry topic."""
    return [
        (_THEIRS + name.removeprefix(_OWN) if name.startswith(foreign) else name, value)
        for name, value in record.headers
        if not (is_retry and name.startswith(RETRY_PREFIX))
    ]


def _outbound(
    record: InboundRecord,
    topic: str,
    prefix: str,
    about: Mapping[str, str],
    headers: Iterable[tuple[str, bytes | None]],
) -> OutboundRecord:
    return OutboundRecord(
        topic,
        key=record.key,
        value=record.value,
        headers=[*headers, *((prefix + name, value.encode()) for name, value in about.items())],
        partition=record.partition,
        timestamp=record.timestamp if record.timestamp is not None and record.timestamp >= 0 else None,
    )

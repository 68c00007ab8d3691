"""From what a user gives to an encoded record. The order of the steps matters; it is Deimos's.

Automatic fields, key, tombstone, coercion, encoding: automatic fields come before the key (a `message_id` may be the
key), and whether it is a tombstone is decided before coercion (an empty mapping is one, a mapping of only unknown
fields is not). Source: Deimos 2.6, produce pipeline; it differs by partitioning on the encoded key.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from deimos_async.errors import EncodeError
from deimos_async.message import RESERVED_HEADERS, HeadersInput, OutboundRecord, encode_headers
from deimos_async.payload_log import payload_view
from deimos_async.producing.outlet import Outgoing, TopicOutlet

__all__ = ["by_topic", "log_produced", "prepare"]

logger = logging.getLogger("deimos_async.messages")

_new = tuple.__new__


def prepare(
    outlet: TopicOutlet,
    producer: str,
    payload: Any,
    key: Any,
    partition_key: str | bytes | None,
    headers: HeadersInput | None,
    timestamp: datetime | None,
    trace: Sequence[tuple[str, bytes]],
    now: datetime,
) -> Outgoing:
    """Encode one message. The payload that was given is left as it is.

    Args:
        outlet: The topic; its codec is prepared.
        producer: Name of the producer's class, for logs and events.
        headers: Those whose names are reserved (`RESERVED_HEADERS`) are left out.
        trace: Headers of the current span; they come last and only where the user gave none of that name.
        now: Aware; for an automatic `timestamp` field.

    Raises:
        EncodeError: Payload, key, headers or timestamp do not fit; names the topic.
    """
    codec = outlet.codec
    pairs: Sequence[tuple[str, bytes | None]] = trace
    milliseconds = partition_bytes = None
    if headers is not None or timestamp is not None or partition_key is not None:
        try:
            pairs = _with_trace(_without_reserved(encode_headers(headers)), trace)
            milliseconds = _milliseconds(timestamp)
            partition_bytes = _partition_key(partition_key)
        except (TypeError, ValueError) as error:
            raise EncodeError(str(error), topic=outlet.name) from error
    payload, key = codec.choose_key(codec.complete(payload, now), key)
    value = None
    if payload is None or (not payload and isinstance(payload, Mapping)):
        payload = None
    else:
        payload, value = codec.encode_fitting(payload)
        if key is None:
            _, key = codec.choose_key(payload, None)  # the key field may have its value from the schema's default
    # What OutboundRecord(...) does, at a third of its cost.
    record = _new(
        OutboundRecord,
        (outlet.kafka_name, codec.encode_key_now(key), value, pairs, None, partition_bytes, milliseconds),
    )
    return Outgoing(outlet, producer, record, payload, key, partition_key)


def _without_reserved(pairs: list[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    return [pair for pair in pairs if not pair[0].startswith(RESERVED_HEADERS)]


def _with_trace(
    pairs: list[tuple[str, bytes | None]], trace: Sequence[tuple[str, bytes]]
) -> list[tuple[str, bytes | None]]:
    if trace:
        given = {name for name, _ in pairs}
        pairs += [pair for pair in trace if pair[0] not in given]
    return pairs


def _milliseconds(timestamp: datetime | None) -> int | None:
    if timestamp is None:
        return None
    if not isinstance(timestamp, datetime):
        raise TypeError(f"timestamp= takes an aware datetime, not {type(timestamp).__name__}")
    if timestamp.tzinfo is None:
        raise ValueError("timestamp= is naive; give an aware datetime, e.g. with tzinfo=UTC")
    return round(timestamp.timestamp() * 1000)


def _partition_key(partition_key: Any) -> bytes | None:
    if partition_key is None or isinstance(partition_key, bytes):
        return partition_key
    return str(partition_key).encode()


def by_topic(messages: Sequence[Outgoing]) -> dict[str, list[Outgoing]]:
    """Messages grouped by their topic's declared name, in order."""
    groups: dict[str, list[Outgoing]] = {}
    for message in messages:
        groups.setdefault(message.outlet.name, []).append(message)
    return groups


def log_produced(topic: str, messages: Sequence[Outgoing]) -> None:
    """One line for messages of one topic that the backend has taken."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("produced to %s: %s", topic, payload_view(messages, messages[0].outlet.payload_log))

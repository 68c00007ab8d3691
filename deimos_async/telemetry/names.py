"""Every metric of the framework: what it is called, counts and is tagged with. Callers use the constants.

Names and attributes follow OpenTelemetry's conventions for messaging where they have one
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/); the others begin with `deimos.`. What Deimos
counted under a name of its own is told under that name too (`Alias`), so that dashboards made for it go on working.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "SECONDS_BUCKETS", "Alias", "Metric", "consumer_tags", "messaging_tags"]

Kind = Literal["counter", "gauge", "histogram"]

CONSUMED = "messaging.client.consumed.messages"
SENT = "messaging.client.sent.messages"
OPERATION_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
HANDLED = "deimos.consumer.handled"
FAILED = "deimos.consumer.failed"
RETRIES = "deimos.consumer.retries"
WAITS = "deimos.consumer.waits"
SKIPPED = "deimos.consumer.skipped"
DEAD_LETTERED = "deimos.consumer.dead_lettered"
IN_FLIGHT = "deimos.consumer.in_flight"
LAG = "deimos.consumer.lag"
LAG_TIME = "deimos.consumer.lag_time"
COMMIT_AGE = "deimos.consumer.commit_age"
COMMIT_FAILURES = "deimos.consumer.commit_failures"
REBALANCES = "deimos.consumer.rebalances"
KEYED_STORED = "deimos.consumer.keyed_retries.stored"
KEYED_HANDLED = "deimos.consumer.keyed_retries.handled"
KEYED_GIVEN_UP = "deimos.consumer.keyed_retries.given_up"
KEYED_WAITING = "deimos.consumer.keyed_retries.waiting"
KEYED_KEYS = "deimos.consumer.keyed_retries.keys"
KEYED_HELD_UP = "deimos.consumer.keyed_retries.held_up"
DECODE_TIME = "deimos.consumer.decode_time"
ENCODE_TIME = "deimos.producer.encode_time"
DELIVERY_FAILURES = "deimos.producer.delivery_failures"
OUTBOX_INSERTED = "deimos.outbox.inserted"
OUTBOX_SENT = "deimos.outbox.sent"
OUTBOX_PENDING = "deimos.outbox.pending"
OUTBOX_MAX_WAIT = "deimos.outbox.max_wait"
OUTBOX_BLOCKED_KEYS = "deimos.outbox.blocked_keys"
OUTBOX_PARKED = "deimos.outbox.parked"
POLLER_ROWS = "deimos.poller.rows"
POLLER_FAILURES = "deimos.poller.failures"
POLLER_FAILED_ROWS = "deimos.poller.failed_rows"
POLLER_LAG = "deimos.poller.lag"
LOOP_LAG = "deimos.loop_lag"

# Bounds that the conventions recommend for durations in seconds, and two for slow handlers. The defaults of
# OpenTelemetry's SDK are meant for milliseconds and would put every duration into the first bucket.
SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that Deimos had for the same thing.

    Attributes:
        name: Deimos's name. Source: Deimos 2.6 (`publish`, `consumer.lags`) and 1.x (`handler`, `publish_error`).
        tags: Its tags, by ours; tags of ours that are not in it are left out.
        status: Its tag `status`. None: it has none. `"error"` replaces it where our `error.type` is given.
    """

    name: str
    tags: Mapping[str, str]
    status: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        unit: By UCUM, as OpenTelemetry wants it: `s`, or what is counted in braces.
        help: What it says, in one sentence.
        tags: Every tag that it may have; `error.type` is there only where something failed.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    tags: tuple[str, ...]
    alias: Alias | None = None


_CONSUMER = ("topic", "consumer_group", "consumer")
_PARTITION = ("topic", "partition", "consumer_group", "consumer")
_SENDING = ("messaging.system", "messaging.operation.name", "messaging.destination.name", "error.type")
_READING = (
    "messaging.system",
    "messaging.operation.name",
    "messaging.destination.name",
    "messaging.consumer.group.name",
)

_HANDLER = {"topic": "topic"}
_DESTINATION = {"messaging.destination.name": "topic"}

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            CONSUMED, "counter", "{message}", "Messages fetched and put before a consumer.", _READING,
            Alias("handler", _DESTINATION, "received"),
        ),
        Metric(
            PROCESS_DURATION, "histogram", "s",
            "Time of one handler call: of a batch, or the mean of the messages that one worker handled in a row, their "
            "decoding included. At most 100 observations a second of each consumer.",
            _READING,
        ),
        Metric(
            HANDLED, "counter", "{message}", "Messages whose handler has returned.", _CONSUMER,
            Alias("handler", _HANDLER, "success"),
        ),
        Metric(
            FAILED, "counter", "{call}",
            "Handler calls that raised, and messages that could not be decoded; not those that wait for their "
            "surroundings.",
            (*_CONSUMER, "error.type"), Alias("handler", _HANDLER, "error"),
        ),
        Metric(RETRIES, "counter", "{call}", "Attempts that are repeated in place.", _CONSUMER),
        Metric(WAITS, "counter", "{call}", "Attempts put off because broker, registry or database is away.", _CONSUMER),
        Metric(SKIPPED, "counter", "{message}", "Messages given up without a dead letter.", _CONSUMER),
        Metric(DEAD_LETTERED, "counter", "{message}", "Messages sent to the dead-letter topic.", _CONSUMER),
        Metric(IN_FLIGHT, "gauge", "{message}", "Messages fetched whose handling has not ended.", _CONSUMER),
        Metric(
            LAG, "gauge", "{message}", "Messages between what has been handled and the known end of the partition.",
            _PARTITION,
            Alias("consumer.lags", {"topic": "topic", "partition": "partition", "consumer_group": "consumer_group"}),
        ),
        Metric(
            LAG_TIME, "gauge", "s",
            "Age of the next message to be handled, to the accuracy of one fetch; 0 where nothing waits.", _PARTITION,
        ),
        Metric(
            COMMIT_AGE, "gauge", "s", "How long something that was handled has not been committed; grows when commits "
            "fail. The oldest partition's.", _CONSUMER,
        ),
        Metric(COMMIT_FAILURES, "counter", "{commit}", "Commits that could not be stored.", _CONSUMER),
        Metric(REBALANCES, "counter", "{rebalance}", "Assignments received from the group.", _CONSUMER),
        Metric(
            KEYED_STORED, "counter", "{message}", "Messages put into `kafka_retries`: that failed, or whose key waits.",
            _CONSUMER,
        ),
        Metric(KEYED_HANDLED, "counter", "{message}", "Messages that have waited and were handled.", _CONSUMER),
        Metric(KEYED_GIVEN_UP, "counter", "{message}", "Messages that have waited and became dead letters.", _CONSUMER),
        Metric(
            KEYED_WAITING, "gauge", "{message}", "Messages in `kafka_retries`, of the partitions of this process.",
            _CONSUMER,
        ),
        Metric(KEYED_KEYS, "gauge", "{key}", "Keys whose messages wait, of the partitions of this process.", _CONSUMER),
        Metric(
            KEYED_HELD_UP, "gauge", "{partition}",
            "Partitions that stand still, as a message must go into `kafka_retries` and there is no room.", _CONSUMER,
        ),
        Metric(
            DECODE_TIME, "histogram", "s",
            "Time to decode one message with its key, of the first one of a slice, or the mean of a batch. "
            "At most 100 observations a second of each consumer.",
            _CONSUMER,
        ),
        Metric(
            SENT, "counter", "{message}",
            "Messages acknowledged by the brokers, taken by the buffer (kafka_async), or failed (error.type).",
            _SENDING,
            Alias("publish", _DESTINATION, "success"),
        ),
        Metric(
            OPERATION_DURATION, "histogram", "s",
            "Time of one call to the brokers: send (until the acknowledgement) and commit. At most 100 observations a "
            "second of each topic.",
            (*_SENDING, "messaging.consumer.group.name"),
        ),
        Metric(
            ENCODE_TIME, "histogram", "s",
            "Time to coerce and encode one message with its key, the mean of a call. At most 100 observations a second "
            "of each topic.",
            ("topic",),
        ),
        Metric(
            DELIVERY_FAILURES, "counter", "{message}", "Messages that the brokers did not acknowledge.", ("topic",),
            Alias("publish_error", {"topic": "topic"}),
        ),
        Metric(
            OUTBOX_INSERTED, "counter", "{message}",
            "Messages stored in the outbox, by transactions that were committed.", ("topic",),
            Alias("outbox.insert", {"topic": "topic"}),
        ),
        Metric(
            OUTBOX_SENT, "counter", "{message}",
            "Messages of the outbox that were acknowledged, or left out for a later one of their key.", ("topic",),
            Alias("outbox.process", {"topic": "topic"}),
        ),
        Metric(
            OUTBOX_PENDING, "gauge", "{message}",
            "Messages that wait in the outbox. Counted now and then, by one of its pumps.", ("topic",),
            Alias("pending_db_messages_count", {"topic": "topic"}),
        ),
        Metric(
            OUTBOX_MAX_WAIT, "gauge", "s", "Age of the oldest message in the outbox, counted likewise.", ("topic",),
            Alias("pending_db_messages_max_wait", {"topic": "topic"}),
        ),
        Metric(
            OUTBOX_BLOCKED_KEYS, "gauge", "{key}",
            "Keys of one pump that wait because a message of theirs cannot be sent.", (),
        ),
        Metric(
            OUTBOX_PARKED, "counter", "{message}", "Messages of the outbox that cannot be sent and were put aside.",
            ("topic", "error.type"),
        ),
        Metric(POLLER_ROWS, "counter", "{row}", "Rows that every producer of the poller has sent.", ("poller",)),
        Metric(
            POLLER_FAILURES, "counter", "{row}", "Rows that a producer could not send.", ("poller", "error.type"),
        ),
        Metric(
            POLLER_FAILED_ROWS, "gauge", "{row}", "Rows that wait as they could not be sent, after each run.",
            ("poller",),
        ),
        Metric(
            POLLER_LAG, "gauge", "s",
            "By how much the last run stayed behind the present: `delay_time`, or the oldest open transaction.",
            ("poller",),
        ),
        Metric(LOOP_LAG, "gauge", "s", "How much later than asked the event loop came back, at its worst in 5 s.", ()),
    )
}  # fmt: skip
"""By name."""


def consumer_tags(*, topic: str, group: str, consumer: str) -> dict[str, str]:
    """Tags of the metrics `deimos.consumer.*`; topic and group with their prefix."""
    return {"topic": topic, "consumer_group": group, "consumer": consumer}


def messaging_tags(operation: str, topic: str, *, group: str | None = None, error: str | None = None) -> dict[str, str]:
    """Tags of the metrics `messaging.*`.

    Args:
        operation: `"send"`, `"poll"`, `"process"` or `"commit"`.
        topic: With its prefix.
        error: Name of the error's class where the operation failed.
    """
    tags = {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.destination.name": topic,
    }
    if group is not None:
        tags["messaging.consumer.group.name"] = group
    if error is not None:
        tags["error.type"] = error
    return tags

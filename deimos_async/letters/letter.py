"""A dead letter as a value: what its headers say, which filters admit it, and the message that goes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from deimos_async.consuming.dead_letters import (
    HEADER_PREFIX,
    MARKS,
    OFFSET_LIMIT,
    PARTITION_LIMIT,
    REPLAY_GROUP,
    REPLAY_TOPIC,
    REPLAYED_FROM,
    REPLAYS,
    RETRY_PREFIX,
    moment,
    number,
)
from deimos_async.message import InboundRecord, OutboundRecord, moment_of

__all__ = ["Letter", "LetterAddress", "LetterFilter", "back_to_origin", "read_letter"]

_COUNT_LIMIT = 2**31 - 1


class LetterAddress(NamedTuple):
    """Where a letter lies. As text `topic/partition/offset`: no topic of Kafka has a slash in its name."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterAddress:
        """From `topic/partition/offset`. Raises ValueError for everything else, numbers that Kafka has not included."""
        topic, *numbers = text.split("/")
        partition_text, offset_text = (part.encode() for part in numbers)
        partition, offset = number(partition_text, PARTITION_LIMIT), number(offset_text, OFFSET_LIMIT)
        if not topic or partition is None or offset is None:
            raise ValueError(text)
        return cls(topic, partition, offset)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. What a header does not say, as in letters that other programs wrote, is None.

    Attributes:
        address: Where it lies.
        record: Its bytes.
        topic, partition, offset: Where the message came from.
        group: The group that gave it up, by its name in Kafka.
        error_class: Full name of the class.
        failed_at: When it failed for the first time; else the record's own time; None where neither can be read. Aware
            UTC.
        replays: How often the message was replayed to that topic before it failed this time.
    """

    address: LetterAddress
    record: InboundRecord
    topic: str | None
    partition: int | None
    offset: int | None
    group: str | None
    attempts: int | None
    error_class: str | None
    error_message: str | None
    failed_at: datetime | None
    replays: int


def read_letter(record: InboundRecord) -> Letter:
    """The letter that a record of a dead-letter topic is. Headers that make no sense count as missing."""
    said = {name: value for name, value in record.headers if value is not None}

    def raw(name: str) -> bytes | None:
        return said.get(HEADER_PREFIX + name)

    def text(name: str) -> str | None:
        value = raw(name)
        return None if value is None else value.decode(errors="replace")

    topic = text("topic")
    # Of a replay to another topic, and not to the one where the message has failed now.
    is_elsewhere = topic is not None and said.get(REPLAY_TOPIC) != topic.encode()
    return Letter(
        address=LetterAddress(record.topic, record.partition, record.offset),
        record=record,
        topic=topic,
        partition=number(raw("partition"), PARTITION_LIMIT),
        offset=number(raw("offset"), OFFSET_LIMIT),
        group=text("group"),
        attempts=number(raw("attempts"), _COUNT_LIMIT),
        error_class=text("error-class"),
        error_message=text("error-message"),
        failed_at=moment(raw("first-failed-at")) or moment_of(record.timestamp),
        replays=0 if is_elsewhere else number(said.get(REPLAYS), _COUNT_LIMIT) or 0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters are meant: those that fit everything given.

    Attributes:
        groups: Names in Kafka; empty: every group.
        errors: Full names of classes, or their last parts; empty: every error.
        since, until: `failed_at` from here (included) to there (excluded). Letters without a time are never between.
        key: The key as text. Checked by whoever can decode it, see `LetterDesk`.
    """

    groups: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    key: str | None = None

    def admits(self, letter: Letter) -> bool:
        """Whether the letter fits, its key aside."""
        if self.groups and letter.group not in self.groups:
            return False
        if self.errors and not any(_is_named(letter.error_class or "", name) for name in self.errors):
            return False
        if self.since is None and self.until is None:
            return True
        moment = letter.failed_at
        return (
            moment is not None
            and (self.since is None or moment >= self.since)
            and (self.until is None or moment < self.until)
        )

    @property
    def is_empty(self) -> bool:
        """Whether every letter fits."""
        return self == LetterFilter()


def _is_named(full_name: str, name: str) -> bool:
    return full_name == name or full_name.endswith("." + name)


def back_to_origin(letter: Letter, *, topic: str, partition: int | None, group: str | None) -> OutboundRecord:
    """The message as it was, with the marks of a replay.

    Key, value and timestamp are the letter's, bytes unchanged; of the headers those of the dead letter and of retry
    topics are gone, and marks of earlier replays are replaced.

    Args:
        topic: Where it goes, by its name in Kafka.
        partition: None chooses one by the key.
        group: The only group that is to handle it, or None for all.
    """
    record = letter.record
    headers: Sequence[tuple[str, bytes | None]] = [
        (name, value)
        for name, value in record.headers
        if not name.startswith((HEADER_PREFIX, RETRY_PREFIX)) and name not in MARKS
    ]
    marks = [
        (REPLAYED_FROM, str(letter.address).encode()),
        (REPLAYS, b"%d" % (letter.replays + 1)),
        (REPLAY_TOPIC, topic.encode()),
    ]
    if group is not None:
        marks.append((REPLAY_GROUP, group.encode()))
    return OutboundRecord(
        topic,
        key=record.key,
        value=record.value,
        headers=[*headers, *marks],
        partition=partition,
        timestamp=record.timestamp if record.timestamp is not None and record.timestamp >= 0 else None,
    )

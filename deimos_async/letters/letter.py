"""A dead letter as a value: what its headers say, which filters admit it, and the message that goes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from deimos_async.consuming.dead_letters import HEADER_PREFIX, REPLAY_GROUP, REPLAYED_FROM, REPLAYS
from deimos_async.message import InboundRecord, OutboundRecord

__all__ = ["Letter", "LetterAddress", "LetterFilter", "back_to_origin", "read_letter"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MARKS = frozenset({REPLAYED_FROM, REPLAYS, REPLAY_GROUP})


class LetterAddress(NamedTuple):
    """Where a letter lies. As text `topic/partition/offset`: no topic of Kafka has a slash in its name."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterAddress:
        """From `topic/partition/offset`. Raises ValueError for everything else."""
        topic, partition, offset = text.split("/")
        if not (topic and partition.isdecimal() and offset.isdecimal()):
            raise ValueError(text)
        return cls(topic, int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. What a header does not say, as in letters that other programs wrote, is None.

    Attributes:
        address: Where it lies.
        record: Its bytes.
        topic, partition, offset: Where the message came from.
        group: The group that gave it up, by its name in Kafka.
        error_class: Full name of the class.
        failed_at: When it failed for the first time; else the record's own time. Aware UTC.
        replays: How often the message was replayed before it failed this time.
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

    def text(name: str) -> str | None:
        value = said.get(HEADER_PREFIX + name)
        return None if value is None else value.decode(errors="replace")

    def number(value: str | None) -> int | None:
        # int() would take signs, blanks and underscores, and digits without end.
        return int(value) if value is not None and value.isdecimal() and len(value) < 20 else None

    return Letter(
        address=LetterAddress(record.topic, record.partition, record.offset),
        record=record,
        topic=text("topic"),
        partition=number(text("partition")),
        offset=number(text("offset")),
        group=text("group"),
        attempts=number(text("attempts")),
        error_class=text("error-class"),
        error_message=text("error-message"),
        failed_at=_moment(text("first-failed-at")) or _time_of(record),
        replays=number(said.get(REPLAYS, b"").decode(errors="replace")) or 0,
    )


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return None if moment.tzinfo is None else moment.astimezone(UTC)


def _time_of(record: InboundRecord) -> datetime | None:
    if record.timestamp is None or record.timestamp < 0:
        return None
    return _EPOCH + timedelta(milliseconds=record.timestamp)


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

    Key, value and timestamp are the letter's, bytes unchanged; of the headers those of the dead letter are gone, and
    marks of earlier replays are replaced.

    Args:
        topic: Where it goes, by its name in Kafka.
        partition: None chooses one by the key.
        group: The only group that is to handle it, or None for all.
    """
    record = letter.record
    headers: Sequence[tuple[str, bytes | None]] = [
        (name, value) for name, value in record.headers if not name.startswith(HEADER_PREFIX) and name not in _MARKS
    ]
    marks = [(REPLAYED_FROM, str(letter.address).encode()), (REPLAYS, b"%d" % (letter.replays + 1))]
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

"""Headers that messages bring along: believed where they are ours to write, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deimos_async.consuming.dead_letters import (
    HEADER_PREFIX,
    MARKS,
    RETRY_PREFIX,
    bare,
    build,
    defer,
    due,
    for_other_groups,
    moment,
    number,
)
from deimos_async.message import RESERVED_HEADERS, OutboundRecord

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NO_NUMBERS = [b"", b"x", b"-1", b"+1", b"1_0", b" 1", "\u0663".encode(), "²".encode(), b"9" * 20, b"9" * 5000, None]


class Record:
    def __init__(self, headers: Sequence[tuple[str, bytes | None]] = (), *, topic: str = "orders") -> None:
        self.topic = topic
        self.partition = 1
        self.offset = 41
        self.timestamp: int | None = 1_700_000_000_000
        self.key: bytes | None = b"k"
        self.value: bytes | None = b"v"
        self.headers = headers


def letter(record: Record, error: Exception | None = None, **options: Any) -> OutboundRecord:
    return build(record, error or ValueError("bad"), topic="orders-dlt", group="g", attempts=3, now=NOW, **options)


def retried(**said: bytes | None) -> Record:
    """A record of a retry topic that says this of where it came from."""
    usual: dict[str, bytes | None] = {"topic": b"orders", "partition": b"2", "offset": b"7", "attempts": b"3"}
    headers = [(RETRY_PREFIX + name.replace("_", "-"), value) for name, value in (usual | said).items()]
    return Record(headers, topic="orders-retry-1")


def about(sent: OutboundRecord) -> dict[str, bytes | None]:
    return {name.removeprefix(HEADER_PREFIX): value for name, value in sent.headers if name.startswith(HEADER_PREFIX)}


def test_record_of_a_retry_topic_says_where_it_came_from() -> None:
    said = about(letter(retried(timestamp=b"5", first_failed_at=b"2026-04-01T00:00:00+02:00"), is_retry=True))
    assert (said["topic"], said["partition"], said["offset"], said["timestamp"]) == (b"orders", b"2", b"7", b"5")
    assert (said["attempts"], said["first-failed-at"]) == (b"6", b"2026-03-31T22:00:00.000+00:00")


def test_record_of_an_ordinary_topic_is_not_believed_where_it_came_from() -> None:
    said = about(letter(retried(topic=b"payments")))
    assert (said["topic"], said["partition"], said["offset"]) == (b"orders-retry-1", b"1", b"41")
    assert said["attempts"] == b"3"


@pytest.mark.parametrize("is_retry", [False, True])
@pytest.mark.parametrize("as_spring", [False, True])
@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", ["partition", "offset", "timestamp", "attempts", "first_failed_at"])
def test_header_that_makes_no_sense_counts_as_missing(
    name: str, value: bytes | None, as_spring: bool, is_retry: bool
) -> None:
    sent = letter(retried(**{name: value}), is_retry=is_retry, as_spring=as_spring)
    said = about(sent)
    whole = is_retry and name not in ("partition", "offset")
    assert (said["topic"], said["offset"]) == ((b"orders", b"7") if whole else (b"orders-retry-1", b"41"))
    assert said["attempts"] == (b"6" if is_retry and name != "attempts" else b"3")
    assert said["timestamp"] == (b"-1" if whole else b"1700000000000")
    assert said["first-failed-at"] == b"2026-05-01T12:00:00.000+00:00"
    assert ("kafka_dlt-original-offset" in dict(sent.headers)) is as_spring


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", b"%d" % 2**31),
        ("offset", b"%d" % (2**63 - 1)),
        ("topic", b""),
        ("topic", None),
        ("topic", b"a b"),
        ("topic", b"orders\n"),
        ("topic", b"o" * 250),
        ("topic", b"\xff"),
    ],
)
def test_place_that_no_message_can_have_is_not_said(name: str, value: bytes | None) -> None:
    said = about(letter(retried(**{name: value}), is_retry=True, as_spring=True))
    assert (said["topic"], said["partition"], said["offset"]) == (b"orders-retry-1", b"1", b"41")


def test_headers_of_our_names_that_a_message_brings_along_are_kept_as_theirs() -> None:
    planted = [("a", b"1"), ("deimos-dlq-topic", b"payments"), ("deimos-retry-topic", b"payments"), ("a", None)]
    sent = letter(Record(planted))
    assert sent.headers[:4] == [
        ("a", b"1"),
        ("theirs-dlq-topic", b"payments"),
        ("theirs-retry-topic", b"payments"),
        ("a", None),
    ]
    assert about(sent)["topic"] == b"orders"
    assert len([name for name, _ in sent.headers if name == "deimos-dlq-topic"]) == 1


@pytest.mark.parametrize("is_retry", [False, True])
def test_letter_without_headers_of_ours_is_not_larger_than_the_record_and_says_nothing(is_retry: bool) -> None:
    record = Record([("deimos-dlq-topic", b"payments"), ("deimos-retry-topic", b"payments"), ("a", b"1")])
    small = bare(record, letter(record, is_retry=is_retry), is_retry=is_retry)

    def size(headers: Sequence[tuple[str, bytes | None]]) -> int:
        return sum(len(name) + len(value or b"") for name, value in headers)

    assert size(small.headers) <= size(record.headers)
    assert not any(name.startswith(RESERVED_HEADERS) for name, _ in small.headers)
    assert ("theirs-dlq-topic", b"payments") in small.headers
    assert (small.key, small.value, small.partition) == (b"k", b"v", 1)


def test_message_is_put_off_twice_and_still_says_where_it_came_from() -> None:
    record = Record([("deimos-retry-group", b"planted"), ("a", b"1")])
    options: dict[str, Any] = {"group": "g", "attempts": 1, "now": NOW, "delay": 5.0}
    first = defer(record, ValueError("bad"), topic="orders-retry-1", **options)
    assert first.headers[:2] == [("theirs-retry-group", b"planted"), ("a", b"1")]
    again = Record(first.headers, topic="orders-retry-1")
    assert due(again) == NOW.timestamp() + 5
    second = defer(again, ValueError("bad"), topic="orders-retry-2", is_retry=True, **options)
    said = dict(second.headers)
    assert (said["deimos-retry-topic"], said["deimos-retry-offset"]) == (b"orders", b"41")
    assert (said["deimos-retry-attempts"], said["deimos-retry-group"]) == (b"2", b"g")
    assert len(said) == len(second.headers)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_retry_without_a_time_that_can_be_is_due(value: bytes | None) -> None:
    assert due(Record([("deimos-retry-due", value)])) == 0


@pytest.mark.parametrize("text", ["\ud800", "\x1b[2J\n", "x" * 10**6])
def test_error_of_any_text_makes_a_letter(text: str) -> None:
    said = about(letter(Record(), ValueError(text), as_spring=True))["error-message"]
    assert said is not None
    assert said.decode().isprintable()
    assert len(said) <= 1000


def other(*headers: tuple[str, bytes | None], topic: str = "orders", is_retry: bool = False) -> bool:
    return for_other_groups([Record(headers, topic=topic)], b"g", is_retry=is_retry) == {41}


def test_group_of_a_retry_counts_on_retry_topics_only() -> None:
    assert other(("deimos-retry-group", b"h"), is_retry=True)
    assert not other(("deimos-retry-group", b"g"), is_retry=True)
    assert not other(("deimos-retry-group", b"h"))


def test_group_of_a_replay_counts_on_the_topic_that_is_named_only() -> None:
    mark, here = ("deimos-replay-group", b"h"), ("deimos-replay-topic", b"orders")
    assert other(mark, here)
    assert not other(("deimos-replay-group", b"g"), here)
    assert not other(("deimos-replay-group", None), here)
    assert not other(mark)
    assert not other(mark, here, topic="invoices")
    assert not other(mark, here, topic="orders-retry-1", is_retry=True)
    assert not other(here)
    assert not other()


def test_every_header_that_steers_is_reserved() -> None:
    names = [HEADER_PREFIX + "topic", RETRY_PREFIX + "group", *MARKS]
    assert all(name.startswith(RESERVED_HEADERS) for name in names)


@pytest.mark.parametrize("value", [*NO_NUMBERS, b"11"])
def test_number_is_decimal_digits_up_to_a_limit(value: bytes | None) -> None:
    assert number(value, 10) is None
    assert (number(b"010", 10), number(b"0", 10)) == (10, 0)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"yesterday", b"2026-05-01T12:00", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"\xff"],
)
def test_time_that_is_none_in_utc_is_no_time(value: bytes | None) -> None:
    assert moment(value) is None
    assert moment(b"2026-05-01T12:00:00-01:00") == NOW + timedelta(hours=1)

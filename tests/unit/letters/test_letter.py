"""Letters by their headers, filters, and the message that goes back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from deimos_async.consuming.dead_letters import build
from deimos_async.letters.letter import Letter, LetterAddress, LetterFilter, back_to_origin, read_letter
from deimos_async.letters.summary import LetterSummary, NewestLetters

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Record:
    def __init__(
        self, headers: Sequence[tuple[str, bytes | None]] = (), *, topic: str = "orders-dlt", offset: int = 7
    ) -> None:
        self.topic = topic
        self.partition = 1
        self.offset = offset
        self.timestamp: int | None = 1_700_000_000_000
        self.key: bytes | None = b"\x00k"
        self.value: bytes | None = b"\xffv"
        self.headers = headers


def buried(headers: Sequence[tuple[str, bytes | None]] = (), *, group: str = "g", at: datetime = NOON) -> Letter:
    """The letter of a message that failed, as a consumer writes it and a reader finds it."""
    failed = Record(headers, topic="orders", offset=41)
    sent = build(failed, ValueError("bad"), topic="orders-dlt", group=group, attempts=3, now=at)
    return read_letter(Record(sent.headers))


def test_letter_says_what_was_written_about_it() -> None:
    letter = buried()
    assert (letter.topic, letter.partition, letter.offset, letter.group) == ("orders", 1, 41, "g")
    assert (letter.attempts, letter.error_class, letter.error_message) == (3, "builtins.ValueError", "bad")
    assert (letter.failed_at, letter.replays, str(letter.address)) == (NOON, 0, "orders-dlt/1/7")


@pytest.mark.parametrize("text", [b"\xff\xfe", b"-1", b"1_0", b" 1", b"9" * 30, b""])
def test_header_that_makes_no_sense_counts_as_missing(text: bytes) -> None:
    letter = read_letter(
        Record([("deimos-dlq-offset", text), ("deimos-dlq-first-failed-at", text), ("deimos-replays", text)])
    )
    assert (letter.offset, letter.replays) == (None, 0)
    assert letter.failed_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_letter_without_any_time_has_none() -> None:
    record = Record()
    record.timestamp = -1
    letter = read_letter(record)
    assert letter.failed_at is None
    assert not LetterFilter(since=NOON).admits(letter)
    assert LetterFilter().admits(letter)


@pytest.mark.parametrize(
    ("failed_at", "timestamp"),
    [
        (b"0001-01-01T00:00:00+14:00", 2**62),
        (b"9999-12-31T23:59:59-14:00", -1),
        (b"\xff", 253_402_300_800_000),
    ],
)
def test_letter_with_times_that_no_clock_shows_is_a_letter_without(failed_at: bytes, timestamp: int) -> None:
    record = Record([("deimos-dlq-first-failed-at", failed_at)])
    record.timestamp = timestamp
    letter = read_letter(record)
    assert letter.failed_at is None
    last, summary = NewestLetters(1), LetterSummary()
    last.add(letter)
    summary.add(letter, replayed=False)
    assert (last.letters(), summary.oldest) == ([letter], None)
    back = back_to_origin(letter, topic="orders", partition=1, group=None)
    assert back.timestamp == (timestamp if timestamp > 0 else None)


@pytest.mark.parametrize(
    "text",
    [
        "a/1",
        "a/1/2/3",
        "/1/2",
        "a/-1/2",
        "a/1/x",
        "a//2",
        "",
        "a/0/\u0663",
        "a/0/²",
        f"a/0/{2**63 - 1}",
        f"a/{2**31}/0",
        "a/0/" + "9" * 5000,
    ],
)
def test_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^"):
        LetterAddress.parse(text)
    assert LetterAddress.parse("a.b-c/1/20") == LetterAddress("a.b-c", 1, 20)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (LetterFilter(), True),
        (LetterFilter(groups=("g",)), True),
        (LetterFilter(groups=("h", "g")), True),
        (LetterFilter(groups=("h",)), False),
        (LetterFilter(errors=("ValueError",)), True),
        (LetterFilter(errors=("builtins.ValueError",)), True),
        (LetterFilter(errors=("Error",)), False),
        (LetterFilter(errors=("KeyError", "ValueError")), True),
        (LetterFilter(since=NOON), True),
        (LetterFilter(since=NOON + timedelta(seconds=1)), False),
        (LetterFilter(until=NOON), False),
        (LetterFilter(until=NOON + timedelta(seconds=1)), True),
        (LetterFilter(groups=("g",), errors=("KeyError",)), False),
    ],
)
def test_filter_admits_what_fits_everything_given(wanted: LetterFilter, fits: bool) -> None:
    assert wanted.admits(buried()) is fits


def test_message_goes_back_as_it_was_with_marks() -> None:
    headers = [
        ("a", b"1"),
        ("a", None),
        ("deimos-replayed-from", b"orders-dlt/0/1"),
        ("deimos-replays", b"2"),
        ("deimos-replay-topic", b"orders"),
    ]
    letter = buried([*headers, ("deimos-replay-group", b"other")])
    back = back_to_origin(letter, topic="orders", partition=1, group="g")
    assert (back.topic, back.partition, back.key, back.value) == ("orders", 1, b"\x00k", b"\xffv")
    assert back.timestamp == 1_700_000_000_000
    assert list(back.headers) == [
        ("a", b"1"),
        ("a", None),
        ("deimos-replayed-from", b"orders-dlt/1/7"),
        ("deimos-replays", b"3"),
        ("deimos-replay-topic", b"orders"),
        ("deimos-replay-group", b"g"),
    ]
    for_all = back_to_origin(letter, topic="orders", partition=None, group=None)
    assert "deimos-replay-group" not in dict(for_all.headers)


def test_replays_to_another_topic_do_not_count() -> None:
    marks = [("deimos-replays", b"4"), ("deimos-replay-topic", b"orders")]
    assert buried(marks).replays == 4
    assert buried(marks[:1]).replays == 0
    assert buried([marks[0], ("deimos-replay-topic", b"invoices")]).replays == 0
    assert read_letter(Record(marks)).replays == 4  # without room for its topic


def test_message_that_goes_back_has_lost_what_was_said_on_retry_topics() -> None:
    letter = read_letter(Record([("deimos-retry-group", b"g"), ("a", b"1")]))
    back = back_to_origin(letter, topic="orders", partition=1, group=None)
    assert [name for name, _ in back.headers if name == "a" or "retry" in name] == ["a"]


def test_summary_adds_up_by_error_and_group() -> None:
    summary = LetterSummary()
    for number, group in enumerate(["g", "h", "g"]):
        summary.add(buried(group=group, at=NOON + timedelta(hours=number)), replayed=number == 1)
    summary.add(read_letter(Record()), replayed=False)
    assert (summary.count, summary.replayed) == (4, 1)
    assert summary.by_error == {"builtins.ValueError": 3, None: 1}
    assert summary.by_group == {"g": 2, "h": 1, None: 1}
    assert summary.newest == NOON + timedelta(hours=2)


@pytest.mark.parametrize(("limit", "hours"), [(0, []), (2, [9, 8]), (50, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0])])
def test_letters_that_failed_last_are_kept(limit: int, hours: list[int]) -> None:
    last = NewestLetters(limit)
    for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7):
        last.add(buried(at=NOON + timedelta(hours=number)))
    assert [letter.failed_at for letter in last.letters()] == [NOON + timedelta(hours=number) for number in hours]

"""Positions as text, windows of closed ticks, and what was sent already."""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from deimos_async.database.polling.protocol import Bounds, Position
from deimos_async.polling import cursor

NOW = datetime(2026, 5, 4, 12, 30, 45, 678901, tzinfo=UTC)


class Color(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "key",
    [
        (1,),
        (-(2**63), 2**63),
        ("é'\"\n", ""),
        (b"\x00\xff", 1.1),
        (uuid.UUID(int=5), True),
        (Decimal("1.50"), date(2026, 1, 2), time(3, 4, 5, 6)),
        (NOW.replace(tzinfo=None), NOW),
    ],
)
def test_key_comes_back_with_its_types(key: tuple[Any, ...]) -> None:
    found = cursor.read_key(cursor.write_key(key))
    assert found == key
    assert list(map(type, found)) == list(map(type, key))


def test_key_of_a_subclass_is_kept_as_what_it_derives_from() -> None:
    assert cursor.read_key(cursor.write_key([Color.RED])) == ("red",)


def test_key_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError, match="a primary key of type object cannot be kept as a cursor"):
        cursor.write_key([object()])


def test_time_without_a_zone_is_in_utc_and_keeps_all_digits() -> None:
    assert cursor.moment("2026-05-04 12:30:45.678901") == NOW
    assert cursor.moment("2026-05-04 14:30:45.678901+02:00") == NOW
    assert cursor.moment("2026-05-04 12:30:45") == NOW.replace(microsecond=0)


@pytest.mark.parametrize(("digits", "microsecond"), [(6, 678901), (3, 678000), (1, 600000), (0, 0)])
def test_end_of_a_window_is_cut_to_the_digits_of_the_column(digits: int, microsecond: int) -> None:
    bounds = Bounds(NOW, None, is_certain=True)
    assert cursor.next_end(bounds, delay=2, digits=digits) == NOW.replace(second=43, microsecond=microsecond)


def test_window_stays_behind_the_oldest_transaction() -> None:
    oldest = NOW - timedelta(minutes=10)
    assert cursor.next_end(Bounds(NOW, oldest, True), delay=2, digits=6) == oldest - timedelta(seconds=2)
    later = NOW + timedelta(seconds=5)
    assert cursor.next_end(Bounds(NOW, later, True), delay=2, digits=6) == NOW - timedelta(seconds=2)


def test_rewound_position_is_before_all_rows_of_its_moment() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=5)))
    assert cursor.rewound(local, 1.5) == Position("2026-05-04 12:30:44.178901", None)


def test_cursor_in_the_future_is_seen() -> None:
    assert cursor.behind(None, NOW)
    assert cursor.behind(Position("2026-05-04 12:30:46", "x"), NOW)
    assert not cursor.behind(Position("2026-05-04 12:30:47", "x"), NOW)


def test_row_was_sent_if_it_was_with_the_same_time() -> None:
    sent = cursor.Sent()
    sent.add("a", "2026-05-04 12:30:40")
    sent.add("b", "2026-05-04 12:30:44")
    assert sent.has("a", "2026-05-04 12:30:40")
    assert not sent.has("a", "2026-05-04 12:30:41")
    sent.forget_before(NOW - timedelta(seconds=3))
    assert not sent.has("a", "2026-05-04 12:30:40")
    assert sent.has("b", "2026-05-04 12:30:44")
    assert len(sent) == 1

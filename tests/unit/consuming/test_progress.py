"""Stalled or not, since when, and how old the next message is."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async.consuming.progress import Arrivals, Progress, is_stalled

STALLED = {"assigned": 1, "in_flight": 1, "unfetched": 0, "parked": 0, "quiet": 120.0, "timeout": 120.0}


@pytest.mark.parametrize(
    ("change", "stalled"),
    [
        ({}, True),
        ({"in_flight": 0, "unfetched": 1}, True),
        ({"in_flight": 0}, False),  # nothing to do
        ({"assigned": 0}, False),  # everything is with other members
        ({"parked": 1}, False),  # a timer goes on with it
        ({"quiet": 119.9}, False),
    ],
)
def test_stalled_is_having_something_to_do_and_no_progress(change: dict[str, Any], stalled: bool) -> None:
    assert is_stalled(**(STALLED | change)) is stalled


def test_quiet_lasts_since_the_numbers_were_first_seen() -> None:
    progress = Progress(100.0)
    assert progress.quiet((1, 0), 110.0) == 0
    assert progress.quiet((1, 0), 115.0) == 115 - 110
    assert progress.quiet((1, 1), 120.0) == 0
    assert progress.quiet((1, 1), 190.0) == 190 - 120
    assert progress.quiet((1, 0), 191.0) == 0


NOW = 1_000.0


def age(arrivals: Arrivals, position: int | None, in_flight: int, lag: int) -> float:
    return arrivals.lag_time(position=position, in_flight=in_flight, lag=lag, now=NOW)


def test_next_message_is_as_old_as_the_fetch_in_which_it_came() -> None:
    arrivals = Arrivals()
    arrivals.add(0, 900_000, 910_000)
    arrivals.add(10, 950_000, 960_000)
    assert age(arrivals, None, 20, 20) == 1_000 - 900
    assert age(arrivals, 9, 11, 11) == 1_000 - 900
    assert age(arrivals, 10, 10, 10) == 1_000 - 950
    assert age(arrivals, 15, 5, 5) == 1_000 - 950


def test_messages_known_to_wait_are_as_old_as_the_last_handled_one() -> None:
    arrivals = Arrivals()
    arrivals.add(0, 900_000, 910_000)
    assert age(arrivals, 10, 0, 3) == 1_000 - 910


def test_nothing_waits_for_zero_seconds() -> None:
    arrivals = Arrivals()
    assert age(arrivals, None, 0, 3) == 0  # nothing was ever fetched
    arrivals.add(0, 900_000, 910_000)
    assert age(arrivals, 10, 0, 0) == 0


@pytest.mark.parametrize("missing", [None, -1])
def test_records_without_timestamp_have_no_age(missing: int | None) -> None:
    arrivals = Arrivals()
    arrivals.add(0, missing, missing)
    assert age(arrivals, None, 5, 5) == 0
    assert age(arrivals, 5, 0, 5) == 0


def test_clock_of_a_producer_that_goes_ahead_gives_no_negative_age() -> None:
    arrivals = Arrivals()
    arrivals.add(0, 1_100_000, 1_100_000)
    assert age(arrivals, None, 1, 1) == 0

"""Stalled or not, since when, and how old the next message is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from deimos_async.consuming.progress import Arrivals, Progress, Stalls, Standing
from deimos_async.message import TopicPartition

P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
AT_WORK = Standing(position=5, in_hand=2, unfetched=0, waits=False, busy=False)


def stalled(first: Standing, then: Standing, *, has_free_worker: bool = True) -> bool:
    """Whether a partition that stood like this, and stands like that 120 seconds later, counts as stalled."""
    stalls = Stalls()
    stalls.look({P0: first}, has_free_worker=has_free_worker, now=100.0)
    stalls.look({P0: then}, has_free_worker=has_free_worker, now=219.0)
    assert not stalls.longer_than(120.0, 219.0)
    stalls.look({P0: then}, has_free_worker=has_free_worker, now=220.0)
    return stalls.longer_than(120.0, 220.0) == {P0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"in_hand": 0, "unfetched": 1}, True),
        ({"position": None}, True),
        ({"in_hand": 0}, False),  # nothing to do
        ({"waits": True}, False),  # a timer goes on with it
        ({"busy": True}, False),  # a handler may take its time
    ],
)
def test_stalled_is_having_something_to_do_and_no_progress(change: dict[str, Any], expected: bool) -> None:
    standing = dataclasses.replace(AT_WORK, **change)
    assert stalled(standing, standing) is expected


@pytest.mark.parametrize("change", [{"position": 6}, {"in_hand": 3}, {"waits": True}, {"busy": True}])
def test_partition_that_got_on_in_between_is_not_stalled(change: dict[str, Any]) -> None:
    assert not stalled(AT_WORK, dataclasses.replace(AT_WORK, **change))


def test_messages_that_are_only_produced_are_no_progress() -> None:
    waiting = dataclasses.replace(AT_WORK, in_hand=0, unfetched=1)
    assert stalled(waiting, dataclasses.replace(waiting, unfetched=1_000))


def test_what_is_in_hand_may_wait_for_a_worker_and_what_is_not_fetched_may_not() -> None:
    assert not stalled(AT_WORK, AT_WORK, has_free_worker=False)
    unfetched = dataclasses.replace(AT_WORK, in_hand=0, unfetched=10**6)
    assert stalled(unfetched, unfetched, has_free_worker=False)


@pytest.mark.parametrize("change", [{"waits": True}, {"busy": True}, {"in_hand": 0}])
def test_partition_that_waits_works_or_is_idle_does_not_hide_another_that_is_stuck(change: dict[str, Any]) -> None:
    stalls = Stalls()
    standings = {P0: dataclasses.replace(AT_WORK, **change), P1: AT_WORK}
    for now in (0.0, 86_400.0):
        stalls.look(standings, has_free_worker=True, now=now)
    assert stalls.longer_than(120.0, 86_400.0) == {P1}


def test_partition_that_comes_again_begins_anew() -> None:
    stalls = Stalls()
    for now, standings in ((0.0, {P0: AT_WORK}), (100.0, {}), (110.0, {P0: AT_WORK})):
        stalls.look(standings, has_free_worker=True, now=now)
    assert not stalls.longer_than(120.0, 200.0)


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

"""Which shards are read, and from where: nothing that became visible late is passed over for long."""

from __future__ import annotations

from deimos_async.outbox.intake import Intake, Reading


def opened(*shards: int) -> Intake:
    intake = Intake()
    intake.open(shards)
    return intake


def begin(intake: Intake, *without: int) -> Reading:
    reading = intake.next(without)
    assert reading is not None
    return reading


def test_new_shards_are_read_at_once_from_the_start() -> None:
    intake = opened(1, 2)
    assert begin(intake).floors == {1: 0, 2: 0}
    assert intake.next(()) is None


def test_shards_that_must_not_be_read_stay_for_later() -> None:
    intake = opened(1, 2, 3)
    assert begin(intake, 2).floors.keys() == {1, 3}
    assert intake.next({2}) is None
    assert begin(intake).floors.keys() == {2}


def test_floor_counts_only_after_a_moment() -> None:
    intake = opened(1)
    intake.done(begin(intake), {1: 50}, ())
    intake.look_at([1])
    assert begin(intake).floors == {1: 0}
    intake.let_pass()
    intake.let_pass()
    intake.look_at([1])
    assert begin(intake).floors == {1: 50}


def test_in_a_backlog_reading_goes_on_right_above_the_floor_with_half_of_the_shards() -> None:
    intake = opened(1, 2, 3, 4)
    intake.done(begin(intake), {1: 50, 2: 60}, {2, 3, 4})
    first = begin(intake)
    assert first.floors == {2: 60, 3: 0}
    second = begin(intake)
    assert second.floors == {4: 0}
    intake.done(first, {2: 70}, {2})
    intake.done(second, {}, ())
    assert begin(intake).floors == {2: 70}


def test_reading_from_the_start_is_asked_for_once() -> None:
    intake = opened(1, 2)
    intake.done(begin(intake), {1: 50, 2: 50}, ())
    intake.let_pass()
    intake.let_pass()
    intake.look_at_all(from_start=True)
    whole = begin(intake)
    assert (whole.floors, whole.is_whole) == ({1: 0, 2: 0}, True)
    intake.done(whole, {}, ())
    intake.look_at_all(from_start=False)
    assert begin(intake).floors == {1: 50, 2: 50}
    intake.look_at([2], from_start=True)
    assert not begin(intake).is_whole


def test_reading_that_failed_is_made_again() -> None:
    intake = opened(1, 2)
    intake.done(begin(intake), {1: 50, 2: 50}, ())
    intake.let_pass()
    intake.let_pass()
    intake.look_at([1], from_start=True)
    intake.look_at([2])
    failed = begin(intake)
    assert failed.floors == {1: 0, 2: 50}
    intake.failed(failed)
    assert begin(intake).floors == failed.floors


def test_shards_that_were_closed_are_not_read() -> None:
    intake = opened(1, 2)
    reading = begin(intake)
    intake.close([1])
    intake.done(reading, {1: 5, 2: 6}, {1, 2})
    assert begin(intake).floors == {2: 6}
    intake.look_at([1], from_start=True)
    assert intake.next(()) is None
    assert list(intake.shards) == [2]

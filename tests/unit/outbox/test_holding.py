"""What failed waits, longer each time, until it works."""

from __future__ import annotations

from deimos_async.outbox.holding import Backoff, Holding


def test_delay_doubles_up_to_its_maximum() -> None:
    backoff = Backoff(0.5, 30.0)
    assert [backoff.delay(failures) for failures in (1, 2, 3, 6, 7, 100)] == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0]


def test_what_failed_waits_until_it_is_due_and_longer_after_the_next_failure() -> None:
    holding: Holding[str] = Holding(Backoff(1.0, 60.0))
    holding.fail("a", "why", 10.0)
    assert holding.waiting() == ["a"]
    assert holding.next_due() == 11.0
    assert holding.release(10.9) == []
    assert holding.release(11.0) == ["a"]
    assert holding.waiting() == []
    assert holding.next_due() is None
    assert holding.release(12.0) == []
    assert holding.fail("a", "again", 12.0).due == 14.0
    assert holding.failing()["a"].reason == "again"


def test_what_works_again_begins_anew() -> None:
    holding: Holding[str] = Holding(Backoff(1.0, 60.0))
    holding.fail("a", "why", 0.0)
    assert holding.succeed("a")
    assert not holding.succeed("a")
    assert len(holding) == 0
    assert holding.fail("a", "why", 5.0).due == 6.0


def test_what_is_forgotten_waits_no_more() -> None:
    holding: Holding[int] = Holding(Backoff(1.0, 60.0))
    holding.fail(1, "why", 0.0)
    holding.fail(2, "why", 0.0)
    holding.forget(1, 3)
    assert holding.waiting() == [2]

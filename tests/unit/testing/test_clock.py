"""The time that a test may move on."""

from __future__ import annotations

import asyncio
import time

import pytest

from deimos_async.testing.clock import MovableClock


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


async def test_timers_that_are_due_ring_at_once_the_earliest_first(clock: MovableClock) -> None:
    rung: list[str] = []
    clock.call_later(200, lambda: rung.append("late"))
    clock.call_later(100, lambda: rung.append("early"))
    clock.call_later(10_000, lambda: rung.append("never"))
    clock.advance(50)
    assert rung == []
    clock.advance(151)
    assert rung == ["early", "late"]
    clock.advance(1000)
    assert rung == ["early", "late"]


async def test_the_next_timer_can_be_gone_to_whenever_it_is(clock: MovableClock) -> None:
    before = clock.time()
    rung: list[float] = []
    clock.call_later(3600, lambda: rung.append(clock.time()))
    clock.call_later(7200, lambda: rung.append(clock.time()))
    assert clock.advance_to_next()
    assert [moment >= before + 3600 for moment in rung] == [True]
    assert clock.advance_to_next()
    assert [moment >= before + 7200 for moment in rung] == [False, True]
    assert not clock.advance_to_next()


async def test_timer_rings_by_itself_when_real_time_has_come(clock: MovableClock) -> None:
    rung = asyncio.Event()
    clock.call_later(1000, rung.set)
    clock.advance(999.9)
    async with asyncio.timeout(20):
        await rung.wait()
    assert not clock.timers


async def test_timer_rings_once_and_not_after_it_was_cancelled(clock: MovableClock) -> None:
    rung: list[str] = []
    cancelled = clock.call_later(10, lambda: rung.append("cancelled"))
    cancelled.cancel()
    clock.call_later(10, lambda: rung.append("once"))
    clock.advance(20)
    clock.advance(20)
    cancelled.cancel()
    assert rung == ["once"]


async def test_timer_that_is_set_by_another_one_rings_at_its_own_time(clock: MovableClock) -> None:
    rung: list[str] = []

    def again() -> None:
        rung.append("first")
        clock.call_later(10, lambda: rung.append("second"))

    clock.call_later(10, again)
    clock.advance(1000)
    assert rung == ["first"]
    clock.advance(10)
    assert rung == ["first", "second"]


async def test_forgotten_timers_do_not_ring(clock: MovableClock) -> None:
    rung: list[str] = []
    clock.call_later(10, lambda: rung.append("forgotten"))
    clock.clear()
    clock.advance(20)
    assert rung == []
    assert not clock.advance_to_next()


def test_it_is_the_time_of_the_system_and_what_it_was_moved(clock: MovableClock) -> None:
    before = time.time()
    clock.advance(86_400)
    assert before + 86_400 <= clock.time() <= time.time() + 86_400

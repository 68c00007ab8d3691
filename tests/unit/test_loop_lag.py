"""How late the event loop is, and who is told."""

from __future__ import annotations

import asyncio
import logging

import pytest

from deimos_async.loop_lag import LoopLag
from deimos_async.telemetry import names
from deimos_async.telemetry.mock import Mock

DEADLINE = 20.0


def test_gauge_is_the_worst_of_five_seconds() -> None:
    mock = Mock()
    lag = LoopLag(mock, warn_above=0)
    for late, now in [(0.1, 0.0), (0.7, 1.0), (0.2, 4.0), (0.3, 5.0), (0.0, 10.0)]:
        lag.observe(late, now)
    assert [(call.name, call.value) for call in mock.gauges] == [(names.LOOP_LAG, value) for value in (0.1, 0.7, 0.0)]


def test_warning_comes_at_most_every_half_minute_and_then_tells_the_worst(caplog: pytest.LogCaptureFixture) -> None:
    lag = LoopLag(Mock(), warn_above=1.0)
    with caplog.at_level(logging.WARNING, "deimos_async.loop"):
        for late, now in [(1.0, 0.0), (1.5, 1.0), (4.0, 10.0), (2.0, 20.0), (0.0, 31.0), (0.0, 62.0)]:
            lag.observe(late, now)
    said = [record.getMessage() for record in caplog.records if record.name == "deimos_async.loop"]
    assert ["1.50 s late" in said[0], "4.00 s late" in said[1]] == [True, True]
    assert len(said) == 2
    assert "consumers.loop_lag_warning" in said[0]


def test_warning_can_be_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    lag = LoopLag(Mock(), warn_above=0)
    with caplog.at_level(logging.WARNING, "deimos_async.loop"):
        lag.observe(100.0, 0.0)
    assert not [record for record in caplog.records if record.name == "deimos_async.loop"]


async def test_service_measures_by_its_clock_until_it_is_stopped() -> None:
    told = asyncio.Event()

    class Telling(Mock):
        def gauge(self, name: str, value: float, **more: object) -> None:
            super().gauge(name, value)
            told.set()

    mock = Telling()
    readings = iter([100.0, 103.5])
    lag = LoopLag(mock, warn_above=0, clock=lambda: next(readings, 103.5))
    started = asyncio.Event()
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        tasks.create_task(lag.run(started))
        await started.wait()
        await told.wait()
        lag.request_stop()
        lag.request_stop()
    assert mock.gauges[0].value == pytest.approx(3.5 - 0.5)


async def test_stop_before_run_is_not_lost() -> None:
    lag = LoopLag(Mock(), warn_above=0)
    lag.request_stop()
    async with asyncio.timeout(DEADLINE):
        await lag.run(asyncio.Event())

"""Alive, ready, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async.consuming.runner import RunnerStatus
from deimos_async.health import Health, judge
from deimos_async.message import TopicPartition


def status(**change: Any) -> RunnerStatus:
    given: dict[str, Any] = {
        "name": "bill",
        "group": "billing",
        "topic": "orders",
        "assigned": frozenset({TopicPartition("orders", 0)}),
        "in_flight": 2,
        "lag": 7,
        "failed": False,
    }
    return RunnerStatus(**(given | change))


def health(state: Any = "running", **change: Any) -> Health:
    given: dict[str, Any] = {"ready": True, "supervised": True, "failures": {}, "consumers": [status()]}
    return judge(state, **(given | change))


def test_running_application_is_alive_and_ready() -> None:
    found = health()
    assert (found.alive, found.ready, found.problems) == (True, True, ())
    assert found.consumers[0].lag == 7


@pytest.mark.parametrize("state", ["starting", "stopping"])
def test_start_and_stop_are_alive_and_not_ready(state: str) -> None:
    found = health(state, supervised=False, consumers=[status(stalled=True, last_progress=200.0)])
    assert (found.alive, found.ready) == (True, False)


@pytest.mark.parametrize(
    ("state", "change", "problem"),
    [
        ("stopped", {}, "the application does not run"),
        ("running", {"supervised": False}, "the supervisor has ended"),
        (
            "running",
            {"consumers": [status(stalled=True, stalled_partitions=frozenset({TopicPartition("orders", 0)}))]},
            "consumer bill orders is stalled: no progress in orders[0], with 2 messages in flight and a lag of 7",
        ),
        (
            "running",
            {"failures": {"consumer bill orders": KeyError("secret")}},
            "consumer bill orders has failed: KeyError",
        ),
        (
            "starting",
            {"failures": {"consumer bill orders": KeyError("secret")}},
            "consumer bill orders has failed: KeyError",
        ),
    ],
)
def test_problem_is_told_and_is_not_alive(state: str, change: dict[str, Any], problem: str) -> None:
    found = health(state, **change)
    assert not found.alive
    assert found.problems == (problem,)


def test_many_stalled_partitions_are_not_all_named() -> None:
    stuck = frozenset(TopicPartition("orders", number) for number in range(7))
    (problem,) = health(consumers=[status(stalled=True, stalled_partitions=stuck)]).problems
    assert "orders[0], orders[1], orders[2], orders[3], orders[4] and 2 more, with 2 messages" in problem


def test_failure_is_told_by_classes_and_never_by_its_text() -> None:
    error = RuntimeError("card 4111")
    error.__cause__ = ValueError("card 4111")
    found = health(failures={"consumer bill orders": error}, ready=False)
    assert found.problems == ("consumer bill orders has failed: RuntimeError caused by ValueError",)
    assert not found.ready


def test_stopped_application_that_failed_tells_what_failed() -> None:
    found = health("stopped", failures={"x": KeyError()}, consumers=())
    assert found.problems == ("x has failed: KeyError",)

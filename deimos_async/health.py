"""Whether an application is alive and ready, as one frozen value, for probes and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deimos_async.consuming.runner import RunnerStatus

if TYPE_CHECKING:  # start-up time: loaded where the outbox is sent
    from deimos_async.outbox.pump import PumpStatus
    from deimos_async.polling.scheduler import PollerStatus

__all__ = ["Health", "judge"]

_SHOWN = 5
"""Partitions named in a problem."""

State = Literal["starting", "running", "stopping", "stopped"]


@dataclass(frozen=True, slots=True)
class Health:
    """What an application says about itself.

    Attributes:
        state: Where it is in its life. `"stopped"` also before the first start.
        alive: Every consumer makes progress, has a handler at work, or has nothing to do, and nothing has failed.
            False: a restart may help.
        ready: It runs, its schemas are prepared, its consumers have joined, the outbox's pump has taken part in the
            leases, and nothing has failed.
        problems: Why it is not alive, a sentence each, without payloads and texts of errors.
        consumers: What each consumer is doing.
        outbox: What the outbox's pump is doing; None: it does not run here.
        pollers: What each poller is doing, if they run here.
    """

    state: State
    alive: bool
    ready: bool
    problems: tuple[str, ...] = ()
    consumers: tuple[RunnerStatus, ...] = field(default=())
    outbox: PumpStatus | None = None
    pollers: tuple[PollerStatus, ...] = ()


def judge(
    state: State,
    *,
    ready: bool,
    supervised: bool,
    failures: Mapping[str, BaseException],
    consumers: Sequence[RunnerStatus],
    outbox: PumpStatus | None = None,
    pollers: Sequence[PollerStatus] = (),
) -> Health:
    """Decide.

    Args:
        state: While it starts or stops it is alive, as both have their deadlines, unless something has failed.
        supervised: Whether the supervisor's task lives.
        failures: What broke, by the service's name.
    """
    problems = [*_failed(failures)]
    if state == "running":
        problems += _stalled(consumers)
    if state == "stopped" and not failures:
        problems.append("the application does not run")
    if state == "running" and not supervised:
        problems.append("the supervisor has ended")
    is_ready = ready and state == "running"
    return Health(state, not problems, is_ready, tuple(problems), tuple(consumers), outbox, tuple(pollers))


def _failed(failures: Mapping[str, BaseException]) -> Iterable[str]:
    for name, error in failures.items():
        # Classes only: the text of an error that user code raised may hold what is in a message.
        cause = f" caused by {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
        yield f"{name} has failed: {type(error).__name__}{cause}"


def _stalled(consumers: Iterable[RunnerStatus]) -> Iterable[str]:
    for status in consumers:
        if status.stalled:
            partitions = sorted(f"{id.topic}[{id.partition}]" for id in status.stalled_partitions)
            shown, more = ", ".join(partitions[:_SHOWN]), len(partitions) - _SHOWN
            yield (
                f"consumer {status.name} {status.topic} is stalled: no progress in {shown}"
                f"{f' and {more} more' if more > 0 else ''}, with {status.in_flight} messages in flight and a lag of "
                f"{status.lag}"
            )

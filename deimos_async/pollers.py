"""Pollers of an application, from its plan and settings."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deimos_async.assembly import Plan
from deimos_async.database.polling.store import SqlPollStore
from deimos_async.errors import ConfigurationError
from deimos_async.events import EventBus
from deimos_async.polling.backfill import Backfill
from deimos_async.polling.runs import Polling, RunOptions
from deimos_async.polling.scheduler import PollerClock, Pollers
from deimos_async.telemetry.protocol import Metrics

if TYPE_CHECKING:  # start-up time: SQLAlchemy and pydantic are loaded where they are used
    from sqlalchemy.ext.asyncio import AsyncEngine

    from deimos_async.settings import Settings

__all__ = ["build_backfill", "build_pollers"]


def build_pollers(
    engine: AsyncEngine,
    *,
    plan: Plan,
    settings: Settings,
    metrics: Metrics,
    events: EventBus,
    clock: PollerClock,
    ahead: Callable[[], float],
) -> Pollers:
    """The pollers of this process, not started: one worker among all that work on this database.

    Args:
        clock: What they are due by.
        ahead: Seconds by which it is ahead of the database's, in tests.

    Raises:
        ConfigurationError: The engine's driver is not known, or its sessions share one connection.
    """
    pollers = settings.pollers
    return Pollers(
        plan.pollers,
        engine,
        SqlPollStore(engine, worker=uuid.uuid4().hex, ttl=pollers.lease_ttl),
        options=_options(settings),
        lease_ttl=pollers.lease_ttl,
        metrics=metrics,
        events=events,
        clock=clock,
        ahead=ahead,
        backend=_backend(settings),
        monotonic=time.monotonic,
    )


def build_backfill(
    engine: AsyncEngine,
    name: str,
    *,
    plan: Plan,
    settings: Settings,
    metrics: Metrics,
    events: EventBus,
    chunk_rows: int,
    report: Callable[[int, int], None],
) -> Backfill:
    """This process's part in the backfill of a poller, not started.

    Args:
        chunk_rows: Rows of a chunk.
        report: Told how many chunks are done, and how many there are.

    Raises:
        ConfigurationError: There is no poller of that name, or it polls by state; or as for `build_pollers`.
    """
    planned = next((each for each in plan.pollers if each.name == name), None)
    if planned is None:
        known = ", ".join(repr(each.name) for each in plan.pollers) or "none"
        raise ConfigurationError(f"there is no poller {name!r}; the pollers are: {known}")
    if planned.spec.mode != "time":
        raise ConfigurationError(f"poller {name!r} polls by state: set the state of the rows that are to be sent again")
    ttl = settings.pollers.lease_ttl
    store = SqlPollStore(engine, worker=uuid.uuid4().hex, ttl=ttl)
    polling = Polling(
        planned, engine, store, _options(settings), metrics, events, lambda: 0.0, asyncio.sleep, _backend(settings)
    )
    return Backfill(polling, engine, store, chunk_rows=chunk_rows, ttl=ttl, report=report, monotonic=time.monotonic)


def _options(settings: Settings) -> RunOptions:
    pollers = settings.pollers
    return RunOptions(batch_rows=pollers.batch_rows, overlap=pollers.overlap, max_failures=pollers.max_failed_rows)


def _backend(settings: Settings) -> Callable[[Any], str | None]:
    def backend(producer: Any) -> str | None:
        # What is buffered may fail after the cursor has moved on.
        used = producer._backend or settings.producers.backend
        return "kafka" if used == "kafka_async" else None

    return backend

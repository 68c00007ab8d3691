"""Pollers of an application, from its plan and settings."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deimos_async.assembly import Plan
from deimos_async.database.polling.store import SqlPollStore
from deimos_async.events import EventBus
from deimos_async.polling.runs import RunOptions
from deimos_async.polling.scheduler import PollerClock, Pollers
from deimos_async.telemetry.protocol import Metrics

if TYPE_CHECKING:  # start-up time: SQLAlchemy and pydantic are loaded where they are used
    from sqlalchemy.ext.asyncio import AsyncEngine

    from deimos_async.settings import Settings

__all__ = ["build_pollers"]


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

    def backend(producer: Any) -> str | None:
        # What is buffered may fail after the cursor has moved on.
        used = producer._backend or settings.producers.backend
        return "kafka" if used == "kafka_async" else None

    return Pollers(
        plan.pollers,
        engine,
        SqlPollStore(engine, worker=uuid.uuid4().hex, ttl=pollers.lease_ttl),
        options=RunOptions(
            batch_rows=pollers.batch_rows, overlap=pollers.overlap, max_failures=pollers.max_failed_rows
        ),
        lease_ttl=pollers.lease_ttl,
        metrics=metrics,
        events=events,
        clock=clock,
        ahead=ahead,
        backend=backend,
        monotonic=time.monotonic,
    )

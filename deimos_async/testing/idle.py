"""Runs the consumers of an application that lives in memory until nothing is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from deimos_async.assembly import PlannedConsumer
from deimos_async.brokers.memory import MemoryBroker
from deimos_async.errors import HandlerError
from deimos_async.running import Running
from deimos_async.service import Supervisor

__all__ = ["run_consumers_until_idle"]

_STOP_TIMEOUT = 5.0
"""Seconds that handlers have to end after another consumer has failed."""


class _Consumers:
    """The consumers of one call, and when to look whether they are done."""

    def __init__(self, running: Running, brokers: Sequence[MemoryBroker], flush: Callable[[], Awaitable[None]]) -> None:
        assert running.plan is not None
        self._brokers = brokers
        self._flush = flush
        self._supervisor = Supervisor(on_failure=lambda name, error: self._changed.set())
        self._runners = [running.runner(_for_a_test(consumer)) for consumer in running.plan.consumers]
        self._changed = asyncio.Event()
        for runner in self._runners:
            runner.on_change = self._changed.set

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Started within the block; what still runs at its end is cancelled."""
        await self._supervisor.open()
        try:
            await self._supervisor.start(self._runners)
            yield
        finally:
            await self._supervisor.close()

    async def watch(self, broker: MemoryBroker) -> None:
        """For ever: whenever the broker changes, look again."""
        while True:
            await broker.changed()
            self._changed.set()

    async def until_idle(self) -> None:
        """Until everything was handled and committed, or a consumer has failed."""
        while not self._supervisor.failures:
            self._changed.clear()
            await self._flush()
            for runner in self._runners:
                await runner.commit()
            if self._is_idle():
                return
            await self._changed.wait()

    def _is_idle(self) -> bool:
        return not any(runner.status().in_flight for runner in self._runners) and not self._lag()

    def _lag(self) -> dict[str, int]:
        """Messages that are not committed yet, by consumer group; groups without any left out."""
        lags: dict[str, int] = {}
        for group in {runner.status().group for runner in self._runners}:
            lag = sum(sum(broker.lag(group).values()) for broker in self._brokers)
            if lag:
                lags[group] = lag
        return lags

    async def stop(self) -> None:
        """Let running handlers end, commit, and raise what broke, if anything did."""
        await self._supervisor.stop(*self._runners, timeout=_STOP_TIMEOUT)
        failures = list(self._supervisor.failures.values())
        if not failures:
            return
        error = failures[0]
        if isinstance(error, HandlerError) and error.__cause__ is not None:
            error.__cause__.add_note(str(error))
            error = error.__cause__
        for other in failures[1:]:
            error.add_note(f"another consumer failed too: {other}")
        raise error

    def what_is_left(self) -> str:
        """For the error of a time-out."""
        parts = [f"group {group!r} has {lag} messages to go" for group, lag in sorted(self._lag().items())]
        parts += [
            f"consumer {status.name!r} holds {status.in_flight} of topic {status.topic!r}"
            for status in (runner.status() for runner in self._runners)
            if status.in_flight
        ]
        return "; ".join(parts) or "messages are produced on and on"


def _for_a_test(consumer: PlannedConsumer) -> PlannedConsumer:
    """Groups count as having joined when the test began, and incomplete batches wait for nobody."""
    spec = consumer.spec
    start_from = "earliest" if spec.start_from == "latest" else spec.start_from
    return replace(consumer, spec=replace(spec, start_from=start_from, max_wait=0.0))


async def run_consumers_until_idle(running: Running, *, flush: Callable[[], Awaitable[None]], timeout: float) -> None:
    """Start every consumer, wait until all is handled and committed, also what they produce meanwhile, and stop them.

    Args:
        running: A run whose brokers are in memory and whose consumers do not run.
        flush: Sends what is buffered.
        timeout: Seconds.

    Raises:
        TimeoutError: Something is left to do; says what. Handlers were cancelled, their messages are not committed.
        Exception: What a handler raised, where it stops its consumer; what was handled is committed.
    """
    brokers = [broker for broker in running.brokers.values() if isinstance(broker, MemoryBroker)]
    consumers = _Consumers(running, brokers, flush)
    left = ""
    deadline = asyncio.timeout(timeout)
    try:
        async with consumers.started():
            async with deadline:
                watches = [asyncio.create_task(consumers.watch(broker), name="test watch") for broker in brokers]
                try:
                    await consumers.until_idle()
                except asyncio.CancelledError:
                    left = consumers.what_is_left()
                    raise
                finally:
                    for watch in watches:
                        watch.cancel()
                    await asyncio.gather(*watches, return_exceptions=True)
            await consumers.stop()
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise TimeoutError(f"not idle after {timeout:g} s: {left}") from error

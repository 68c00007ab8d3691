"""Runs consumers, outbox and pollers of an application under test until nothing is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from deimos_async.assembly import PlannedConsumer
from deimos_async.brokers.memory import MemoryBroker
from deimos_async.errors import HandlerError
from deimos_async.running import Running
from deimos_async.service import Service, Supervisor
from deimos_async.testing.clock import MovableClock

__all__ = ["run_consumers_until_idle"]

_STOP_TIMEOUT = 5.0
"""Seconds that handlers have to end after another consumer has failed."""
_LOOK_INTERVAL = 0.1
"""Seconds after which a real cluster, which does not tell of its changes, is looked at again."""


class _Consumers:
    """What runs in one call, and when to look whether they are done."""

    def __init__(
        self,
        running: Running,
        clock: MovableClock | None,
        flush: Callable[[], Awaitable[None]],
        prefix: str,
        time_ahead: Callable[[], float],
    ) -> None:
        assert running.plan is not None
        self._clock = clock
        self._flush = flush
        self._prefix = prefix
        self._tells_changes = all(isinstance(broker, MemoryBroker) for broker in running.brokers.values())
        self._supervisor = Supervisor(on_failure=lambda name, error: self._changed.set())
        self._runners = [
            running.runner(_for_a_test(consumer), stage)
            for consumer in running.plan.consumers
            for stage in range(len(consumer.retry_topics) + 1)
        ]
        self._changed = asyncio.Event()
        for runner in self._runners:
            runner.on_change = self._changed.set
        self._pump = running.build_pump() if running.uses_outbox else None
        if self._pump is not None:
            self._pump.on_change = self._changed.set
        self._pollers = running.build_pollers(time_ahead) if running.plan.pollers else None
        if self._pollers is not None:
            self._pollers.on_change = self._changed.set

    @property
    def _services(self) -> list[Service]:
        others: list[Service | None] = [self._pollers, self._pump]
        return [*self._runners, *(service for service in others if service is not None)]

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Started within the block; what still runs at its end is cancelled."""
        await self._supervisor.open()
        try:
            await self._supervisor.start(self._services)
            yield
        finally:
            await self._supervisor.close()

    async def watch(self, broker: MemoryBroker) -> None:
        """For ever: whenever the broker changes, look again."""
        while True:
            await broker.changed()
            self._changed.set()

    async def until_idle(self) -> None:
        """Until everything was handled and committed (or, without a clock, waits), or a consumer has failed."""
        while not self._supervisor.failures:
            self._changed.clear()
            await self._flush()
            for runner in self._runners:
                await runner.commit()
            standings = set(await asyncio.gather(*(runner.standing() for runner in self._runners)))
            if self._pollers is not None:
                standings.add(await self._pollers.standing())
            if self._pump is not None and not await self._pump.is_idle():
                standings.add("busy")
            # What has changed meanwhile may have been looked at too early.
            if "busy" not in standings and not self._changed.is_set():
                if "waiting" not in standings or self._clock is None:
                    return
                if self._clock.advance_to_next():
                    continue
            await self._wait()

    async def _wait(self) -> None:
        """Until something may have changed."""
        try:
            tells = self._tells_changes and self._pump is None and self._pollers is None
            async with asyncio.timeout(None if tells else _LOOK_INTERVAL):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def stop(self) -> None:
        """Let running handlers end, commit, and raise what broke, if anything did."""
        await self._supervisor.stop(*self._services, timeout=_STOP_TIMEOUT)
        failures = list(self._supervisor.failures.values())
        if not failures:
            return
        error = failures[0]
        if isinstance(error, HandlerError) and error.__cause__ is not None:
            error.__cause__.add_note(self._shown(str(error)))
            error = error.__cause__
        for other in failures[1:]:
            error.add_note(self._shown(f"another consumer failed too: {other}"))
        raise error

    def what_is_left(self) -> str:
        """For the error of a time-out."""
        statuses = [runner.status() for runner in self._runners]
        lags: dict[str, int] = {}
        for status in statuses:
            lags[status.group] = lags.get(status.group, 0) + status.lag
        parts = [f"group {group!r} has {lag} messages to go" for group, lag in sorted(lags.items()) if lag]
        parts += [
            f"consumer {status.name!r} holds {status.in_flight} of topic {status.topic!r}"
            for status in statuses
            if status.in_flight
        ]
        parts += [
            f"{status.waiting} messages of consumer {status.name!r} wait in kafka_retries"
            for status in statuses
            if status.waiting
        ]
        if self._pollers is not None:
            parts += [
                f"poller {each.name!r}: {each.problem or 'it runs'}"
                for each in self._pollers.status()
                if each.is_running or each.problem is not None
            ]
        if self._pump is not None and (failing := self._pump.status().failing_topics):
            parts += [f"the outbox cannot send to {topic!r}: {reason}" for topic, reason in failing.items()]
        return self._shown("; ".join(parts)) or "messages are produced on and on"

    def _shown(self, text: str) -> str:
        return text.replace(self._prefix, "") if self._prefix else text


def _for_a_test(consumer: PlannedConsumer) -> PlannedConsumer:
    """Groups count as having joined when the test began, and incomplete batches wait for nobody."""
    spec = consumer.spec
    start_from = "earliest" if spec.start_from == "latest" else spec.start_from
    return replace(consumer, spec=replace(spec, start_from=start_from, max_wait=0.0))


async def run_consumers_until_idle(
    running: Running,
    clock: MovableClock | None,
    *,
    flush: Callable[[], Awaitable[None]],
    timeout: float,
    prefix: str,
    time_ahead: Callable[[], float],
) -> None:
    """Start every consumer, wait until all is handled and committed, also what they produce meanwhile, and stop them.

    Args:
        running: A run whose consumers do not run.
        clock: That of the run; moved on whenever everything that is left waits for it. None: that is idle, too.
        flush: Sends what is buffered.
        timeout: Seconds.
        prefix: Left out of errors.
        time_ahead: Seconds by which the run's clock is ahead of the system's.

    Raises:
        TimeoutError: Something is left to do; says what. Handlers were cancelled, their messages are not committed.
        Exception: What a handler raised, where it stops its consumer; what was handled is committed.
    """
    brokers = [broker for broker in running.brokers.values() if isinstance(broker, MemoryBroker)]
    consumers = _Consumers(running, clock, flush, prefix, time_ahead)
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

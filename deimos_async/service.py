"""What runs for long, and the supervisor that owns every task of an application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["Service", "Supervisor"]

logger = logging.getLogger("deimos_async.service")


class Service(Protocol):
    """One job that runs until it is stopped."""

    name: str

    async def run(self, started: asyncio.Event) -> None:
        """Sets `started` when it works. Returns when stopped; raises when broken."""

    def request_stop(self) -> None:
        """Soft, any number of times, before or after `run`."""


class Supervisor:
    """Runs services, each in a named task of one TaskGroup. A service that breaks does not take the others with it.

    Attributes:
        failures: What broke, by the service's name.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self.failures: dict[str, BaseException] = {}
        self._on_failure = on_failure
        self._running: dict[asyncio.Task[None], Service] = {}
        self._main: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._release = asyncio.Event()
        self._failed = asyncio.Event()

    async def open(self) -> None:
        """Be ready to take services."""
        opened = asyncio.Event()
        # The one bare task of an application; every other one is in its TaskGroup and ends before it.
        self._main = asyncio.create_task(self._hold(opened), name="deimos supervisor")
        await opened.wait()

    async def _hold(self, opened: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            opened.set()
            await self._release.wait()

    async def start(self, services: Iterable[Service]) -> None:
        """Run services side by side and wait until each has started.

        Raises: what the first of them raised before it had started; the others go on until they are stopped.
        """
        assert self._group is not None, "open() first"
        starting: list[tuple[Service, asyncio.Task[None], asyncio.Event]] = []
        for service in services:
            started = asyncio.Event()
            task = self._group.create_task(self._watch(service, started), name=service.name)
            self._running[task] = service
            task.add_done_callback(lambda ended: self._running.pop(ended, None))
            starting.append((service, task, started))
        for service, _, started in starting:
            await started.wait()  # set by the service, or by _watch when it ended without
            if service.name in self.failures:
                raise self.failures[service.name]

    async def _watch(self, service: Service, started: asyncio.Event) -> None:
        try:
            await service.run(started)
        except Exception as error:
            # The policy: it is recorded and told; the application decides whether to end.
            self.failures[service.name] = error
            self._failed.set()
            if started.is_set():
                logger.error("%s ended: %s: %s", service.name, type(error).__name__, error)
                if self._on_failure is not None:
                    self._on_failure(service.name, error)
        finally:
            started.set()

    @property
    def is_alive(self) -> bool:
        """Whether it can run services: opened, and its own task has not ended."""
        return self._main is not None and not self._main.done()

    async def wait_failed(self) -> None:
        """Until a service has broken."""
        await self._failed.wait()

    async def stop(self, *services: Service, timeout: float) -> None:
        """Stop these services softly and wait; what has not ended `timeout` seconds later is cancelled."""
        wanted = set(map(id, services))
        tasks = [task for task, service in self._running.items() if id(service) in wanted]
        for service in services:
            service.request_stop()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                logger.warning("%s did not stop within %.1f s and is cancelled", task.get_name(), timeout)
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def close(self) -> None:
        """Cancel what still runs and wait until no task is left. Any number of times."""
        if self._main is None:
            return
        for task in list(self._running):
            task.cancel()
        self._release.set()
        await asyncio.wait([self._main])
        main, self._main = self._main, None
        if not main.cancelled() and (error := main.exception()) is not None:
            raise error

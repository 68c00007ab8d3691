"""Runs pollers when they are due, as one worker among all that work on the database.

Who may run a poller is decided by a lease in its row, taken for one run and given up at its end, so that whoever has
least to do takes the next one. The database decides who has it; the local clock may only end our belief sooner. A lease
has an epoch that grows with each owner, and the cursor is saved under it: whoever has lost it cannot move the cursor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.polling.protocol import PollRow, PollStore
from deimos_async.errors import DatabaseError
from deimos_async.events import EventBus
from deimos_async.models.producer import ModelProducer
from deimos_async.plain_text import described
from deimos_async.polling.poller import PlannedPoller
from deimos_async.polling.runs import Lease, LeaseLost, Polling, RunOptions
from deimos_async.polling.sending import is_of_the_surroundings, spoken
from deimos_async.telemetry.protocol import Metrics

__all__ = ["PollerClock", "PollerStatus", "Pollers"]

logger = logging.getLogger("deimos_async.polling")

_LOOK_INTERVAL = 5.0
"""Most seconds between two looks at the table."""
_SHORT_LOOK = 0.5
"""Seconds until the next look while another worker has a poller that is due."""
_TURN = 0.05
"""Seconds for each poller that runs here, before another one is taken: who has less to do comes first."""
_MARGIN = 1.0
"""Seconds by which a lease ends earlier for us than for the database."""
_REJOIN = (0.1, 5.0)
"""Seconds before the first attempt to connect again, and at most."""
_REST = (1.0, 60.0)
"""Seconds before a poller whose run has failed is tried again, and at most."""

Standing = Literal["busy", "waiting", "done"]


class _Stopped(Exception):
    """The application stops; what was acknowledged and saved counts."""


class _Timer(Protocol):
    def cancel(self) -> None: ...


class PollerClock(Protocol):
    """Tells the time and wakes at one."""

    def time(self) -> float:
        """Seconds since the epoch."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Timer:
        """Call back once, `delay` seconds from now, in the running event loop."""


@dataclass(frozen=True, slots=True)
class PollerStatus:
    """What one poller has done and does in this process.

    Attributes:
        is_running: Whether it runs here at this moment.
        runs: Runs that ended here.
        rows: Rows that were sent here.
        failed_rows: Rows that wait as they could not be sent, as of the last run here.
        problem: Class of the error that it waits out, or by which its last run here has ended; None: none.
    """

    name: str
    is_running: bool
    runs: int
    rows: int
    failed_rows: int
    problem: str | None


class _Held:
    """A lease that this worker believes to have."""

    def __init__(self, epoch: int, until: float) -> None:
        self.epoch = epoch
        self.until = until
        self.is_lost = False


class Pollers:
    """A service: the pollers of an application.

    Args:
        options: How they read.
        lease_ttl: Seconds that a lease lasts; three renewals are sent within it.
        clock: What they are due by.
        ahead: Seconds by which that is ahead of the database's time, in tests.
        backend: Name of the backend of a producer, where it is not its usual one.
        monotonic: A clock that goes on while the process is stopped.
    """

    name = "pollers"

    def __init__(
        self,
        pollers: Sequence[PlannedPoller],
        engine: AsyncEngine,
        store: PollStore,
        *,
        options: RunOptions,
        lease_ttl: float,
        metrics: Metrics,
        events: EventBus,
        clock: PollerClock,
        ahead: Callable[[], float],
        backend: Callable[[ModelProducer[object]], str | None],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._ttl = lease_ttl
        self._clock = clock
        self._ahead = ahead
        self._monotonic = monotonic
        self._pollings: Mapping[str, Polling] = {
            planned.name: Polling(
                planned,
                engine,
                store,
                options,
                metrics,
                events,
                ahead,
                self._pause,
                backend,
            )
            for planned in pollers
        }
        self._held: dict[str, _Held] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._paused = 0
        self._rests: dict[str, tuple[float, float]] = {}
        """Until when a poller rests that has failed, and for how long it does."""
        self._problems: dict[str, str] = {}
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_settled = False
        self._timer: _Timer | None = None
        self.on_change: Callable[[], object] = lambda: None
        """Called when `standing` may have changed."""

    # --- the service -------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Let the pages that are on their way end, then give up the leases."""
        self._stop.set()
        self._wake.set()

    async def run(self, started: asyncio.Event) -> None:
        """Until stopped. Raises ConfigurationError where tables are missing; whatever else happens is waited out.

        Cancelled: pages on their way are sent again later, by whoever takes the leases when they have expired.
        """
        try:
            async with asyncio.TaskGroup() as group:
                renewal = group.create_task(self._renew(), name="pollers renewal")
                try:
                    await self._attend(group, started)
                    if self._running:
                        await asyncio.wait(list(self._running.values()))
                finally:
                    renewal.cancel()
            await self._release_all()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._store.close()

    async def _attend(self, group: asyncio.TaskGroup, started: asyncio.Event) -> None:
        delay = _REJOIN[0]
        is_open = False
        while not self._stop.is_set():
            try:
                if not is_open:
                    await self._open()
                    is_open = True
                    delay = _REJOIN[0]
                started.set()
                self._wake.clear()
                seconds = await self._look(group)
            except DatabaseError as error:
                # The database may have come to know less than it did; whatever it is, the pollers cannot go on without.
                if delay == _REJOIN[0]:
                    logger.warning("pollers wait for the database: %s", error)
                started.set()
                is_open = False
                seconds, delay = delay, min(delay * 2, _REJOIN[1])
            self.on_change()
            await self._sleep(seconds)

    async def _open(self) -> None:
        await self._store.open()
        for polling in self._pollings.values():
            await polling.add()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    # --- who runs what -----------------------------------------------------------------------------------------

    async def _look(self, group: asyncio.TaskGroup) -> float:
        """Start what is due and nobody has, one at a time. Returns seconds until the next look at the latest."""
        rows = {row.name: row for row in await self._store.look(self._ahead())}
        now = self._clock.time()
        next_due: float | None = None
        is_elsewhere = False
        for name, polling in self._pollings.items():
            if name in self._running:
                continue
            row = rows.get(name)
            if row is None:
                await polling.add()
                return 0.0
            due_in = self._due_in(polling, row, now)
            if due_in > 0:
                next_due = due_in if next_due is None else min(next_due, due_in)
                continue
            held = self._held.get(name)
            if held is None or held.epoch != row.epoch or not row.is_leased:
                self._held.pop(name, None)
                held = await self._acquire(row)
            if held is None:
                is_elsewhere = True
                continue
            self._is_settled = False
            polling.position = row.position
            task = group.create_task(self._execute(polling, row, held), name=f"poller {name}")
            self._running[name] = task
            return _TURN * len(self._running)
        self._is_settled = not is_elsewhere
        self._set_timer(next_due)
        return _SHORT_LOOK if is_elsewhere else _LOOK_INTERVAL

    def _due_in(self, polling: Polling, row: PollRow, now: float) -> float:
        rested = 0.0 if row.rested is None else polling.planned.spec.run_every - row.rested
        until, _ = self._rests.get(row.name, (now, 0.0))
        return max(rested, until - now, 0.0)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.call_later(seconds, self._wake.set)

    async def _acquire(self, row: PollRow) -> _Held | None:
        if row.is_leased:
            return None
        begun = self._monotonic()
        epoch = await self._store.acquire(row.name, row.epoch)
        if epoch is None:
            return None
        held = self._held[row.name] = _Held(epoch, begun + self._ttl - _MARGIN)
        return held

    def _check(self, held: _Held) -> None:
        if self._stop.is_set():
            raise _Stopped
        if held.is_lost or self._monotonic() >= held.until:
            held.is_lost = True
            raise LeaseLost

    async def _execute(self, polling: Polling, row: PollRow, held: _Held) -> None:
        name = polling.name
        keeps = False
        try:
            counts = await polling.run(Lease(held.epoch, lambda: self._check(held)), row.position)
            # What was sent is known here alone, and without seeing open transactions it must be known next time.
            keeps = not counts.is_certain
            if not await self._store.finish(name, held.epoch, self._ahead(), release=not keeps):
                raise LeaseLost
            self._rests.pop(name, None)
            self._problems.pop(name, None)
        except _Stopped:
            pass
        except LeaseLost:
            logger.warning("poller %s was taken by another worker, or the database could not be reached", name)
            keeps = True  # not ours to be released
            held.is_lost = True
        except Exception as error:
            # Queries and hooks are the user's; a poller that fails must not stop the others.
            self._fail(name, error)
        finally:
            if not keeps:
                await self._release(name, held)
            if held.is_lost:
                self._held.pop(name, None)
            del self._running[name]
            self._wake.set()
            self.on_change()

    def _fail(self, name: str, error: Exception) -> None:
        _, before = self._rests.get(name, (0.0, 0.0))
        rest = min(before * 2 or _REST[0], _REST[1])
        self._rests[name] = self._clock.time() + rest, rest
        self._problems[name] = type(error).__name__
        log = logger.warning if is_of_the_surroundings(error) else logger.error
        log("poller %s has failed, next try in %g s: %s", name, rest, described(spoken(error)))

    async def _release(self, name: str, held: _Held) -> None:
        if self._held.pop(name, None) is None or held.is_lost:
            return
        try:
            await self._store.release(name, held.epoch)
        except DatabaseError as error:
            logger.debug("the lease of poller %s is left to expire: %s", name, error)

    async def _release_all(self) -> None:
        for name, held in list(self._held.items()):
            await self._release(name, held)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._ttl / 3)
            begun = self._monotonic()
            for held in self._held.values():
                # Once it has ended it may be another worker's, and is not believed in again.
                held.is_lost = held.is_lost or begun >= held.until
            if not self._held:
                continue
            try:
                await self._store.renew()
            except DatabaseError as error:
                logger.debug("leases of pollers could not be renewed: %s", error)
                continue
            for held in self._held.values():
                held.until = max(held.until, begun + self._ttl - _MARGIN)

    # --- waiting -----------------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait, until then or until a stop."""
        due = asyncio.Event()
        timer = self._clock.call_later(seconds, due.set)
        waits = [asyncio.ensure_future(due.wait()), asyncio.ensure_future(self._stop.wait())]
        self._paused += 1
        self.on_change()
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._paused -= 1
            timer.cancel()
            for wait in waits:
                wait.cancel()
        if self._stop.is_set():
            raise _Stopped

    # --- telling -----------------------------------------------------------------------------------------------

    def status(self) -> list[PollerStatus]:
        """What each poller does here."""
        return [
            PollerStatus(
                name=name,
                is_running=name in self._running,
                runs=polling.runs,
                rows=polling.sent_rows,
                failed_rows=len(polling.failed) + len(polling.left),
                problem=polling.sender.problem or self._problems.get(name),
            )
            for name, polling in self._pollings.items()
        ]

    async def standing(self) -> Standing:
        """For tests: whether something is done at the moment, waits for a later time, or is not there."""
        if len(self._running) > self._paused or not self._is_settled:
            return "busy"
        if self._running:
            return "waiting"
        for name, polling in self._pollings.items():
            if name in self._rests or await polling.has_more():
                return "waiting"
        return "done"

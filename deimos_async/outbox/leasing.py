"""Holds the leases of one worker: renews them in time, takes its fair share, gives up what is more.

The database decides who owns a slot. The local clock may only end our belief sooner: a lease counts from before the
renewal was sent, and ends a margin early. When it has ended, and at once when the connection with its session's lock is
lost, the slot is dropped: nothing more of it may be handed to a producer, and what is on its way is abandoned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from deimos_async.database.outbox.protocol import LeaseTable, SlotLeases
from deimos_async.errors import DatabaseError
from deimos_async.outbox import shares

__all__ = ["LeaseListener", "Leaseholder"]

logger = logging.getLogger("deimos_async.outbox")

_MARGIN = 1.0
"""Seconds by which a lease ends earlier for us than for the database."""
_LOOK_INTERVAL = 0.7
"""Seconds between looks at the table where the end of a worker shows before its leases expire."""
_GRACE = 0.4
"""Seconds for which a worker's lock must be free before the worker counts as dead."""
_FORGET_INTERVAL = 60.0
_REJOIN = (0.1, 2.0)
"""Seconds before the first attempt to connect again, and at most."""


class LeaseListener(Protocol):
    """Told what becomes of slots. Calls are synchronous and must not raise."""

    def on_gained(self, slot: int, epoch: int) -> None:
        """The slot is this worker's."""

    def on_surplus(self, slot: int) -> None:
        """Somebody else should have the slot: drain it, then call `release`."""

    def on_lost(self, slot: int) -> None:
        """The slot is not this worker's any more: abandon what is on its way."""


class Leaseholder:
    """The leases of one worker.

    Args:
        ttl: Seconds that a lease lasts; three renewals are sent within it.
        monotonic: A clock that goes on while the process is stopped.
    """

    def __init__(
        self, leases: SlotLeases, listener: LeaseListener, *, worker: str, ttl: float, monotonic: Callable[[], float]
    ) -> None:
        self._leases = leases
        self._listener = listener
        self._worker = worker
        self._ttl = ttl
        self._monotonic = monotonic
        self._held: dict[int, tuple[int, float]] = {}
        """Epoch, and when our belief ends, of each slot that is ours."""
        self._giving: set[int] = set()
        self._suspects: dict[str, float] = {}
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = False
        self._ending = False
        self._renewed = -ttl
        self._forgot = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self.joined = asyncio.Event()
        """Whether the table could be read, and this worker is one of those in it."""
        self.has_joined = False
        """Whether it ever was."""
        self.problem: DatabaseError | None = None
        """Why the table could not be read the last time; None: it could."""

    def is_held(self, slot: int) -> bool:
        """Whether the slot is ours at this moment."""
        held = self._held.get(slot)
        return held is not None and self._monotonic() < held[1]

    @property
    def slots(self) -> frozenset[int]:
        """Slots that are ours, also those that are being drained."""
        return frozenset(self._held)

    def epoch(self, slot: int) -> int | None:
        """Epoch of a slot that is ours."""
        held = self._held.get(slot)
        return None if held is None else held[0]

    def wake(self) -> None:
        """Look at the table now."""
        self._wake.set()

    def request_stop(self) -> None:
        """Take nothing more; go on renewing what is held until `leave`."""
        self._stopping = True
        self.wake()

    def end(self) -> None:
        """Let `run` return: not in the midst of a statement, which would leave the connection of no use to `leave`."""
        self._ending = True
        self.wake()

    async def run(self) -> None:
        """Until `end`. Raises what waiting does not cure: tables that are missing, another layout."""
        delay = _REJOIN[0]
        try:
            while not self._ending:
                self._wake.clear()
                try:
                    async with self._turn:
                        await self._round()
                    delay = _REJOIN[0]
                    self.problem = None
                    await self._wait(self._interval())
                except DatabaseError as error:
                    if self.problem is None:
                        logger.warning("the outbox's leases cannot be looked after: %s", error)
                    self.problem = error
                    await self._broken()
                    await self._wait(delay)
                    delay = min(delay * 2, _REJOIN[1])
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _interval(self) -> float:
        if not self._leases.has_locks:
            return self._ttl / 3
        return _GRACE if self._suspects else min(_LOOK_INTERVAL, self._ttl / 3)

    async def _wait(self, seconds: float) -> None:
        if self._ending:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _round(self) -> None:
        begun = self._monotonic()
        if not self.joined.is_set():
            await self._leases.join()
        # Not quite a third: a look that comes a moment early must not put the renewal off until the next one.
        renews = begun - self._renewed >= self._ttl / 3 - 0.1 or not self.joined.is_set()
        table = await self._leases.look(renew=renews)
        self.joined.set()
        self.has_joined = True
        if renews:
            self._renewed = begun
            for slot, (epoch, _) in self._held.items():
                self._held[slot] = epoch, begun + self._ttl - _MARGIN
        self._compare(table, begun if renews else self._renewed)
        if not self._stopping:
            await self._follow(table)
        self._set_timer()
        if begun - self._forgot >= _FORGET_INTERVAL:
            self._forgot = begun
            await self._leases.forget_dead()

    def _compare(self, table: LeaseTable, renewed: float) -> None:
        """What the database says, against what we believe."""
        ours = {slot.number: slot.epoch for slot in table.slots if slot.owner == self._worker}
        for slot, (epoch, _) in list(self._held.items()):
            if ours.get(slot) != epoch:
                logger.warning("slot %d of the outbox was taken by another worker", slot)
                self._lose([slot])
        for slot, epoch in ours.items():
            if slot not in self._held and not self._stopping:
                self._gain(slot, epoch, renewed)

    async def _follow(self, table: LeaseTable) -> None:
        now = self._monotonic()
        decision = shares.decide(self._worker, table, now=now, suspects=self._suspects, grace=_GRACE * 0.9)
        self._suspects = dict(decision.suspects)
        for take in decision.take:
            begun = self._monotonic()
            epoch = await self._leases.acquire(take.slot, owner=take.owner, epoch=take.epoch)
            if epoch is not None:
                self._gain(take.slot, epoch, begun)
        for slot in decision.give:
            if slot in self._held and slot not in self._giving:
                self._giving.add(slot)
                self._listener.on_surplus(slot)

    def _gain(self, slot: int, epoch: int, since: float) -> None:
        self._held[slot] = epoch, since + self._ttl - _MARGIN
        if self.is_held(slot):
            self._listener.on_gained(slot, epoch)
        else:
            del self._held[slot]

    def _lose(self, slots: Iterable[int]) -> None:
        for slot in list(slots):
            if self._held.pop(slot, None) is not None:
                self._giving.discard(slot)
                self._listener.on_lost(slot)

    async def _broken(self) -> None:
        """A statement failed. Without its connection a worker's lock is free, and others may take its slots."""
        self.joined.clear()
        if self._leases.has_locks:
            self._lose(list(self._held))
        self._set_timer()
        await self._leases.close()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held:
            ends = min(end for _, end in self._held.values())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, ends - self._monotonic()), self._expire)

    def _expire(self) -> None:
        now = self._monotonic()
        late = [slot for slot, (_, end) in self._held.items() if end <= now]
        if late:
            logger.warning("leases of the outbox's slots %s could not be renewed in time", sorted(late))
            self._lose(late)
        self._timer = None
        self._set_timer()

    async def release(self, slot: int) -> None:
        """Give a drained slot to whoever wants it. Errors of the database are left to the lease's end."""
        async with self._turn:
            held = self._held.pop(slot, None)
            self._giving.discard(slot)
            if held is None:
                return
            try:
                await self._leases.release(slot, epoch=held[0])
            except DatabaseError as error:
                logger.warning("slot %d of the outbox could not be released, its lease runs out: %s", slot, error)

    async def leave(self) -> None:
        """Be no worker any more. Slots that were not released stay ours until their leases expire."""
        async with self._turn:
            self._held.clear()
            await self._leases.leave()

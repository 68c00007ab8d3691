"""A holder of leases believes no longer than the database would, and drops what may be somebody else's at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from deimos_async.database.outbox.protocol import LeaseTable, SlotRow, WorkerRow
from deimos_async.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError
from deimos_async.outbox.leasing import Leaseholder

DEADLINE = 10.0


class Table:
    """The lease table, and a clock that the test moves; port `SlotLeases`."""

    def __init__(self, slots: int = 2, *, has_locks: bool = True) -> None:
        self.has_locks = has_locks
        self.now = 100.0
        self.slots = [SlotRow(number, None, 0, False) for number in range(slots)]
        self.workers = {"me": WorkerRow("me", True, False)}
        self.error: DatabaseError | None = None
        self.renewals = 0
        self.calls: list[str] = []
        self.looked = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    def own(self, slot: int, owner: str | None, epoch: int, *, is_leased: bool = True) -> None:
        self.slots[slot] = SlotRow(slot, owner, epoch, is_leased)

    async def join(self) -> None:
        self.calls.append("join")
        self._check()

    async def look(self, *, renew: bool) -> LeaseTable:
        self.looked.set()
        self._check()
        self.renewals += renew
        return LeaseTable(list(self.slots), list(self.workers.values()))

    async def acquire(self, slot: int, *, owner: str | None, epoch: int) -> int | None:
        self._check()
        row = self.slots[slot]
        if (row.owner, row.epoch) != (owner, epoch):
            return None
        self.own(slot, "me", epoch + 1)
        return epoch + 1

    async def release(self, slot: int, *, epoch: int) -> None:
        self.calls.append(f"release {slot} {epoch}")
        self._check()
        if self.slots[slot][1:3] == ("me", epoch):
            self.own(slot, None, epoch, is_leased=False)

    async def forget_dead(self) -> None:
        self.calls.append("forget")

    async def leave(self) -> None:
        self.calls.append("leave")

    async def close(self) -> None:
        self.calls.append("close")

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class Listener:
    def __init__(self) -> None:
        self.told: list[str] = []
        self._heard = asyncio.Event()

    def on_gained(self, slot: int, epoch: int) -> None:
        self._tell(f"gained {slot} {epoch}")

    def on_surplus(self, slot: int) -> None:
        self._tell(f"surplus {slot}")

    def on_lost(self, slot: int) -> None:
        self._tell(f"lost {slot}")

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self._heard.set()

    async def until(self, is_done: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not is_done(self.told):
                self._heard.clear()
                await self._heard.wait()


@asynccontextmanager
async def holding(table: Table, listener: Listener, *, ttl: float = 5.0) -> AsyncIterator[Leaseholder]:
    holder = Leaseholder(table, listener, worker="me", ttl=ttl, monotonic=table.monotonic)
    task = asyncio.create_task(holder.run())
    try:
        yield holder
    finally:
        task.cancel()
        await asyncio.wait([task])


async def round_of(table: Table, holder: Leaseholder) -> None:
    """Let the holder look once more, and do what follows from it."""
    table.looked.clear()
    holder.wake()
    async with asyncio.timeout(DEADLINE):
        await table.looked.wait()
        table.looked.clear()
        holder.wake()
        await table.looked.wait()


async def test_free_slots_are_taken_with_their_next_epoch() -> None:
    table, listener = Table(), Listener()
    table.own(1, None, 6, is_leased=False)
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 2)
        assert sorted(listener.told) == ["gained 0 1", "gained 1 7"]
        assert holder.slots == {0, 1}
        assert holder.is_held(0)
        assert holder.epoch(1) == 7
        assert holder.joined.is_set()


async def test_belief_ends_a_margin_before_the_lease() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener, ttl=5.0) as holder:
        await listener.until(lambda told: len(told) == 2)
        table.now += 3.9
        assert holder.is_held(0)
        table.now += 0.2
        assert not holder.is_held(0)


async def test_renewal_makes_belief_last_and_is_not_sent_more_often_than_needed() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener, ttl=6.0) as holder:
        await listener.until(lambda told: len(told) == 2)
        before = table.renewals
        await round_of(table, holder)
        assert table.renewals == before
        table.now += 2.0
        await round_of(table, holder)
        assert table.renewals == before + 1
        table.now += 4.9
        assert holder.is_held(0)


async def test_leases_that_could_not_be_renewed_are_lost_when_belief_ends() -> None:
    table, listener = Table(has_locks=False), Listener()
    async with holding(table, listener, ttl=1.2) as holder:
        await listener.until(lambda told: len(told) == 2)
        table.error = DatabaseUnavailableError("away")
        table.now += 0.3
        await listener.until(lambda told: told[2:] == ["lost 0", "lost 1"])
        assert not holder.slots


async def test_lost_connection_loses_all_slots_at_once_where_others_see_it() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 2)
        table.error = DatabaseUnavailableError("away")
        holder.wake()
        await listener.until(lambda told: sorted(told[2:]) == ["lost 0", "lost 1"])
        assert not holder.joined.is_set()
        assert "close" in table.calls
        table.error = None
        await listener.until(lambda told: len(told) == 6)
        assert sorted(listener.told[4:]) == ["gained 0 1", "gained 1 1"]
        assert table.calls.count("join") >= 2


async def test_slot_that_somebody_else_took_is_lost() -> None:
    table, listener = Table(), Listener()
    table.workers["other"] = WorkerRow("other", True, False)
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 1)
        (mine,) = holder.slots
        table.own(mine, "other", 9)
        holder.wake()
        await listener.until(lambda told: told[1:2] == [f"lost {mine}"])
        assert not holder.is_held(mine)


async def test_surplus_is_told_once_and_released_when_it_is_drained() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 2)
        table.workers["other"] = WorkerRow("other", True, False)
        holder.wake()
        await listener.until(lambda told: len(told) == 3)
        await round_of(table, holder)
        assert len(listener.told) == 3
        slot = int(listener.told[2].removeprefix("surplus "))
        assert holder.is_held(slot)
        await holder.release(slot)
        assert table.slots[slot].owner is None
        assert not holder.is_held(slot)
        table.own(slot, "other", 2)
        await round_of(table, holder)
        assert len(listener.told) == 3


async def test_suspect_is_robbed_after_its_grace_and_not_before() -> None:
    table, listener = Table(), Listener()
    table.workers["other"] = WorkerRow("other", True, True)
    table.own(0, "other", 3)
    table.own(1, "other", 3)
    async with holding(table, listener) as holder:
        await round_of(table, holder)
        assert not listener.told
        table.now += 0.5
        holder.wake()
        await listener.until(lambda told: sorted(told) == ["gained 0 4", "gained 1 4"])


async def test_after_a_stop_was_asked_for_nothing_is_taken() -> None:
    table, listener = Table(), Listener()
    table.own(0, "other", 3)
    table.workers["other"] = WorkerRow("other", True, False)
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 1)
        holder.request_stop()
        table.own(0, None, 3, is_leased=False)
        await round_of(table, holder)
        assert len(listener.told) == 1
        assert holder.slots == {1}
        await holder.release(1)
        await round_of(table, holder)
        await holder.leave()
        assert table.calls[-2:] == ["release 1 1", "leave"]


async def test_release_that_fails_is_left_to_the_end_of_the_lease() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 2)
        table.error = DatabaseUnavailableError("away")
        await holder.release(0)
        assert not holder.is_held(0)
        await holder.release(0)
        assert table.calls.count("release 0 1") == 1


async def test_what_waiting_does_not_cure_ends_it() -> None:
    table, listener = Table(), Listener()
    holder = Leaseholder(table, listener, worker="me", ttl=5.0, monotonic=table.monotonic)

    async def join() -> None:
        raise ConfigurationError("another layout")

    table.join = join  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="another layout"):
        await asyncio.wait_for(holder.run(), DEADLINE)


async def test_rows_of_the_dead_are_forgotten_now_and_then() -> None:
    table, listener = Table(), Listener()
    async with holding(table, listener) as holder:
        await listener.until(lambda told: len(told) == 2)
        assert "forget" not in table.calls
        table.now += 1.0
        await round_of(table, holder)
        table.now += 60.0
        await round_of(table, holder)
        assert table.calls.count("forget") == 1

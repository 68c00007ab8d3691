"""The pump: sends what waits in the outbox, and deletes what was acknowledged.

One worker of it owns some slots of the table by leases (`leasing.py`) and does three things side by side: it reads rows
of its shards, sends them (a task for those of one topic), and deletes by their ids those that were acknowledged.

- A shard has rows of one reading on their way at a time, so that no row overtakes another one of its key. While they
  are, other shards are read. It is read again as soon as they are acknowledged, whether or not they were deleted.
- A row is `held` from the moment it is handed to a sender until it is deleted, or has failed. At most `max_in_flight`
  are: that many may be sent twice after a crash. Reading again what is held changes nothing. Nor does it with what was
  deleted while it was being read.
- Which shards are read, and from where, is said in `intake.py`.

A topic that does not answer holds up nobody else: after a moment its rows are left out of readings, with what it has on
its way not counted, and its shards are read on without it. So are rows of a topic that has failed as a whole, until its
pause is over; and rows of a key with one that cannot be sent, until the key is due for another try. With `parking` such
a row is put aside instead: the key waits until that is committed, and goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from deimos_async.brokers.protocol import Broker, ProducerOptions
from deimos_async.database.outbox.protocol import Fence, OutboxRow, OutboxStore, Page, Parking, SlotLeases
from deimos_async.errors import DatabaseError
from deimos_async.outbox.book import TopicBook
from deimos_async.outbox.checks import Problem
from deimos_async.outbox.holding import Backoff, Holding
from deimos_async.outbox.intake import Intake, Reading
from deimos_async.outbox.leasing import Leaseholder
from deimos_async.outbox.reporting import Reports
from deimos_async.outbox.sending import Outcome, Sender
from deimos_async.outbox.shards import SHARDS, order_hash, shards_of_slot, slot_of
from deimos_async.outbox.signal import CHANNEL, LEASES_NOTICE, OutboxSignal, parse_notice

__all__ = ["OutboxPump", "PumpOptions", "PumpStatus"]

logger = logging.getLogger("deimos_async.outbox")

_POLL_MINIMUM = 0.01
_POLL_MAXIMUM = 0.25
"""Seconds between two looks where the database does not tell of new rows: doubled when nothing has come for a while."""
_ALERT = 1.0
"""Seconds after the last new row before looks become rarer."""
_RESCAN = 1.0
"""Seconds between two readings from the start."""
_RESCAN_SHARE = 20
"""A reading from the start may take one part in so many of the time."""
_TRAIL = 0.25
"""Seconds, at least, for which rows that were read are read again, for ids that become visible late."""
_SLOW = 0.3
"""Seconds without an acknowledgement after which a topic's rows are left out."""
_TOPIC_BACKOFF = Backoff(0.5, 5.0)
_KEY_BACKOFF = Backoff(5.0, 300.0)
_DATABASE_BACKOFF = Backoff(0.1, 2.0)
_FEW = 100
"""Acknowledged rows that are deleted at once. Fewer wait a moment for more."""
_GATHER = 0.01
_UNSHARDED = 1000
"""Rows without a shard that are given one at a time."""
_UNSHARDED_SELDOM = 5.0
_UNSHARDED_OFTEN = 0.5
"""Seconds between two looks for rows without a shard, when there were none the last time, and when there were some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpOptions:
    """How a pump works. Durations in seconds."""

    producer: ProducerOptions
    batch_rows: int = 1000
    """Most rows of one reading."""
    batch_bytes: int = 8 * 1024 * 1024
    """Most bytes of one reading; a single row may be larger."""
    max_in_flight: int = 2000
    poll_interval: float = 0.5
    lease_ttl: float = 5.0
    shutdown_timeout: float = 30.0
    max_blocked_keys: int = 1000
    is_compacted: Callable[[str], bool] = lambda topic: False
    """Whether of each key in a batch only the last row is sent, for a topic."""


@dataclass(frozen=True, slots=True)
class PumpStatus:
    """What a pump is doing.

    Attributes:
        slots: Slots that are its own.
        in_flight: Rows that were handed to a producer and are not deleted yet.
        blocked_keys: Keys that wait for a row that cannot be sent.
        failing_topics: Topics that wait, and why.
        started: Whether it has taken part in the leases.
        database: Why the database cannot be worked with at the moment; None: it can.
        parked: Rows that it has put aside since it was started.
    """

    slots: frozenset[int]
    in_flight: int
    blocked_keys: int
    failing_topics: Mapping[str, str]
    started: bool
    database: str | None
    parked: int = 0


class _Slot:
    """A slot that is ours."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.held = 0
        """Rows of it that are held."""
        self.is_draining = False
        self.drained = asyncio.Event()
        self.drained.set()

    def hold(self, rows: int) -> None:
        """More rows, or fewer."""
        self.held += rows
        if self.held:
            self.drained.clear()
        else:
            self.drained.set()


@dataclass(slots=True, eq=False)
class _Group:
    """Rows of one topic that are on their way."""

    topic: str
    rows: Sequence[OutboxRow]
    since: float
    shards: frozenset[int]
    task: asyncio.Task[None] | None = None


class OutboxPump:
    """A service; one worker.

    Args:
        worker: Its id in the lease table, which nobody else has.
        brokers: By the cluster's name; started.
        cluster_of: Cluster of a topic, by its name in Kafka. Topics that the application does not know are sent, too.
        signal: What is committed in this process.
        parking: Puts rows aside that cannot be sent; None: their keys wait for them.
        monotonic: A clock that goes on while the process is stopped.
    """

    name = "outbox pump"

    def __init__(
        self,
        store: OutboxStore,
        leases: SlotLeases,
        brokers: Mapping[str, Broker],
        options: PumpOptions,
        *,
        worker: str,
        cluster_of: Callable[[str], str],
        signal: OutboxSignal,
        reports: Reports,
        parking: Parking | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._brokers = brokers
        self._options = options
        self._signal = signal
        self._reports = reports
        self._parking = parking
        self._worker = worker
        self._monotonic = monotonic
        self._book = TopicBook(brokers, cluster_of, monotonic)
        self._leases = Leaseholder(leases, self, worker=worker, ttl=options.lease_ttl, monotonic=monotonic)
        self._group: asyncio.TaskGroup | None = None
        self._sender: Sender | None = None
        self._slots: dict[int, _Slot] = {}
        self._intake = Intake()
        self._held: dict[int, _Slot] = {}
        """Rows that were handed to a sender, by id."""
        self._gone: set[int] | None = None
        """While something is being read, rows that were deleted meanwhile: it may still have seen them."""
        self._flying: set[_Group] = set()
        self._left_out: set[str] = set()
        """Topics whose rows were passed over by a reading since everything was read from the start."""
        self._deletes: list[tuple[int, _Slot]] = []
        self._to_park: asyncio.Queue[tuple[OutboxRow, Problem, int]] = asyncio.Queue()
        self._parks = 0
        """Rows that are being put aside, or are about to be."""
        self._parked = 0
        self._topics: Holding[str] = Holding(_TOPIC_BACKOFF)
        self._keys: Holding[tuple[int, int]] = Holding(_KEY_BACKOFF)
        self._full_shards: Holding[int] = Holding(_KEY_BACKOFF)
        self._wake = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._stopping = asyncio.Event()
        self._poll = _POLL_MINIMUM
        now = monotonic()
        self._last_new = now
        self._next_poll = now
        self._next_rescan = now
        self._next_trail = now
        self._next_unsharded = now
        self._database_failures = 0
        self._database_problem: str | None = None
        self.on_change: Callable[[], object] = lambda: None
        """Called whenever rows were deleted or found to wait."""

    # Life

    async def run(self, started: asyncio.Event) -> None:
        """Send until stopped, then drain.

        Raises:
            ConfigurationError: Tables are missing, or rows are spread over shards in another way.
        """
        try:
            await self._store.check()
        except DatabaseError as error:
            if not error.retriable:
                raise
            logger.warning("the outbox waits for its database: %s", error)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._work(group, started)
        except BaseExceptionGroup as errors:
            # One of our own tasks is broken; the others were cancelled for it.
            raise errors.exceptions[0] from None
        finally:
            self._group = None
            self._signal.served = frozenset()
            await self._abandon_all()
            await self._store.close()

    async def _work(self, group: asyncio.TaskGroup, started: asyncio.Event) -> None:
        self._store.listen(CHANNEL, self._on_notice)
        leasing = group.create_task(self._leases.run(), name="outbox leases")
        background = [
            group.create_task(self._read_on(), name="outbox reading"),
            group.create_task(self._delete_on(), name="outbox deleting"),
            group.create_task(self._listen(), name="outbox signal"),
            group.create_task(self._report_on(), name="outbox figures"),
        ]
        if self._parking is not None:
            background.append(group.create_task(self._park_on(self._parking), name="outbox parking"))
        started.set()
        await self._stopping.wait()
        self._leases.request_stop()
        drains = [group.create_task(self._drain(slot), name="outbox drain") for slot in self._slots.values()]
        if drains:
            await asyncio.wait(drains)
        self._leases.end()
        for task in background:
            task.cancel()
        await asyncio.wait([leasing, *background])

    def request_stop(self) -> None:
        """Read nothing more, wait for what is on its way, delete it, give the leases back. Any number of times."""
        self._stopping.set()

    def status(self) -> PumpStatus:
        """What it is doing now."""
        problem = self._database_problem
        if problem is None and self._leases.problem is not None:
            problem = str(self._leases.problem)
        return PumpStatus(
            frozenset(self._slots),
            len(self._held),
            len(self._keys.waiting()),
            {topic: held.reason for topic, held in self._topics.failing().items()},
            self._leases.has_joined,
            problem,
            self._parked,
        )

    async def is_idle(self) -> bool:
        """Whether nothing is on its way, and the database has no row that this worker would send now."""
        if self._held or self._parks or not self._slots or len(self._intake.shards) < SHARDS:
            return False
        if await self._store.unsharded(1):
            return False
        page = await self._store.read(
            dict.fromkeys(self._intake.shards, 0),
            limit=1,
            max_bytes=1,
            without_orders=[order for _, order in self._keys.waiting()],
            without_topics=self._topics.waiting(),
        )
        return not page.rows and not self._held and not self._parks

    # Slots

    def on_gained(self, slot: int, epoch: int) -> None:
        """See `LeaseListener`."""
        if not self._slots:
            # The leases' connection works. If all slots had been lost because the network failed without a word, the
            # other connections would wait for answers for long.
            self._store.distrust()
        self._slots[slot] = _Slot(slot)
        self._intake.open(shards_of_slot(slot))
        logger.debug("slot %d of the outbox is ours, epoch %d", slot, epoch)
        self._serve()
        self._wake.set()
        if self._sender is None and self._group is not None:
            self._sender = self._new_sender()
            self._group.create_task(self._sender.prepare(), name="outbox producer")

    def _new_sender(self) -> Sender:
        return Sender(
            self._brokers,
            self._options.producer,
            self._book,
            is_compacted=self._options.is_compacted,
            may_send=lambda shards: all(self._leases.is_held(slot) for slot in set(map(slot_of, shards))),
        )

    def on_surplus(self, slot: int) -> None:
        """See `LeaseListener`."""
        assert self._group is not None
        found = self._slots.get(slot)
        if found is not None and not found.is_draining:
            self._group.create_task(self._drain(found), name="outbox drain")

    def on_lost(self, slot: int) -> None:
        """See `LeaseListener`."""
        found = self._slots.get(slot)
        if found is not None:
            self._drop(found)

    def _drop(self, slot: _Slot) -> None:
        """It is somebody else's: hand nothing more of it to a producer, and abandon what is on its way."""
        del self._slots[slot.number]
        self._close_shards(slot)
        if slot.held:
            self._abandon()

    def _abandon(self) -> None:
        """Abandon all that is on its way, of all slots; what is still ours is sent again."""
        for group in self._flying:
            if group.task is not None:
                group.task.cancel()
        sender, self._sender = self._sender, self._new_sender()
        if sender is not None and self._group is not None:
            stopping = sender.stop()
            try:
                self._group.create_task(stopping, name="outbox abandon")
            except RuntimeError:  # the group is ending, and whoever ends it stops this one
                stopping.close()
                self._sender = sender

    def _close_shards(self, slot: _Slot) -> None:
        slot.is_draining = True
        self._intake.close(shards_of_slot(slot.number))
        for shard in shards_of_slot(slot.number):
            self._full_shards.forget(shard)
            self._keys.forget(*(key for key in self._keys.failing() if key[0] == shard))
        self._serve()

    def _serve(self) -> None:
        self._signal.served = frozenset(self._intake.shards)

    async def _drain(self, slot: _Slot) -> None:
        """Let what is on its way end, and give the slot up."""
        if slot.is_draining:
            await slot.drained.wait()
            return
        self._close_shards(slot)
        try:
            async with asyncio.timeout(self._options.shutdown_timeout):
                await slot.drained.wait()
        except TimeoutError:
            logger.warning(
                "%d messages of the outbox were still on their way after %g s; they may be sent again",
                slot.held,
                self._options.shutdown_timeout,
            )
            self._abandon()
        if self._slots.get(slot.number) is slot:
            del self._slots[slot.number]
            await self._leases.release(slot.number)

    async def _abandon_all(self) -> None:
        """After a failure or a cancellation: nothing is left on its way, so others may have the slots at once."""
        if self._sender is not None:
            await self._sender.stop()
        slots, self._slots = list(self._slots), {}
        for slot in slots:
            await self._leases.release(slot)
        await self._leases.leave()

    # Looking

    def look_at(self, shards: Iterable[int]) -> None:
        """These shards may have new rows."""
        self._intake.look_at(shards)
        self._wake.set()

    def _look_at_all(self, *, from_start: bool) -> None:
        if from_start:
            self._left_out.clear()
        self._intake.look_at_all(from_start=from_start)

    def _on_notice(self, text: str) -> None:
        if text == LEASES_NOTICE:
            self._leases.wake()
        else:
            self.look_at(parse_notice(text))

    async def _listen(self) -> None:
        listener = self._signal.listen()
        try:
            while True:
                self.look_at(await listener.wait())
        finally:
            listener.close()

    # Reading

    async def _read_on(self) -> None:
        while True:
            self._wake.clear()
            self._on_time()
            try:
                if self._next_unsharded <= self._monotonic():
                    await self._give_shards()
                room = self._room()
                reading = self._intake.next(self._unreadable()) if room > 0 else None
                if reading is not None:
                    await self._read(reading, room)
                    continue
            except DatabaseError as error:
                await self._database_failed(error)
                continue
            await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        now = self._monotonic()
        due = [self._next_poll, self._topics.next_due(), self._keys.next_due(), self._full_shards.next_due()]
        due += [group.since + _SLOW for group in self._flying if group.since + _SLOW > now]
        soonest = min(moment for moment in due if moment is not None)
        try:
            async with asyncio.timeout(max(0.001, soonest - now)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _database_failed(self, error: DatabaseError) -> None:
        self._database_failures += 1
        if self._database_problem is None:
            logger.warning("the outbox cannot be read: %s", error)
        self._database_problem = str(error)
        try:
            async with asyncio.timeout(_DATABASE_BACKOFF.delay(self._database_failures)):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _on_time(self) -> None:
        """Whatever is due."""
        now = self._monotonic()
        if now >= self._next_trail:
            self._next_trail = now + _TRAIL
            self._intake.let_pass()
        if now >= self._next_poll:
            is_told = self._store.tells
            if is_told:
                self._poll = self._options.poll_interval
            elif now - self._last_new > _ALERT:
                self._poll = min(self._poll * 2, _POLL_MAXIMUM)
            self._next_poll = now + self._poll
            from_start = now >= self._next_rescan
            if from_start:
                self._next_rescan = now + _RESCAN
            self._look_at_all(from_start=from_start)
        due = [*(shard for shard, _ in self._keys.release(now)), *self._full_shards.release(now)]
        self._intake.look_at(due, from_start=True)
        if self._topics.release(now) or self._left_out - self._excluded():
            self._look_at_all(from_start=True)

    def _excluded(self) -> set[str]:
        """Topics whose rows are left out: those that failed, and those that do not answer."""
        before = self._monotonic() - _SLOW
        return {*self._topics.waiting(), *(group.topic for group in self._flying if group.since <= before)}

    def _room(self) -> int:
        """How many rows may be read."""
        most = self._options.max_in_flight
        before = self._monotonic() - _SLOW
        slow = sum(len(group.rows) for group in self._flying if group.since <= before)
        room = most - len(self._held) + min(slow, most)
        # Many small readings would cost more than the wait for a larger one.
        if self._held and room < min(most, self._options.batch_rows) // 2:
            return 0
        return min(room, self._options.batch_rows)

    def _unreadable(self) -> set[int]:
        """Shards with rows on their way that a row might overtake, and those that wait as a whole."""
        excluded = self._excluded()
        busy = {shard for group in self._flying if group.topic not in excluded for shard in group.shards}
        return busy.union(self._full_shards.waiting())

    async def _read(self, reading: Reading, room: int) -> None:
        begun = self._monotonic()
        # A topic may answer again since it was last looked at what is due. Until everything is read from the start, its
        # rows above the floors would overtake those below that were passed over.
        excluded = self._excluded() | self._left_out
        self._left_out = excluded
        self._gone = set()
        try:
            page = await self._store.read(
                reading.floors,
                limit=room,
                max_bytes=self._options.batch_bytes,
                without_orders=[order for shard, order in self._keys.waiting() if shard in reading.floors],
                without_topics=excluded,
            )
        except BaseException:
            self._gone = None
            self._intake.failed(reading)
            raise
        self._database_failures, self._database_problem = 0, None
        if reading.is_whole:
            took = self._monotonic() - begun
            self._next_rescan = max(self._next_rescan, self._monotonic() + took * _RESCAN_SHARE)
        self._intake.done(reading, page.floors, page.more)
        self._take(page)

    def _take(self, page: Page) -> None:
        """Hand what was read to senders."""
        held, shards = self._held, self._intake.shards
        gone, self._gone = self._gone or (), None
        groups: dict[str, list[OutboxRow]] = {}
        for row in page.rows:
            if row.id not in held and row.id not in gone and row.shard in shards:
                groups.setdefault(row.topic, []).append(row)
        if groups:
            self._poll, self._last_new = _POLL_MINIMUM, self._monotonic()
            if not self._store.tells:
                self._next_poll = min(self._next_poll, self._monotonic() + self._poll)
        now = self._monotonic()
        for topic, rows in groups.items():
            counts = Counter(row.shard for row in rows)
            for row in rows:
                held[row.id] = self._slots[slot_of(row.shard)]
            for shard, count in counts.items():
                self._slots[slot_of(shard)].hold(count)
            group = _Group(topic, rows, now, frozenset(counts))
            self._flying.add(group)
            assert self._group is not None
            group.task = self._group.create_task(self._send(group), name="outbox send")

    # Rows of a Deimos

    async def _give_shards(self) -> None:
        """Rows that a Deimos has written have no shard. The owner of the first slot gives them one."""
        self._next_unsharded = self._monotonic() + _UNSHARDED_SELDOM
        if 0 not in self._intake.shards:
            return
        rows = await self._store.unsharded(_UNSHARDED)
        if not rows:
            return
        self._next_unsharded = self._monotonic() + (0.0 if len(rows) == _UNSHARDED else _UNSHARDED_OFTEN)
        orders: dict[int, int] = {}
        for row in rows:
            order = order_hash(row.topic, row.key if row.partition_key is None else row.partition_key)
            orders[row.id] = row.id if order is None else order
        await self._store.assign({id_: _signed(order) for id_, order in orders.items()})
        self._look_at_all(from_start=True)

    # Sending

    async def _send(self, group: _Group) -> None:
        began, sender = self._monotonic(), self._sender
        assert sender is not None
        try:
            await self._reports.before(group.topic, group.rows)
            with self._reports.span(group.topic, len(group.rows)):
                outcome = await sender.send(group.topic, group.rows)
        except BaseException:
            self._land(group, Outcome())
            raise
        self._land(group, outcome)
        self._reports.sent(group.topic, group.rows, outcome, self._monotonic() - began)

    def _land(self, group: _Group, outcome: Outcome) -> None:
        """The fate of a group's rows is known."""
        self._flying.discard(group)
        now = self._monotonic()
        done = {row.id for row in outcome.done}
        held = self._held
        self._deletes += [(row.id, held[row.id]) for row in outcome.done]
        back = [row for row in group.rows if row.id not in done]
        for row in back:
            held.pop(row.id).hold(-1)
        if outcome.failure is not None:
            failing = self._topics.fail(group.topic, str(outcome.failure), now)
            if failing.failures == 1 or failing.failures % 10 == 0:
                logger.warning(
                    "the outbox cannot send to %s, next try in %g s: %s",
                    group.topic,
                    failing.due - now,
                    outcome.failure,
                )
        elif outcome.done and self._topics.succeed(group.topic):
            logger.info("the outbox sends to %s again", group.topic)
        if len(self._keys):
            for key in {(row.shard, row.order_hash) for row in outcome.done}:
                self._keys.succeed(key)
        for row, problem in outcome.poison:
            self._block(row, problem, now)
        self._intake.look_at({row.shard for row in back}, from_start=True)
        if done:
            self._acknowledged.set()
        self._wake.set()
        self.on_change()

    def _block(self, row: OutboxRow, problem: Problem, now: float) -> None:
        """A row cannot be sent: its key waits."""
        if row.shard not in self._intake.shards:
            return
        held = self._keys.fail((row.shard, row.order_hash), problem.text, now)
        if self._parking is not None:
            self._parks += 1
            self._to_park.put_nowait((row, problem, held.failures))
        elif held.failures == 1:
            logger.error("row %d of the outbox cannot be sent, its key waits: %s", row.id, problem.text)
        if len(self._keys.waiting()) > self._options.max_blocked_keys:
            self._full_shards.fail(row.shard, "too many keys wait", now)
            logger.error(
                "more than %d keys of the outbox wait for rows that cannot be sent; shard %d waits as a whole",
                self._options.max_blocked_keys,
                row.shard,
            )

    # Parking

    async def _park_on(self, parking: Parking) -> None:
        """Put rows aside, one after another. Their keys wait meanwhile, so nothing of them is on its way."""
        while True:
            row, problem, attempts = await self._to_park.get()
            try:
                if await self._park(parking, row, problem, attempts):
                    self._parked += 1
                    self._keys.succeed((row.shard, row.order_hash))
                    self._intake.look_at([row.shard], from_start=True)
                    self._reports.parked(row.topic, problem.code)
                    logger.error("row %d of the outbox cannot be sent and was put aside: %s", row.id, problem.text)
            finally:
                self._parks -= 1
            self._wake.set()
            self.on_change()

    async def _park(self, parking: Parking, row: OutboxRow, problem: Problem, attempts: int) -> bool:
        """Whether it was put aside. Else its key waits, and what is found then is done again."""
        slot = slot_of(row.shard)
        epoch = self._leases.epoch(slot)
        if epoch is None or row.shard not in self._intake.shards:
            return False
        fence = Fence(slot, self._worker, epoch)
        try:
            return await parking.park(row.id, code=problem.code, text=problem.text, attempts=attempts, fence=fence)
        except DatabaseError as error:
            logger.warning("row %d of the outbox cannot be sent, and cannot be put aside: %s", row.id, error)
            return False

    # Deleting

    async def _delete_on(self) -> None:
        failures = 0
        while True:
            await self._acknowledged.wait()
            self._acknowledged.clear()
            if len(self._deletes) < _FEW:
                # Rows that come one by one would else cost the database a commit each, twice.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER):
                        await self._stopping.wait()
            deletes, self._deletes = self._deletes, []
            if not deletes:
                continue
            try:
                await self._store.delete([id_ for id_, _ in deletes])
            except DatabaseError as error:
                # They are deleted later, by whomever: until then they are held, so that nobody here sends them again.
                self._deletes = deletes + self._deletes
                self._acknowledged.set()
                failures += 1
                if failures == 1:
                    logger.warning("rows of the outbox that were sent cannot be deleted: %s", error)
                await asyncio.sleep(_DATABASE_BACKOFF.delay(failures))
                continue
            failures = 0
            for id_, _ in deletes:
                del self._held[id_]
            if self._gone is not None:
                self._gone.update(id_ for id_, _ in deletes)
            for slot, count in Counter(slot for _, slot in deletes).items():
                slot.hold(-count)
            self._wake.set()
            self.on_change()

    # Telling

    async def _report_on(self) -> None:
        """Figures of what waits: counted by one worker, seldom, as counting reads everything."""
        while True:
            took = 0.0
            self._reports.blocked(len(self._keys.waiting()))
            if 0 in self._slots:
                begun = self._monotonic()
                try:
                    self._reports.pending(await self._store.pending())
                except DatabaseError as error:
                    logger.debug("what waits in the outbox cannot be counted: %s", error)
                took = self._monotonic() - begun
            await asyncio.sleep(max(self._reports.interval, took * 50))


def _signed(number: int) -> int:
    """32 bits with sign."""
    number &= 0xFFFF_FFFF
    return number - 0x1_0000_0000 if number & 0x8000_0000 else number

"""One consumer as a service: connects the fetcher, the dispatcher and the committer, and answers rebalances.

A stop follows the data: fetch no more, let running handlers end (up to the shutdown timeout, then they are cancelled
and their messages are not committed), commit, leave the group. A partition that goes to another member is drained and
committed in the same way before it is given up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from deimos_async.brokers.protocol import Broker, BrokerConsumer, ConsumerOptions
from deimos_async.consuming.commit import Committer
from deimos_async.consuming.dispatch import Dispatcher, Work
from deimos_async.consuming.fetch import Fetcher
from deimos_async.consuming.placing import Placer
from deimos_async.consuming.progress import Progress, Stalls, Standing
from deimos_async.errors import DeimosError
from deimos_async.message import TopicPartition
from deimos_async.telemetry import names

__all__ = ["ConsumerRunner", "RunnerOptions", "RunnerStatus"]

logger = logging.getLogger("deimos_async.consuming")

_PLACING_PATIENCE = 5.0
"""Seconds for a question to the database that is under way at a stop."""
_GAUGES_INTERVAL = 5.0
"""Seconds between two tellings of gauges, of which each partition has some. Counters are told with each commit."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Durations in seconds."""

    max_records: int = 500
    commit_interval: float = 1.0
    shutdown_timeout: float = 30.0
    stall_timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """What a consumer is doing now."""

    name: str
    group: str
    topic: str
    assigned: frozenset[TopicPartition]
    in_flight: int
    """Records fetched whose handling has not ended."""
    lag: int
    """Messages behind the known ends of the assigned partitions."""
    failed: bool
    last_progress: float = 0.0
    """Seconds since something was last fetched, handled, given up or put off."""
    stalled: bool = False
    """Whether any partition is."""
    stalled_partitions: frozenset[TopicPartition] = frozenset()
    """Those that have something to do and have not got on with it for `consumers.stall_timeout`, while no handler was
    at work on them and no timer was to go on with them."""
    waiting: int = 0
    """Messages of these partitions that wait in the database for another attempt (`then="retry_keyed"`)."""
    waiting_keys: int = 0
    """Keys that they are of."""
    held_up: frozenset[TopicPartition] = frozenset()
    """Partitions that stand still until there is room for more of them."""


class ConsumerRunner:
    """Runs one consumer until it is told to stop. A service; also the rebalance listener of its broker consumer."""

    def __init__(
        self,
        broker: Broker,
        options: ConsumerOptions,
        work: Work,
        runner: RunnerOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"consumer {work.name} {work.topic} {work.group}"
        self._options = runner
        self._consumer: BrokerConsumer = broker.consumer(options, self)
        self._dispatcher = Dispatcher(work)
        self._measured = self._dispatcher.measured
        self._committer = Committer(work.name, self._consumer, self._measured)
        self._fetcher = Fetcher(self._consumer, self._dispatcher, self._committer, max_records=runner.max_records)
        self._dispatcher.on_change = self._changed
        self._placer: Placer | None = None
        if work.offsets is not None:
            self._placer = Placer(work.offsets, self._consumer, self._dispatcher)
            self._dispatcher.on_restart = self._placer.restarted
        self._stop = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._clock = clock
        self._progress = Progress(clock())
        self._stalls = Stalls()
        self.started = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when records have been handled, or put off, or the consumer must stop."""

    # --- service -----------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Soft, any number of times, before or after `run`."""
        self._stop.set()
        self._fetcher.stop()
        if self._placer is not None:
            self._placer.stop()
        self._dispatcher.request_stop()

    async def run(self, started: asyncio.Event) -> None:
        """Join, read and handle until stopped.

        Raises:
            HandlerError: An error stopped the consumer; its message is not committed.
            OffsetOutOfRangeError: A stored offset does not exist (any more).
            BrokerError: The member cannot go on.
        """
        error: Exception | None = None
        try:
            await self._consumer.start()
            self.started = True
            started.set()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for _ in range(self._dispatcher.work.concurrency):
                    self._spawn_worker()
                committing = tasks.create_task(self._commit_regularly(), name=f"{self.name} commits")
                placing = None
                if self._placer is not None:
                    placing = tasks.create_task(self._placer.run(), name=f"{self.name} places")
                try:
                    await self._fetcher.run()
                except Exception as failed:
                    # Raised below, after what has ended was committed.
                    error = failed
                await self._drain()
                await committing
                if placing is not None:
                    await asyncio.wait([placing], timeout=_PLACING_PATIENCE)
                    placing.cancel()
            await self._committer.commit(list(self._dispatcher.partitions.values()))
        finally:
            self._tasks = None
            self._measured.tell()
            self._clear_gauges(self._dispatcher.partitions)
            await self._consumer.stop()
        if error is not None:
            raise error
        if self._placer is not None and self._placer.failure is not None:
            raise self._placer.failure
        if self._dispatcher.failure is not None:
            raise self._dispatcher.failure

    async def _drain(self) -> None:
        """Let running handlers end, then take the workers away."""
        self.request_stop()
        partitions = list(self._dispatcher.partitions.values())
        if not await self._dispatcher.ended(partitions, self._options.shutdown_timeout):
            logger.warning(
                "%s: handlers did not end within %.1f s and were cancelled; their messages are read again",
                self.name, self._options.shutdown_timeout,
            )  # fmt: skip
        for worker in self._workers:
            worker.cancel()

    def _spawn_worker(self) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(self._dispatcher.work_on(), name=f"{self.name} worker")
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)

    async def _commit_regularly(self) -> None:
        next_gauges = 0.0
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(self._options.commit_interval):
                    await self._stop.wait()
            except TimeoutError:
                pass
            await self._committer.commit(list(self._dispatcher.partitions.values()))
            self._measured.tell()
            now = self._clock()
            self._look(now)
            if now >= next_gauges:
                next_gauges = now + _GAUGES_INTERVAL
                self._tell_gauges()

    async def commit(self) -> None:
        """Commit what has ended now, before the interval is over."""
        await self._committer.commit(list(self._dispatcher.partitions.values()))

    async def standing(self) -> Literal["busy", "waiting", "done"]:
        """How far it is with what its topic holds now, by the ends that the brokers tell when asked.

        Returns:
            `"done"`: everything was handled and committed. `"waiting"`: nothing goes on before a timer ends, as what is
            in hand waits for its next attempt or is not due yet. Else `"busy"`.

        Raises:
            BrokerError: They cannot be asked.
        """
        # What has ended up to these ends before they are asked for has ended if they are the same afterwards.
        known = dict(self._consumer.positions_end())
        partitions = dict(self._dispatcher.partitions)
        if self._is_getting_on():
            return "busy"
        in_flight = self._in_flight()
        try:
            ends = await self._consumer.end_offsets(partitions)
        except DeimosError:
            if self._stop.is_set():
                return "busy"
            raise
        if any(not partitions[id].paused and known.get(id, 0) < end for id, end in ends.items()):
            return "busy"
        return "waiting" if in_flight or self._dispatcher.waiting else "done"

    def _is_getting_on(self) -> bool:
        dispatcher = self._dispatcher
        partitions = dispatcher.partitions.values()
        if not partitions or self._stop.is_set() or self._fetcher.is_handing_over or not dispatcher.at_rest:
            return True
        if any(partition.unplaced for partition in partitions):
            return True
        is_paused = any(partition.paused for partition in partitions)
        is_fetching = bool(self._consumer.unfetched()) and not is_paused
        return is_fetching or any(partition.to_commit is not None for partition in partitions)

    @property
    def _has_failed(self) -> bool:
        return self._dispatcher.failure is not None or (self._placer is not None and self._placer.failure is not None)

    def _changed(self) -> None:
        self.on_change()
        if self._has_failed:
            self._fetcher.stop()
        else:
            self._fetcher.adjust_pauses()

    # --- rebalances --------------------------------------------------------------------------------------------

    async def on_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """New partitions begin with nothing in hand."""
        self._dispatcher.assign(partitions)
        if self._placer is not None:
            self._placer.assigned(partitions)
        if partitions:
            logger.info("%s: assigned %s", self.name, _names(partitions))
        self._measured.rebalances += 1

    async def on_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Drain and commit before they go."""
        await self._give_up(partitions, commit=True)

    async def on_lost(self, partitions: frozenset[TopicPartition]) -> None:
        """They are somebody else's already: end what runs, commit nothing."""
        await self._give_up(partitions, commit=False)

    async def _give_up(self, partitions: frozenset[TopicPartition], *, commit: bool) -> None:
        given_up = self._dispatcher.close(partitions, lost=not commit)
        if not given_up:
            return
        logger.info("%s: giving up %s", self.name, _names(partitions))
        try:
            if not await self._dispatcher.ended(given_up, self._options.shutdown_timeout):
                logger.warning(
                    "%s: handlers did not end within %.1f s of a rebalance and are cancelled; "
                    "the next member reads their messages again",
                    self.name, self._options.shutdown_timeout,
                )  # fmt: skip
                self._replace_workers()
            if commit:
                await self._committer.commit(given_up)
        finally:
            self._dispatcher.forget(partitions)
            if self._placer is not None:
                self._placer.forget(partitions)
            self._committer.forget(partitions)
            self._clear_gauges(partition.id for partition in given_up)

    def _replace_workers(self) -> None:
        """Cancel the workers with what they do; new ones take over. Other partitions' heads are tried again."""
        for worker in list(self._workers):
            worker.cancel()
        if self._tasks is not None and not self._stop.is_set():
            for _ in range(self._dispatcher.work.concurrency):
                self._spawn_worker()

    # --- telling -----------------------------------------------------------------------------------------------

    def lag(self) -> dict[TopicPartition, int]:
        """Messages behind the known end, for each assigned partition whose end is known."""
        ends = self._consumer.positions_end()
        lags = {}
        for id, partition in self._dispatcher.partitions.items():
            position = partition.position
            if position is None:
                position = partition.first
            if id in ends and position is not None:
                lags[id] = max(0, ends[id] - position)
        return lags

    def status(self) -> RunnerStatus:
        """What it is doing now."""
        work = self._dispatcher.work
        now = self._clock()
        quiet = self._look(now)
        # An incomplete batch waits on purpose.
        timeout = self._options.stall_timeout + (work.max_wait if work.batch else 0.0)
        stalled = self._stalls.longer_than(timeout, now)
        return RunnerStatus(
            name=work.name,
            group=work.group,
            topic=work.topic,
            assigned=frozenset(self._dispatcher.partitions),
            in_flight=self._in_flight(),
            lag=sum(self.lag().values()),
            failed=self._has_failed,
            last_progress=quiet,
            stalled=bool(stalled),
            stalled_partitions=stalled,
            waiting=self._dispatcher.waiting,
            waiting_keys=self._waiting_keys(),
            held_up=frozenset(id for id, partition in self._dispatcher.partitions.items() if partition.held_up),
        )

    @property
    def is_handling(self) -> bool:
        """Whether a handler is running."""
        return any(partition.busy for partition in self._dispatcher.partitions.values())

    @property
    def has_fetched(self) -> bool:
        """Whether it has fetched anything in its present assignment."""
        return any(partition.first is not None for partition in self._dispatcher.partitions.values())

    def _waiting_keys(self) -> int:
        return sum(partition.waiting.keys for partition in self._dispatcher.partitions.values())

    def _in_flight(self) -> int:
        return sum(partition.buffered for partition in self._dispatcher.partitions.values())

    def _look(self, now: float) -> float:
        """See who gets on; returns the seconds since the last progress, as far as was looked."""
        dispatcher, unfetched = self._dispatcher, self._consumer.unfetched()
        partitions = dispatcher.partitions
        standings = {
            id: Standing(
                position=partition.position,
                in_hand=partition.buffered,
                unfetched=unfetched.get(id, 0),
                # A database that is away is waited for, too; of what is given up nothing is begun.
                waits=partition.parked > 0 or partition.unplaced or partition.halted,
                busy=partition.busy > 0,
            )
            for id, partition in partitions.items()
        }
        busy = sum(partition.busy for partition in partitions.values())
        self._stalls.look(standings, has_free_worker=busy < dispatcher.work.concurrency, now=now)
        positions = tuple(standing.position for standing in standings.values())
        looked_at = dispatcher.parks + dispatcher.tries
        return self._progress.quiet((self._measured.fetched, self._in_flight(), looked_at, positions), now)

    def _tell_gauges(self) -> None:
        metrics, tags = self._dispatcher.work.metrics, self._measured.tags
        partitions = self._dispatcher.partitions
        metrics.gauge(names.IN_FLIGHT, self._in_flight(), tags=tags)
        metrics.gauge(names.COMMIT_AGE, self._committer.age(partitions.values()), tags=tags)
        if self._dispatcher.work.keyed is not None:
            metrics.gauge(names.KEYED_WAITING, self._dispatcher.waiting, tags=tags)
            metrics.gauge(names.KEYED_KEYS, self._waiting_keys(), tags=tags)
            held_up = sum(partition.held_up for partition in partitions.values())
            metrics.gauge(names.KEYED_HELD_UP, held_up, tags=tags)
        now = time.time()
        for id, lag in self.lag().items():
            partition = partitions[id]
            told = {**tags, "topic": id.topic, "partition": str(id.partition)}
            metrics.gauge(names.LAG, lag, tags=told)
            waited = partition.arrivals.lag_time(
                position=partition.position, in_flight=partition.buffered, lag=lag, now=now
            )
            metrics.gauge(names.LAG_TIME, waited, tags=told)

    def _clear_gauges(self, gone: Iterable[TopicPartition]) -> None:
        """Partitions that went are told by their next owner; a gauge that stayed would be a lag that never ends."""
        metrics, tags = self._dispatcher.work.metrics, self._measured.tags
        left = set(self._dispatcher.partitions)
        for id in gone:
            left.discard(id)
            told = {**tags, "topic": id.topic, "partition": str(id.partition)}
            metrics.gauge(names.LAG, 0, tags=told)
            metrics.gauge(names.LAG_TIME, 0.0, tags=told)
        if not left:
            metrics.gauge(names.IN_FLIGHT, 0, tags=tags)
            metrics.gauge(names.COMMIT_AGE, 0.0, tags=tags)
            if self._dispatcher.work.keyed is not None:
                for name in (names.KEYED_WAITING, names.KEYED_KEYS, names.KEYED_HELD_UP):
                    metrics.gauge(name, 0, tags=tags)


def _names(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(f"{partition.topic}[{partition.partition}]" for partition in sorted(partitions))

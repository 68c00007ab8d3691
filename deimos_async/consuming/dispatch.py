"""From fetched records to handler calls: lanes, long-lived workers, and what follows an error.

One dispatcher serves one consumer. Records wait in lanes (`lanes`); workers, as many as the consumer's `concurrency`,
take lanes in turn and handle their records one after another. A lane whose head waits for another attempt is parked
by a timer and holds up nobody else. Everything here runs in the consumer's own tasks; nothing starts tasks per message.

State of a lane: idle -> queued (has something to do) -> busy (a worker is at it) -> idle, queued again, or parked
(timer) -> queued. Partitions that are given up are halted: a busy lane ends its head, nothing else begins.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import Any, NoReturn

from deimos_async.consuming import dead_letters
from deimos_async.consuming.burying import send_away
from deimos_async.consuming.calling import log_handled, logs_messages, traced_batch, traced_message
from deimos_async.consuming.drains import Drain, Drains
from deimos_async.consuming.handling import Call
from deimos_async.consuming.judging import judge, raise_if_ours
from deimos_async.consuming.keyed import NoRoom
from deimos_async.consuming.lanes import Doom, Kept, Lane, Partition
from deimos_async.consuming.measuring import Measurements
from deimos_async.consuming.on_error import (
    DeadLetter,
    Defer,
    GiveUp,
    Keep,
    PassOver,
    Skip,
    StopConsumer,
    TryAgain,
    Wait,
    backoff_delay,
)
from deimos_async.consuming.stored_offsets import MustReread, Refused
from deimos_async.consuming.work import Decoding, NextRetry, Work
from deimos_async.database.protocol import RetryRow, WaitingRow
from deimos_async.errors import DeimosError, HandlerError
from deimos_async.message import Delivery, InboundRecord, Message, TopicPartition
from deimos_async.plain_text import described

__all__ = ["Decoding", "Dispatcher", "NextRetry", "Work"]

logger = logging.getLogger("deimos_async.consuming")

_YIELD_AFTER = 0.01
"""Seconds of handlers that never wait, after which other tasks (heartbeats among them) get their turn."""
_LOOK_EVERY = 8
"""The clock is looked at after so many messages."""
_MOST_QUEUED_UP = 100
"""Messages that are put behind others of their keys in one transaction, at most, in message mode."""
_ROOM_INTERVAL = 1.0
"""Seconds after which a partition that waits for room in the table of waiting messages looks again."""


class _Parked(Exception):
    """Leaves the loop over a lane's records: its head waits, or the consumer stops."""


class Dispatcher:
    """Lanes and workers of one consumer."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.partitions: dict[TopicPartition, Partition] = {}
        self.failure: HandlerError | None = None
        """Why the consumer stops, once an error was to stop it."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when room was made or the consumer must stop: the fetcher looks at its pauses."""
        self.measured = Measurements(work.metrics, topic=work.topic, group=work.group, consumer=work.name)
        self.parks = 0
        """How often a head was put off, ever."""
        self.on_restart: Callable[[TopicPartition], None] = lambda partition: None
        """Called when a partition is to be brought to its stored offset again."""
        self._ready: asyncio.Queue[Lane | Drain] = asyncio.Queue()
        self._stopping = False
        self._left: asyncio.Future[None] | None = None
        self._group = work.group.encode()
        self._drains: Drains | None = None
        if work.keyed is not None:
            self._drains = Drains(
                work, work.keyed, self.measured, offer=self._ready.put_nowait, stop_for=self._stop_for
            )

    # --- what comes in -----------------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """These are ours from now on."""
        for partition in partitions:
            added = self.partitions[partition] = Partition(partition, self.work.ordering)
            added.unplaced = self.work.offsets is not None
            if self._stopping:
                added.halt(closes_gaps=False)

    def add(self, partition: Partition, records: Sequence[InboundRecord]) -> None:
        """Records of an assigned partition, ascending, next after earlier ones."""
        if others := dead_letters.for_other_groups(records, self._group, is_retry=self.work.is_retry):
            partition.passed_over |= others
            self.measured.pass_over(partition.id, others)
        now = asyncio.get_running_loop().time()
        self.measured.fetched += len(records)
        for lane in partition.add(records, now):
            self._offer(lane)

    def _offer(self, lane: Lane) -> None:
        """Queue the lane for the workers if there is something to do now."""
        if lane.queued or lane.busy or lane.parked or not lane.records or not lane.partition.may_begin(lane):
            return
        if self.work.batch and not self._is_batch_ready(lane):
            return
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        lane.queued = True
        self._ready.put_nowait(lane)

    def _is_batch_ready(self, lane: Lane) -> bool:
        if (
            len(lane.records) >= self.work.max_batch
            or lane.splits
            or lane.settled
            or lane.doomed is not None
            or lane.kept is not None
            or lane.attempt
            or lane.waits
            or lane.partition.draining
        ):
            return True
        loop = asyncio.get_running_loop()
        due = lane.waiting_since + self.work.max_wait
        if loop.time() >= due:
            return True
        if lane.timer is None:
            lane.timer = loop.call_at(due, self._wake, lane)
        return False

    def _park(self, lane: Lane, delay: float) -> NoReturn:
        """Leave the lane and offer it again after `delay` seconds."""
        lane.parked = True
        lane.partition.parked += 1
        self.parks += 1
        lane.timer = self.work.clock.call_later(delay, partial(self._wake, lane))
        raise _Parked

    def _wake(self, lane: Lane) -> None:
        lane.timer = None
        if lane.parked:
            lane.parked = False
            lane.partition.parked -= 1
        self._offer(lane)

    # --- workers -----------------------------------------------------------------------------------------------

    async def work_on(self) -> None:
        """One worker: takes lanes in turn, for ever. Cancelled: the head being handled is not committed."""
        run = self._run_batches if self.work.batch else self._run_messages
        while True:
            lane = await self._ready.get()
            if isinstance(lane, Drain):
                await self._drain(lane)
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # as below
                    return
                continue
            lane.queued = False
            partition = lane.partition
            if not partition.may_begin(lane):
                continue
            lane.busy = True
            partition.busy += 1
            try:
                if lane.settled:
                    await self._settle_head(lane)
                if lane.doomed is not None:
                    await self._send_away(lane)
                if lane.kept is not None:
                    await self._keep_head(lane)
                if partition.held_up and not (lane.records and partition.waiting.holds(lane.records[0])):
                    self._has_room(partition)
                await run(lane)
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]  # a worker is a task
                    return  # a handler has swallowed the cancellation that was meant for both
            except _Parked:
                pass
            except Exception as error:
                # Nothing here is meant to raise. Stopping in front of the message loses nothing, and says where.
                if not lane.records:
                    raise
                self._stop_for(lane.records[0], (), error, lane.attempt + 1)
            finally:
                lane.busy = False
                self._leave(partition)
                if partition.halted:
                    self._close_gaps(partition)
                self._offer(lane)
                self.on_change()

    async def _drain(self, drain: Drain) -> None:
        assert self._drains is not None
        partition = drain.partition
        partition.busy += 1
        try:
            await self._drains.run(drain)
        finally:
            self._leave(partition)
            self.on_change()

    def _leave(self, partition: Partition) -> None:
        partition.busy -= 1
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    async def _run_messages(self, lane: Lane) -> None:
        tracing = self.work.tracing
        if tracing.enabled:
            with tracing.unsampled():  # those that are sampled get a span of their own within
                await self._handle_each(lane, tracing.samples)
        else:
            await self._handle_each(lane, None)

    async def _handle_each(
        self, lane: Lane, samples: Callable[[Sequence[tuple[str, bytes | None]]], bool] | None
    ) -> None:
        """Handle what waits in the lane. The loop is the path of every message: it does nothing but the call.

        Args:
            samples: Whether a message gets a span; None: none does.
        """
        work, partition = self.work, lane.partition
        decode_payload, decode_key, unknown_writer = work.decoding.payload, work.decoding.key, work.decoding.unknown
        call = work.call
        logged = logs_messages()
        clock = time.perf_counter
        began = turn_began = clock()
        in_order = lane.is_whole_partition
        ended: list[InboundRecord] = partition.ended if in_order else []
        end = ended.append
        passed_over, waiting = partition.passed_over, partition.waiting
        # What is passed over later is not in `records`; keys begin to wait when a message of this lane has failed.
        is_special = work.is_retry or bool(passed_over) or bool(waiting)
        is_plain = in_order and not logged
        handled = 0
        timed = False
        message: Message[Any]
        records = tuple(lane.records)
        try:
            for start in range(0, len(records), _LOOK_EVERY):
                for record in records[start : start + _LOOK_EVERY]:
                    if partition.halted and record.offset >= partition.finish_below:
                        return
                    if is_special:
                        if record.offset in passed_over:
                            handled += self._settle(lane, ended)
                            await self._pass_over(lane, [record])
                            continue
                        if work.is_retry:
                            self._wait_until_due(lane, record)
                        if waiting and waiting.holds(record):
                            handled += self._settle(lane, ended)
                            await self._queue_up_head(lane)
                            return  # offered again at once
                    try:
                        if timed:
                            message = Message(record, decode_key(record.key), decode_payload(record.value))
                        else:  # the first of a slice is timed for all
                            decoding = clock()
                            message = Message(record, decode_key(record.key), decode_payload(record.value))
                            self.measured.decoded(clock() - decoding)
                            timed = True
                    except unknown_writer as unknown:
                        handled += self._settle(lane, ended)
                        await self._learn(lane, record, unknown)
                        return  # offered again at once
                    except Exception as error:
                        handled += self._settle(lane, ended)
                        await self._failed(lane, (record,), (), error, undecodable=True)
                        continue
                    try:
                        if samples is not None and samples(record.headers):
                            await traced_message(work, message, call, drawn=True)
                        else:
                            await call(message)
                    except asyncio.CancelledError as error:
                        raise_if_ours(error)
                        handled += self._settle(lane, ended)
                        await self._failed(lane, (record,), (message,), error)
                        is_special = is_special or bool(waiting)
                        continue
                    except Exception as error:
                        handled += self._settle(lane, ended)
                        await self._failed(lane, (record,), (message,), error)
                        is_special = is_special or bool(waiting)
                        continue
                    end(record)
                    if is_plain:
                        continue
                    if logged:
                        log_handled(work, (message,))
                    if not in_order:
                        handled += self._settle(lane, ended)
                if clock() - turn_began > _YIELD_AFTER:
                    handled += self._settle(lane, ended)
                    await asyncio.sleep(0)
                    turn_began = clock()
        finally:
            handled += self._settle(lane, ended)
            if handled:
                self._count_handled(handled, clock() - began)

    def _wait_until_due(self, lane: Lane, record: InboundRecord) -> None:
        """Raises `_Parked` if a message of a retry topic must still wait; those behind it are due later."""
        remaining = dead_letters.due(record) - self.work.clock.time()
        if remaining > 0:
            self._park(lane, remaining)

    @staticmethod
    def _settle(lane: Lane, ended: list[InboundRecord]) -> int:
        """Take what has ended off the lane; returns how many."""
        count = len(ended)
        if count:
            lane.partition.finished(lane, ended)
            ended.clear()
        return count

    async def _run_batches(self, lane: Lane) -> None:
        work = self.work
        if lane.partition.halted or not lane.records:
            return
        batch = list(islice(lane.records, lane.splits[-1] if lane.splits else work.max_batch))
        if lane.partition.passed_over:
            batch = await self._without_passed_over(lane, batch)
            if not batch:
                return  # offered again at once
        if work.is_retry:
            batch = batch[:1]  # each has a time of its own, and came here for an error of its own
            self._wait_until_due(lane, batch[0])
        rows: Sequence[RetryRow] = ()
        free = batch
        if lane.partition.waiting:
            batch, rows = await self._queue_up(lane, batch)
            if not batch:
                return  # offered again at once
            queued_up = {row.offset for row in rows}
            free = [record for record in batch if record.offset not in queued_up]
        began = time.perf_counter()
        messages, undecodable = await self._decode_batch(lane, free)
        if not messages:
            if undecodable is not None:
                await self._failed(lane, batch[:1], (), undecodable, undecodable=True)
            return
        self.measured.decoded((time.perf_counter() - began) / len(messages))
        if len(messages) < len(free):
            end = free[len(messages)].offset
            batch = [record for record in batch if record.offset < end]
            rows = [row for row in rows if row.offset < end]
        began = time.perf_counter()
        try:
            call = self._call_with(lane.partition, batch, rows) if rows else work.call
            if work.tracing.enabled:
                await traced_batch(work, messages, call)
            else:
                await call(messages)
        except asyncio.CancelledError as error:
            raise_if_ours(error)
            await self._failed(lane, batch, messages, error)
            return
        except Exception as error:
            if rows and _is_wanted(error):
                # It is said of the messages of the call, not of those that queue up among them: once more without.
                self._cut(lane, len(batch), sum(record.offset < rows[0].offset for record in batch))
                return
            await self._failed(lane, batch, messages, error)
            return
        self.measured.handled += len(messages)
        self.measured.processed(time.perf_counter() - began)
        if logs_messages():
            log_handled(work, messages)
        self._finished(lane, batch)
        if rows:
            self._has_queued_up(lane.partition, rows)

    async def _without_passed_over(self, lane: Lane, batch: list[InboundRecord]) -> list[InboundRecord]:
        """End those at the head that are not for us; the rest up to the next such one."""
        passed_over = lane.partition.passed_over
        head = list(takewhile(lambda record: record.offset in passed_over, batch))
        if head:
            await self._pass_over(lane, head)
        return list(takewhile(lambda record: record.offset not in passed_over, batch[len(head) :]))

    async def _pass_over(self, lane: Lane, records: Sequence[InboundRecord]) -> None:
        lane.partition.passed_over.difference_update(record.offset for record in records)
        await self._conclude(lane, records)

    async def _decode_batch(
        self, lane: Lane, batch: Sequence[InboundRecord]
    ) -> tuple[list[Message[Any]], Exception | None]:
        """Messages up to the first record that cannot be decoded, and why it cannot."""
        decoding = self.work.decoding
        decode_payload, decode_key = decoding.payload, decoding.key
        messages: list[Message[Any]] = []
        while len(messages) < len(batch):
            try:
                for record in islice(batch, len(messages), None):
                    # append, not a comprehension: what came before a bad record is kept
                    messages.append(  # noqa: PERF401
                        Message(record, decode_key(record.key), decode_payload(record.value))
                    )
            except decoding.unknown as unknown:
                if messages:
                    break
                if not await self._learn(lane, batch[0], unknown):
                    return [], None  # that record has ended
            except Exception as error:
                return messages, error
        return messages, None

    async def _conclude(self, lane: Lane, records: Sequence[InboundRecord]) -> None:
        """These records at the lane's head have ended, and no handler has stored that with its own rows.

        Raises `_Parked` where it must be stored and cannot be yet.
        """
        if self.work.offsets is None:
            self._finished(lane, records)
        else:
            lane.settled = len(records)
            await self._settle_head(lane)

    async def _settle_head(self, lane: Lane) -> None:
        offsets = self.work.offsets
        assert offsets is not None
        records = list(islice(lane.records, lane.settled))
        try:
            await offsets.settle(lane.partition.id, records[-1].offset + 1)
        except (MustReread, DeimosError) as error:
            self._not_stored(lane, error)
        lane.settled = 0
        self._finished(lane, records)

    def _not_stored(self, lane: Lane, error: Exception) -> NoReturn:
        """What was to be stored about the lane's head is not, or nobody knows."""
        first = lane.records[0]
        if isinstance(error, MustReread):
            self._reread(lane, first, error)
        if isinstance(error, NoRoom):
            self._wait_for_room(lane, error)
        if not (isinstance(error, DeimosError) and error.retriable):
            self._stop_for(first, (), error, lane.attempt)
            raise _Parked from error
        delay = backoff_delay(self.work.policy.backoff, lane.waits + 1, random.random())  # noqa: S311  # jitter
        self._wait(lane, first, delay, described(error))

    def _finished(self, lane: Lane, records: Sequence[InboundRecord]) -> None:
        """These records at the lane's head have ended, one way or another."""
        lane.partition.finished(lane, records)
        if self.work.batch:
            lane.waiting_since = asyncio.get_running_loop().time()
            if lane.splits:
                lane.splits[-1] -= len(records)
                if lane.splits[-1] <= 0:
                    lane.splits.pop()

    # --- what follows an error ---------------------------------------------------------------------------------

    async def _learn(self, lane: Lane, record: InboundRecord, unknown: Any) -> bool:
        """Fetch a writer's schema. False: it cannot be had, and the record at the lane's head has ended for that."""
        try:
            await self.work.decoding.learn(unknown)
        except DeimosError as error:
            await self._failed(lane, (record,), (), error, undecodable=not error.retriable)
            return False
        return True

    async def _failed(
        self,
        lane: Lane,
        records: Sequence[InboundRecord],
        messages: Sequence[Message[Any]],
        error: BaseException,
        *,
        undecodable: bool = False,
    ) -> None:
        """Do what the policy says with records at the lane's head.

        Returns when they have ended or were cut into parts; raises `_Parked` when the lane must be left.
        """
        work = self.work
        if isinstance(error, MustReread):
            self._reread(lane, records[0], error)
        if isinstance(error, NoRoom):
            self._wait_for_room(lane, error)
        attempt = lane.attempt + 1
        if isinstance(error, Refused):
            self._stop_for(records[0], messages, error.error, attempt)
            raise _Parked
        if lane.splits and len(records) > 1:
            # A part of a batch that has had its attempts gets one more, to show whether the bad record is in it. A
            # record that stands alone has attempts of its own: its neighbours may have been the bad ones.
            attempt = max(attempt, work.policy.attempts)
        first = records[0]
        decision = judge(
            work,
            self.measured,
            error,
            policy=work.policy,
            attempt=attempt,
            waits=lane.waits,
            record=first,
            messages=messages,
            undecodable=undecodable,
        )
        where = _place(first)
        text = f"{type(error).__name__}: {described(error)}"
        match decision:
            case Wait(delay):
                self._wait(lane, first, delay, text)
            case TryAgain(delay):
                lane.attempt, lane.waits = attempt, 0
                logger.warning(
                    "%s: %s failed in attempt %d of %d, next in %.2f s: %s",
                    work.name, where, attempt, work.policy.attempts, delay, text,
                    exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
                )  # fmt: skip
                self.measured.retries += 1
                self._park(lane, delay)
            case StopConsumer():
                self._stop_for(first, messages, error, attempt)
                raise _Parked
            case Defer() | Keep() | GiveUp() | PassOver() if len(records) > 1 and not _is_wanted(error):
                self._cut(lane, len(records), len(records) // 2)
                logger.warning(
                    "%s: %s and %d more failed (%s); tried in halves to find the bad ones",
                    work.name, where, len(records) - 1, text,
                )  # fmt: skip
            case PassOver():
                wanted = isinstance(error, Skip)
                logger.log(
                    logging.INFO if wanted else logging.WARNING,
                    "%s: %s skipped: %s", work.name, where, text,
                    exc_info=None if wanted else error,
                )  # fmt: skip
                self.measured.skipped += len(records)
                await self._conclude(lane, records)
            case Keep(given):
                lane.kept = self._kept(error, attempt, given)
                await self._keep_head(lane)
            case Defer() | GiveUp():
                lane.doomed = Doom(len(records), error, 0 if undecodable else attempt, isinstance(decision, Defer))
                await self._send_away(lane)

    def _wait(self, lane: Lane, first: InboundRecord, delay: float, why: str) -> NoReturn:
        """Put off the lane's head for its surroundings; no attempt is counted."""
        lane.waits += 1
        logger.warning("%s: %s waits %.2f s for its surroundings: %s", self.work.name, _place(first), delay, why)
        self.measured.waits += 1
        self._park(lane, delay)

    def _reread(self, lane: Lane, first: InboundRecord, why: MustReread) -> NoReturn:
        """Leave the partition, and begin it again at its stored offset; no attempt is counted."""
        logger.warning("%s: %s is left, and read again from the stored offset: %s", self.work.name, _place(first), why)
        self.measured.waits += 1
        self.parks += 1
        self.restart(lane.partition)
        raise _Parked from why

    def restart(self, partition: Partition) -> None:
        """Drop what is in hand of a partition, which goes on where its stored offset says.

        One that is being given up, or was, is left as it is.
        """
        if partition.halted or self.partitions.get(partition.id) is not partition:
            return
        partition.halt(closes_gaps=False)
        self._rest_no_more(partition)
        self.assign((partition.id,))
        self.on_restart(partition.id)

    @staticmethod
    def _cut(lane: Lane, count: int, first: int) -> None:
        """Try the first ones of so many records at the head by themselves, then the rest."""
        if lane.splits:
            lane.splits[-1] -= count
            if lane.splits[-1] <= 0:
                lane.splits.pop()
        lane.splits += [count - first, first]
        lane.attempt = lane.waits = 0

    def _stop_for(
        self, first: InboundRecord | Delivery, messages: Sequence[Message[Any]], error: BaseException, attempt: int
    ) -> None:
        where = _place(first)
        logger.error(
            "%s: stops at %s: %s: %s", self.work.name, where, type(error).__name__, described(error), exc_info=error
        )
        failure = HandlerError(
            f"consumer {self.work.name!r} stopped at {where} in attempt {attempt}: {type(error).__name__}: "
            f"{described(error)}",
            topic=first.topic,
            partition=first.partition,
            offset=first.offset,
            attempt=attempt,
        )
        failure.__cause__ = error
        if self.failure is None:
            self.failure = failure
            self.work.on_failure(error, messages)
        self._halt()
        self.on_change()

    async def _send_away(self, lane: Lane) -> None:
        """Send what is doomed to the retry or dead-letter topic; while the brokers are away the lane is parked."""
        work = self.work
        while (doom := lane.doomed) is not None:
            record = lane.records[0]
            try:
                topic = await send_away(work, record, doom)
            except DeimosError as failed:
                if not failed.retriable:
                    self._stop_for(record, (), failed, doom.attempts)
                    raise _Parked from failed
                lane.waits += 1
                delay = backoff_delay(work.policy.backoff, lane.waits, random.random())  # noqa: S311  # jitter
                logger.warning(
                    "%s: %s waits %.2f s to be sent away: %s", work.name, _place(record), delay, described(failed)
                )
                self._park(lane, delay)
            logger.log(
                logging.WARNING if doom.deferred else logging.ERROR,
                "%s: %s sent to %s: %s: %s",
                work.name, _place(record), topic, type(doom.error).__name__, described(doom.error),
                exc_info=None if isinstance(doom.error, DeadLetter) else doom.error,
            )  # fmt: skip
            if doom.deferred:
                self.measured.retries += 1
            else:
                self.measured.dead_lettered += 1
            lane.doomed = Doom(doom.count - 1, doom.error, doom.attempts, doom.deferred) if doom.count > 1 else None
            await self._conclude(lane, (record,))

    # --- messages that wait in the database --------------------------------------------------------------------

    def load(self, partition: Partition, rows: Sequence[WaitingRow]) -> None:
        """What the database holds of a partition that was just placed, and is to be tried again."""
        if self._drains is not None:
            self._drains.load(partition, rows)

    def _kept(self, error: BaseException, attempt: int, delay: float | None) -> Kept:
        work = self.work
        assert work.keyed is not None
        if delay is None:
            delay = backoff_delay(work.keyed.backoff, 1, random.random())  # noqa: S311  # jitter
        return Kept(error, attempt, delay, work.clock.time())

    async def _keep_head(self, lane: Lane) -> None:
        """Put the lane's head, whose attempts in place are used up, into the table.

        Raises:
            _Parked: There is no room, or the database is away.
        """
        work, record, kept = self.work, lane.records[0], lane.kept
        assert work.keyed is not None
        assert kept is not None
        try:
            row = await work.keyed.put_failed(lane.partition.id, record, kept, work.clock.time())
        except (MustReread, NoRoom, DeimosError) as error:
            self._not_stored(lane, error)
        lane.kept = None
        logger.warning(
            "%s: %s failed in attempt %d; it waits in kafka_retries, and so do later messages of its key; next attempt "
            "in %.2f s: %s: %s",
            work.name, _place(record), kept.attempts, kept.delay, type(kept.error).__name__, described(kept.error),
            exc_info=kept.error,
        )  # fmt: skip
        self._finished(lane, (record,))
        self._has_queued_up(lane.partition, [row])

    async def _queue_up_head(self, lane: Lane) -> None:
        """Put records at the lane's head, whose keys wait, behind the others. Raises as `_queue_up`."""
        waiting, passed_over = lane.partition.waiting, lane.partition.passed_over
        run = takewhile(
            lambda record: record.offset not in passed_over and waiting.holds(record),
            islice(lane.records, _MOST_QUEUED_UP),
        )
        await self._queue_up(lane, list(run))

    async def _queue_up(self, lane: Lane, batch: list[InboundRecord]) -> tuple[list[InboundRecord], Sequence[RetryRow]]:
        """Records at the lane's head of which some may be of keys that wait: see `KeyedRetries.queue_up`.

        Raises:
            _Parked: There is no room for the first one, or the database is away.
        """
        work, partition = self.work, lane.partition
        assert work.keyed is not None
        try:
            rest, rows = await work.keyed.queue_up(partition.id, partition.waiting, batch, work.clock.time())
        except (MustReread, NoRoom, DeimosError) as error:
            self._not_stored(lane, error)
        if not rest:
            self._finished(lane, batch[: len(rows)])
            self._has_queued_up(partition, rows)
        return rest, rows

    def _call_with(self, partition: Partition, batch: Sequence[InboundRecord], rows: Sequence[RetryRow]) -> Call:
        """The handler's call for a batch of which these rows are put into the table. Raises MustReread."""
        keyed = self.work.keyed
        assert keyed is not None
        ending = keyed.passing(partition.id, batch[0].offset, batch[-1].offset + 1, rows)
        return partial(keyed.call, ending=ending)

    def _rest_no_more(self, partition: Partition) -> None:
        if self._drains is not None:
            self._drains.forget(partition)

    def _has_queued_up(self, partition: Partition, rows: Sequence[RetryRow]) -> None:
        assert self._drains is not None
        self._has_room(partition)
        self._drains.add(partition, rows)

    def _wait_for_room(self, lane: Lane, why: NoRoom) -> NoReturn:
        """Leave the lane until the next look for room in the table."""
        partition = lane.partition
        if not partition.held_up:
            partition.held_up = True
            logger.warning("%s: %s waits, and its partition with it: %s", self.work.name, _place(lane.records[0]), why)
        lane.waits += 1
        self.measured.waits += 1
        self._park(lane, _ROOM_INTERVAL)

    def _has_room(self, partition: Partition) -> None:
        if partition.held_up:
            partition.held_up = False
            logger.info("%s: %s[%d] goes on, there is room in kafka_retries", self.work.name, *partition.id)

    @property
    def waiting(self) -> int:
        """Messages that wait in the database, of the assigned partitions."""
        return sum(partition.waiting.rows for partition in self.partitions.values())

    @property
    def tries(self) -> int:
        """How often one of them was looked at, ever."""
        return 0 if self._drains is None else self._drains.tries

    @property
    def at_rest(self) -> bool:
        """Whether nothing is being handled or about to be: what is in hand, if anything, waits for a timer."""
        return self._ready.empty() and not any(partition.busy for partition in self.partitions.values())

    # --- giving up partitions, stopping ------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Begin nothing new. At-most-once consumers first handle what they have committed already."""
        if self.work.delivery == "at_most_once":
            for partition in self.partitions.values():
                self._drain_all(partition)
        self._halt()

    def _halt(self) -> None:
        self._stopping = True
        for partition in self.partitions.values():
            if not partition.draining or self.failure is not None:
                partition.halt(closes_gaps=self.failure is None)
                self._close_gaps(partition)

    def _close_gaps(self, partition: Partition) -> None:
        """Go on with heads below what has ended already, which else would be handled again by the next owner."""
        partition.find_gaps()
        for lane in partition.lanes():
            self._offer(lane)

    def close(self, partitions: Iterable[TopicPartition], *, lost: bool = False) -> list[Partition]:
        """Begin nothing new of these partitions, but what is below something that has ended; returns those of ours.

        Args:
            lost: They are somebody else's by now: begin nothing at all.
        """
        given_up = [self.partitions[partition] for partition in partitions if partition in self.partitions]
        for partition in given_up:
            if self.work.delivery == "at_most_once":
                self._drain_all(partition)
            else:
                partition.halt(closes_gaps=not lost and self.failure is None)
                self._close_gaps(partition)
        return given_up

    def _drain_all(self, partition: Partition) -> None:
        partition.draining = True
        for lane in partition.lanes():
            self._offer(lane)

    async def ended(self, partitions: Iterable[Partition], timeout: float) -> bool:
        """Wait until nothing of these partitions is being handled; False if the time ran out."""
        waiting = list(partitions)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while any(
            part.busy or part.has_gaps or (part.draining and part.buffered and not self.failure) for part in waiting
        ):
            remaining = deadline - loop.time()
            if remaining <= 0:
                for part in waiting:
                    part.halt(closes_gaps=False)
                return False
            if self._left is None or self._left.done():
                self._left = loop.create_future()
            await asyncio.wait([self._left], timeout=remaining)
        return True

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are not ours any more; what of them was not begun is dropped."""
        for partition in partitions:
            found = self.partitions.pop(partition, None)
            if found is not None:
                found.halt(closes_gaps=False)
                self._rest_no_more(found)

    # --- telling -----------------------------------------------------------------------------------------------

    def _count_handled(self, count: int, seconds: float) -> None:
        self.measured.handled += count
        self.measured.processed(seconds / count)


def _is_wanted(error: BaseException) -> bool:
    """Whether the handler itself has said what becomes of its messages."""
    return isinstance(error, (Skip, DeadLetter))


def _place(record: InboundRecord | Delivery) -> str:
    return f"{record.topic}[{record.partition}]@{record.offset}"

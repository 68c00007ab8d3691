"""Trying the messages that wait in the table `kafka_retries`, key by key, beside what comes from the topic.

The workers of the dispatcher do it, so that no more handlers run at once than the consumer's `concurrency` says. One of
them, if there are several, never does: it is always there for what comes from the topic. Of each key only the head is
tried; a chain is resting (a timer brings it back when its head is due), in line, or with a worker.

What an attempt has led to is kept in memory until the table has it: while the database is away, nothing is tried anew
that was tried already.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from deimos_async.consuming.burying import send_away
from deimos_async.consuming.calling import log_handled, logs_messages, traced_batch, traced_message
from deimos_async.consuming.judging import judge, raise_if_ours
from deimos_async.consuming.keyed import KeyedRetries, failure_of
from deimos_async.consuming.lanes import Doom, Partition
from deimos_async.consuming.measuring import Measurements
from deimos_async.consuming.on_error import (
    DeadLetter,
    PassOver,
    Retry,
    Skip,
    StopConsumer,
    TryAgain,
    Wait,
    backoff_delay,
)
from deimos_async.consuming.stored_offsets import MustReread, Refused
from deimos_async.consuming.waiting import Chain, Verdict, Waiting
from deimos_async.consuming.work import Work
from deimos_async.database.protocol import RetryRow, WaitingRow
from deimos_async.errors import DeimosError
from deimos_async.message import Delivery, InboundRecord, Message
from deimos_async.plain_text import described

__all__ = ["Drain", "Drains", "StopFor"]

logger = logging.getLogger("deimos_async.consuming")


class Drain(NamedTuple):
    """A chain whose head is due, for a worker."""

    partition: Partition
    chain: Chain


class StopFor(Protocol):
    """Stops the consumer."""

    def __call__(
        self, first: InboundRecord | Delivery, messages: Sequence[Message[Any]], error: BaseException, attempt: int
    ) -> None:
        """For an error of the message that lies there."""


class _Stopped(Exception):
    """The consumer stops."""


class _Later(Exception):
    """The surroundings were not there; the same attempt is made again after `delay` seconds."""

    def __init__(self, delay: float, why: BaseException) -> None:
        super().__init__(delay)
        self.delay = delay
        self.why = why


class Drains:
    """Brings the waiting messages of one consumer's partitions to its workers.

    Args:
        keyed: The table; it is also in `work`.
        offer: Puts a chain before the workers.
        stop_for: Stops the consumer.
    """

    def __init__(
        self,
        work: Work,
        keyed: KeyedRetries,
        measured: Measurements,
        *,
        offer: Callable[[Drain], None],
        stop_for: StopFor,
    ) -> None:
        self._work = work
        self._keyed = keyed
        self._measured = measured
        self._offer = offer
        self._stop_for = stop_for
        self._most = max(1, work.concurrency - 1)
        self._policy = replace(work.policy, attempts=work.policy.attempts + keyed.attempts, then="dead_letter")
        self._line: deque[Drain] = deque()
        self._active = 0
        """Chains that were offered and are not back yet. While none is, the line is empty."""
        self.tries = 0
        """How often a head was looked at, ever."""

    # --- coming and going --------------------------------------------------------------------------------------

    def load(self, partition: Partition, rows: Iterable[WaitingRow]) -> None:
        """What the table holds of a partition that was placed; ascending by offset."""
        self.forget(partition)
        partition.waiting = Waiting()
        now = self._work.clock.time()
        for row in rows:
            chain, is_new = partition.waiting.add(row.offset, row.key_hash)
            if is_new:
                self._rest(partition, chain, row.next_at - now)
        if partition.waiting:
            logger.info(
                "%s: of %s[%d] wait %d messages in kafka_retries (keys: %d)",
                self._work.name, *partition.id, partition.waiting.rows, partition.waiting.keys,
            )  # fmt: skip

    def add(self, partition: Partition, rows: Iterable[RetryRow]) -> None:
        """These rows were added to the table."""
        now = self._work.clock.time()
        for row in rows:
            chain, is_new = partition.waiting.add(row.offset, row.key_hash)
            self._measured.kept += 1
            if is_new:
                self._rest(partition, chain, row.next_at - now)

    @staticmethod
    def forget(partition: Partition) -> None:
        """It is not ours any more; chains that workers have end by themselves."""
        for chain in partition.waiting.chains():
            if chain.timer is not None:
                chain.timer.cancel()
                chain.timer = None

    def _rest(self, partition: Partition, chain: Chain, delay: float) -> None:
        """Bring the chain into line after so many seconds; at once where there are none."""
        if partition.halted:
            return
        if delay > 0:
            chain.timer = self._work.clock.call_later(delay, partial(self._is_due, partition, chain))
        else:
            self._is_due(partition, chain)

    def _is_due(self, partition: Partition, chain: Chain) -> None:
        chain.timer = None
        self._line.append(Drain(partition, chain))
        self._feed()

    def _feed(self) -> None:
        while self._line and self._active < self._most:
            drain = self._line.popleft()
            if not drain.partition.halted:
                self._active += 1
                self._offer(drain)

    # --- one head ----------------------------------------------------------------------------------------------

    async def run(self, drain: Drain) -> None:
        """Try the head of a chain that was offered: done by a worker, which is busy at the partition meanwhile.

        Cancelled: nothing of it is committed, as far as is known; the head is looked at again.
        """
        partition, chain = drain
        delay: float | None = 0.0
        try:
            if partition.halted:
                delay = None
            else:
                self.tries += 1
                delay = await self._get_on(partition, chain)
        except _Stopped:
            delay = None
        except Exception as error:
            # Nothing here is meant to raise. Stopping loses nothing, and says where.
            self._stop_for(Delivery(*partition.id, chain.offsets[0]), (), error, 1)
            delay = None
        finally:
            self._active -= 1
            if delay is not None and chain.offsets:
                self._rest(partition, chain, delay)
            self._feed()

    async def _get_on(self, partition: Partition, chain: Chain) -> float:
        """Do what is next with the head; returns the seconds until the chain is to be looked at again."""
        keyed, offset = self._keyed, chain.offsets[0]
        try:
            row = await keyed.read(partition.id, offset)
            if row is None:  # somebody else has handled it, or deleted it by hand
                self._end(partition, chain, offset)
                return 0.0
            verdict = chain.verdict
            if verdict is None or (verdict.offset, verdict.before) != (offset, row.attempts):
                early = row.next_at - self._work.clock.time()
                if early > 0:
                    return early
                verdict = chain.verdict = await self._try(partition, chain, row)
            if verdict is None:
                self._measured.drained += 1
                self._end(partition, chain, offset)
                return 0.0
            delay = await self._carry_out(partition, chain, row, verdict)
            chain.verdict = None
            chain.waits = 0
            return delay
        except _Later as later:
            return self._waits(partition, offset, later.delay, later.why)
        except MustReread as error:
            chain.verdict = None
            return self._wait(chain, partition, offset, error)
        except DeimosError as error:
            if not error.retriable:
                self._stop_for(Delivery(*partition.id, offset), (), error, 1)
                raise _Stopped from error
            return self._wait(chain, partition, offset, error)

    def _wait(self, chain: Chain, partition: Partition, offset: int, why: BaseException) -> float:
        chain.waits += 1
        delay = backoff_delay(self._work.policy.backoff, chain.waits, random.random())  # noqa: S311  # jitter
        return self._waits(partition, offset, delay, why)

    def _waits(self, partition: Partition, offset: int, delay: float, why: BaseException) -> float:
        self._measured.waits += 1
        logger.warning(
            "%s: %s[%d]@%d goes on waiting for %.2f s: %s: %s",
            self._work.name, *partition.id, offset, delay, type(why).__name__, described(why),
        )  # fmt: skip
        return delay

    def _end(self, partition: Partition, chain: Chain, offset: int) -> None:
        chain.verdict = None
        chain.waits = 0
        if not partition.waiting.remove(chain, offset):
            logger.info("%s: no message of the key of %s[%d]@%d waits any more", self._work.name, *partition.id, offset)

    async def _try(self, partition: Partition, chain: Chain, row: RetryRow) -> Verdict | None:
        """One attempt. None: the message was handled, and its row is gone.

        Raises:
            MustReread: The row is another one by now; what was written is rolled back.
            DeimosError: `retriable`: the surroundings are away.
            _Stopped: The consumer stops for it.
        """
        messages: tuple[Message[Any], ...] = ()
        undecodable = True
        try:
            message = await self._decoded(row)
            messages, undecodable = (message,), False
            began = time.perf_counter()
            await self._call(message, row)
        except MustReread:
            raise
        except asyncio.CancelledError as error:
            raise_if_ours(error)
            return self._judge(partition, chain, row, messages, error, undecodable=False)
        except Exception as error:
            return self._judge(partition, chain, row, messages, error, undecodable=undecodable)
        self._measured.handled += 1
        self._measured.processed(time.perf_counter() - began)
        if logs_messages():
            log_handled(self._work, messages)
        logger.info(
            "%s: %s[%d]@%d was handled after %d failed attempts",
            self._work.name, *partition.id, row.offset, row.attempts,
        )  # fmt: skip
        return None

    async def _decoded(self, row: RetryRow) -> Message[Any]:
        decoding = self._work.decoding
        while True:
            try:
                return Message(row, decoding.key(row.key), decoding.payload(row.value))
            except decoding.unknown as unknown:
                await decoding.learn(unknown)

    async def _call(self, message: Message[Any], row: RetryRow) -> None:
        work = self._work
        call = partial(self._keyed.call, ending=self._keyed.draining(row))
        if work.batch:
            if work.tracing.enabled:
                await traced_batch(work, [message], call)
            else:
                await call([message])
        elif work.tracing.enabled:
            await traced_message(work, message, call, drawn=False)
        else:
            await call(message)

    def _judge(
        self,
        partition: Partition,
        chain: Chain,
        row: RetryRow,
        messages: Sequence[Message[Any]],
        error: BaseException,
        *,
        undecodable: bool,
    ) -> Verdict:
        work = self._work
        attempt = row.attempts + 1
        if isinstance(error, Refused):
            self._stop_for(row, messages, error.error, attempt)
            raise _Stopped from error
        if isinstance(error, DeimosError) and error.retriable:
            undecodable = False  # its schema cannot be had now
        decision = judge(
            work,
            self._measured,
            error,
            policy=self._policy,
            attempt=attempt,
            waits=chain.waits,
            record=row,
            messages=messages,
            undecodable=undecodable,
        )
        match decision:
            case Wait(delay):
                chain.waits += 1
                raise _Later(delay, error) from error
            case TryAgain(delay):
                if not isinstance(error, Retry) and attempt >= work.policy.attempts:
                    nth = attempt - work.policy.attempts + 1
                    delay = backoff_delay(self._keyed.backoff, nth, random.random())  # noqa: S311  # jitter
                return Verdict("postpone", row.offset, row.attempts, error, attempt, delay)
            case StopConsumer():
                self._stop_for(row, messages, error, attempt)
                raise _Stopped from error
            case PassOver():
                return Verdict("drop", row.offset, row.attempts, error, attempt)
            case _:
                return Verdict("bury", row.offset, row.attempts, error, 0 if undecodable else attempt)

    async def _carry_out(self, partition: Partition, chain: Chain, row: RetryRow, verdict: Verdict) -> float:
        """Let the table have what was decided; returns the seconds until the chain is to be looked at again.

        Raises:
            MustReread: Somebody else has decided about the message.
            DeimosError: The database or the brokers are away (`retriable`), or the dead letter cannot be sent.
        """
        work, measured = self._work, self._measured
        place = (*partition.id, row.offset)
        text = f"{type(verdict.error).__name__}: {described(verdict.error)}"
        match verdict.what:
            case "postpone":
                now = work.clock.time()
                failure = failure_of(verdict.error, now)
                await self._keyed.postpone(row, next_at=now + verdict.delay, failure=failure)
                logger.warning(
                    "%s: %s[%d]@%d failed in attempt %d of %d, next in %.2f s: %s",
                    work.name, *place, verdict.attempts, self._policy.attempts, verdict.delay, text,
                    exc_info=verdict.error if logger.isEnabledFor(logging.DEBUG) else None,
                )  # fmt: skip
                return verdict.delay
            case "bury":
                await self._bury(row, verdict)
                await self._keyed.drop(row)
                measured.dead_lettered += 1
                measured.given_up += 1
            case "drop":
                await self._keyed.drop(row)
                measured.skipped += 1
                wanted = isinstance(verdict.error, Skip)
                logger.log(
                    logging.INFO if wanted else logging.WARNING,
                    "%s: %s[%d]@%d skipped: %s", work.name, *place, text,
                    exc_info=None if wanted else verdict.error,
                )  # fmt: skip
        self._end(partition, chain, row.offset)
        return 0.0

    async def _bury(self, row: RetryRow, verdict: Verdict) -> None:
        if verdict.is_sent:
            return
        first = None if row.failure is None else row.failure.first_at
        topic = await send_away(self._work, row, Doom(1, verdict.error, verdict.attempts, first_failed_at=first))
        verdict.is_sent = True
        logger.error(
            "%s: %s[%d]@%d sent to %s: %s: %s",
            self._work.name, row.topic, row.partition, row.offset, topic,
            type(verdict.error).__name__, described(verdict.error),
            exc_info=None if isinstance(verdict.error, DeadLetter) else verdict.error,
        )  # fmt: skip

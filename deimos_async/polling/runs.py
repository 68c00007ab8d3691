"""One run of a poller, under its lease: page after page until nothing is left, each acknowledged before it counts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from deimos_async.database.polling.pages import PolledTable
from deimos_async.database.polling.protocol import Bounds, FailedRow, PollStore, Position
from deimos_async.errors import DatabaseError
from deimos_async.events import EventBus
from deimos_async.models.columns import state_of
from deimos_async.models.producer import ModelProducer
from deimos_async.plain_text import class_path, described
from deimos_async.polling import cursor
from deimos_async.polling.poller import PlannedPoller
from deimos_async.polling.sending import RowSender, Unsent, spoken
from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics

__all__ = ["Counts", "Lease", "LeaseLost", "Polling", "RunOptions"]

logger = logging.getLogger("deimos_async.polling")

_FIRST_RETRY = 60.0
"""Seconds until a row that could not be sent is tried again; doubled with each attempt."""
_LAST_RETRY = 3600.0


class LeaseLost(Exception):
    """Another worker has the poller, or may have it."""


class Lease(NamedTuple):
    """That the poller is this worker's."""

    epoch: int
    check: Callable[[], None]
    """Raises what is to end the run: LeaseLost, or that the application stops."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What all pollers of an application have in common.

    Attributes:
        batch_rows: Most rows of a page.
        overlap: Seconds that are read again where open transactions cannot be seen.
        max_failures: Most rows of a poller that wait as they could not be sent.
    """

    batch_rows: int
    overlap: float
    max_failures: int


@dataclass(slots=True)
class Counts:
    """What a run has done. Source: Deimos 2.6, its counters of a poller's status."""

    batches: int = 0
    batches_with_errors: int = 0
    rows: int = 0
    """Rows that were read and sent, or tried."""
    end: datetime | None = None
    """Up to when rows were read."""
    is_certain: bool = True
    """False: open transactions could not be seen."""


class _Page(NamedTuple):
    session: AsyncSession
    rows: Sequence[_Row]


class _Row(NamedTuple):
    record: Any
    """The object, or its attributes."""
    time: Any
    version: Any


@dataclass(slots=True)
class Polling:
    """A poller at work in this process; it lives longer than its runs.

    Args:
        ahead: Seconds by which time is ahead of the database's, in tests.
        pause: Waits so many seconds, and raises what is to end the run.
        backend: Name of the backend of a producer, where it is not its usual one.
    """

    planned: PlannedPoller
    engine: AsyncEngine
    store: PollStore
    options: RunOptions
    metrics: Metrics
    events: EventBus
    ahead: Callable[[], float]
    pause: Callable[[float], Awaitable[None]]
    backend: Callable[[ModelProducer[Any]], str | None]
    table: PolledTable = field(init=False)
    sender: RowSender = field(init=False)
    failed: dict[str, FailedRow] = field(init=False, default_factory=dict)
    """Rows that wait as they could not be sent, by their keys; as of the last run here."""
    left: set[str] = field(init=False, default_factory=set)
    """By state: keys of rows that the last run has read and not marked."""
    runs: int = field(init=False, default=0)
    sent_rows: int = field(init=False, default=0)
    position: Position | None = field(init=False, default=None)
    _sent: cursor.Sent = field(init=False, default_factory=cursor.Sent)
    _digits: int | None = field(init=False, default=None)
    _attributes: tuple[str, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        planned, spec = self.planned, self.planned.spec
        self.table = PolledTable(
            planned.mapper, self.engine.dialect, time=spec.timestamp_column, key=planned.columns.key
        )
        # Objects are what reading costs most, so they are made only for those who want them.
        columns = planned.columns if all(producer._takes_attributes for producer in planned.producers) else None
        self._attributes = None if columns is None else columns.names
        self.sender = RowSender(
            planned.name, retries=spec.retries, pause=self.pause, backend=self.backend, columns=columns
        )

    @property
    def name(self) -> str:
        """The poller's."""
        return self.planned.name

    @property
    def _tags(self) -> dict[str, str]:
        return {"poller": self.name}

    async def add(self) -> None:
        """Make the poller's row in the database, unless there is one."""
        planned, spec = self.planned, self.planned.spec
        await self.store.add(
            planned.name,
            producer=type(planned.producers[0]).__name__,
            known_as=planned.known_as if spec.mode == "time" and not spec.full_table else (),
            at_end=spec.mode == "time" and not spec.start_from_beginning,
        )

    async def run(self, lease: Lease, position: Position | None) -> Counts:
        """Read and send until nothing is left.

        Args:
            position: The cursor, as the lease was taken.

        Raises:
            LeaseLost: The poller is another worker's by now.
            DatabaseError: The cursor cannot be saved, or too many rows wait as they could not be sent.
            sqlalchemy.exc.DBAPIError: Rows cannot be read.
        """
        self.failed = {row.key: row for row in await self.store.failures(self.name, self.ahead())}
        await self._retry_failed(lease)
        table = self.planned.mapper.local_table
        if self._digits is None:
            self._digits = await self.store.digits(table.schema, table.name, self.table.time_name)  # type: ignore[attr-defined]
        counts = await (self._by_time if self.planned.spec.mode == "time" else self._by_state)(lease, position)
        self.runs += 1
        self.metrics.gauge(names.POLLER_FAILED_ROWS, len(self.failed) + len(self.left), tags=self._tags)
        log = logger.info if counts.rows else logger.debug
        log(
            "poller %s [%s]: complete up to %s; %d batches, %d batches with errors, %d rows",
            self.name,
            self.planned.topics,
            counts.end,
            counts.batches,
            counts.batches_with_errors,
            counts.rows,
        )
        return counts

    # --- by time -----------------------------------------------------------------------------------------------

    async def _by_time(self, lease: Lease, position: Position | None) -> Counts:
        spec = self.planned.spec
        bounds = self._shifted(await self.store.bounds())
        assert self._digits is not None
        end = cursor.next_end(bounds, delay=spec.delay_time, digits=self._digits)
        counts = Counts(end=end, is_certain=bounds.is_certain)
        if not cursor.behind(position, bounds.now):
            assert position is not None
            logger.error(
                "poller %s: its cursor %s is in the future of the database's clock (%s), which was set back; it goes "
                "back, too, and rows may be sent again",
                self.name,
                position.time,
                bounds.now,
            )
            position = cursor.rewound(bounds.now, spec.delay_time + self.options.overlap)
        self.position = position
        start = position
        overlaps = not bounds.is_certain and not spec.full_table
        if overlaps and position is not None:
            start = cursor.rewound(cursor.moment(position.time), self.options.overlap)
            self._sent.forget_before(cursor.moment(start.time))
        logger.debug("poller %s: reads from %s to %s", self.name, start, end)
        next_page: asyncio.Task[_Page] | None = None
        try:
            while True:
                lease.check()
                page = await (next_page or self._open(start, end))
                next_page = None
                async with page.session:
                    if not page.rows:
                        break
                    start = self._position(page.rows[-1])
                    if len(page.rows) == self.options.batch_rows:
                        # The database works while the messages of this page are made and are on their way.
                        next_page = asyncio.create_task(self._open(start, end), name=f"poller {self.name} next page")
                    await self._send_page(page, counts, overlaps)
                if self.position is None or cursor.moment(start.time) >= cursor.moment(self.position.time):
                    await self._save(lease, start)
        finally:
            if next_page is not None:
                await _abandon(next_page)
        if spec.full_table:
            await self._save(lease, None)  # the next run begins at the beginning
        self.metrics.gauge(names.POLLER_LAG, (bounds.now - end).total_seconds(), tags=self._tags)
        return counts

    def _behind(self, position: Position | None) -> ColumnElement[bool] | None:
        if position is None:
            return None
        return self.table.after(position.time, None if position.key is None else cursor.read_key(position.key))

    def _shifted(self, bounds: Bounds) -> Bounds:
        ahead = timedelta(seconds=self.ahead())
        return Bounds(bounds.now + ahead, None if bounds.oldest is None else bounds.oldest + ahead, bounds.is_certain)

    async def _save(self, lease: Lease, position: Position | None) -> None:
        if not await self.store.save(self.name, lease.epoch, position):
            raise LeaseLost
        self.position = position

    async def _open(self, start: Position | None, end: datetime) -> _Page:
        """Read a page; its session is open."""
        before, after = self.table.before(end), self._behind(start)
        session = AsyncSession(self.engine, expire_on_commit=False)
        try:
            return _Page(session, await self._read(session, [before] if after is None else [after, before]))
        except BaseException:
            await session.close()
            raise

    async def _send_page(self, page: _Page, counts: Counts, overlaps: bool) -> None:
        new = [row for row in page.rows if not self._was_sent(row)] if overlaps else page.rows
        if new:
            unsent = await self._send(page.session, new, self.planned.producers, counts)
            await self._remember(new, unsent, self.planned.producers)
        if overlaps:
            for row in new:
                self._sent.add(self._key(row.record), self.table.text(row.time))

    def _was_sent(self, row: _Row) -> bool:
        return self._sent.has(self._key(row.record), self.table.text(row.time))

    def _position(self, row: _Row) -> Position:
        return Position(self.table.text(row.time), self._key(row.record))

    # --- by state ----------------------------------------------------------------------------------------------

    async def _by_state(self, lease: Lease, position: Position | None) -> Counts:
        assert self._digits is not None
        bounds = self._shifted(await self.store.bounds())
        counts = Counts(end=bounds.now)
        # Not the present tick: a change within it could not be told from the one that was read, where the time is the
        # version. What changes later waits for the next run, so that one row cannot keep this one going.
        conditions = [*self._pending(), self.table.before(cursor.floor(bounds.now, self._digits))]
        left: set[str] = set()
        start: Position | None = None
        while True:
            lease.check()
            after = self._behind(start)
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                rows = await self._read(session, conditions if after is None else [*conditions, after], version=True)
                if not rows:
                    break
                unsent = await self._send(session, rows, self.planned.producers, counts)
            bad = {self._key(each.record) for each in unsent}
            good = [row for row in rows if self._key(row.record) not in bad] if bad else rows
            await self._mark(good, bounds.now, is_published=True)
            if self.planned.spec.failed_state is None:
                left |= bad
            else:
                marked = [row for row in rows if self._key(row.record) in bad]
                await self._mark(marked, bounds.now, is_published=False)
            start = self._position(rows[-1])
        self.left = left
        return counts

    def _pending(self) -> list[ColumnElement[bool]]:
        """Rows that are not marked as sent or failed. Who writes a `poll_query` knows other states, too."""
        spec = self.planned.spec
        if spec.state_column is None or self.planned.has_query:
            return []
        ends = [state for state in (spec.published_state, spec.failed_state) if state is not None]
        return [self.table.unfinished(self.planned.column(spec.state_column), ends)]

    async def _mark(self, rows: Sequence[_Row], now: datetime, *, is_published: bool) -> None:
        if not rows:
            return
        spec = self.planned.spec
        column = self.planned.column
        values: dict[str, Any] = {column(spec.timestamp_column).key: self.table.value(now)}
        state = spec.published_state if is_published else spec.failed_state
        if spec.state_column is not None and state is not None:
            values[column(spec.state_column).key] = state
        if spec.publish_timestamp_column is not None and is_published:
            values[column(spec.publish_timestamp_column).key] = self.table.value(now)
        marked = await self.table.mark(self.engine, [(self._keys(row.record), row.version) for row in rows], values)
        if marked < len(rows):
            logger.debug("poller %s: %d rows have changed since they were read", self.name, len(rows) - marked)

    # --- by key ------------------------------------------------------------------------------------------------

    async def resend(self, after: str | None, last: str | None) -> tuple[int, str | None]:
        """Send the next page of rows behind a key, in the order of keys, and again what has changed meanwhile.

        The poller may have sent a row's change before this sends the row as it was. So rows are read again when they
        were sent, until none has another time than it had: then what was sent last is what the row says, and what
        changes later is sent later, by the poller. Rows of the present tick and of open transactions are its business.

        Returns:
            How many rows there were, and the last one's key; (0, None) at the end.
        """
        table = self.table
        name = self.planned.mapper.local_table
        if self._digits is None:
            self._digits = await self.store.digits(name.schema, name.name, table.time_name)  # type: ignore[attr-defined]
        end = cursor.next_end(
            self._shifted(await self.store.bounds()), delay=self.planned.spec.delay_time, digits=self._digits
        )
        conditions = [table.before(end)]
        if after is not None:
            conditions.append(table.beyond(cursor.read_key(after)))
        if last is not None:
            conditions.append(table.up_to(cursor.read_key(last)))
        counts, key = 0, None
        found, by_key = conditions, True
        times: dict[str, Any] = {}
        while True:
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                rows = await self._read(session, found, by_key=by_key)
                if by_key:
                    counts, key = len(rows), self._key(rows[-1].record) if rows else None
                rows = [row for row in rows if times.get(self._key(row.record)) != row.time]
                if not rows:
                    return counts, key
                unsent = await self._send(session, rows, self.planned.producers)
                await self._remember(rows, unsent, self.planned.producers)
            times = {self._key(row.record): row.time for row in rows}
            found, by_key = [table.having([cursor.read_key(each) for each in times])], False

    # --- reading and sending -----------------------------------------------------------------------------------

    def _query(self) -> Select[Any]:
        return self.planned.poller.poll_query(self.table.select())

    async def _read(
        self,
        session: AsyncSession,
        conditions: Sequence[ColumnElement[bool]],
        *,
        version: bool = False,
        by_key: bool = False,
    ) -> list[_Row]:
        names_read = self._attributes
        query = self.table.page(
            self._query().where(*conditions),
            limit=self.options.batch_rows,
            attributes=names_read,
            version=version,
            by_key=by_key,
        )
        found = (await session.execute(query)).unique().all()
        # No transaction stays open while messages are on their way; what was loaded stays loaded.
        await session.commit()
        if names_read is None:
            return [_Row(row[0], row[-2], row[-1]) if version else _Row(row[0], row[-1], None) for row in found]
        with_aliases = self.planned.columns.with_aliases
        records = [with_aliases(dict(zip(names_read, row, strict=False))) for row in found]
        times = [(row[-2], row[-1]) if version else (row[-1], None) for row in found]
        return [_Row(record, *time) for record, time in zip(records, times, strict=True)]

    def _keys(self, record: Any) -> tuple[Any, ...]:
        state = state_of(record)
        if state is None:
            return tuple(record[name] for name in self.planned.columns.key)
        assert state.identity is not None  # it was read; a rollback takes its attributes, but not this
        return tuple(state.identity)

    def _key(self, record: Any) -> str:
        return cursor.write_key(self._keys(record))

    async def _send(
        self,
        session: AsyncSession,
        rows: Sequence[_Row],
        producers: Sequence[ModelProducer[Any]],
        counts: Counts | None = None,
    ) -> list[Unsent]:
        """Send rows by every producer, one after the other, so that none sends again what it has sent."""
        records = [row.record for row in rows]
        unsent: list[Unsent] = []
        for producer in producers:
            unsent += await self.sender.send(producer, records, session)
        failed = len({id(each.record) for each in unsent})
        if counts is not None:
            counts.batches += 1
            counts.rows += len(rows)
            counts.batches_with_errors += bool(unsent)
        self.sent_rows += len(rows) - failed
        self.metrics.increment(names.POLLER_ROWS, by=len(rows) - failed, tags=self._tags)
        if unsent:
            self._tell(unsent)
        return unsent

    def _tell(self, unsent: Sequence[Unsent]) -> None:
        kinds = Counter(type(each.error).__name__ for each in unsent)
        first = unsent[0]
        logger.error(
            "poller %s: %d rows could not be sent (%s); the first one's key is %s: %s",
            self.name,
            len({id(each.record) for each in unsent}),
            ", ".join(kinds),
            self._key(first.record),
            described(spoken(first.error)),
        )
        for kind, count in kinds.items():
            self.metrics.increment(names.POLLER_FAILURES, by=count, tags={**self._tags, "error.type": kind})
        try:
            for each in unsent:
                self.events.emit(
                    "deimos.error", {"type": "poller", "poller": self.name, "records": [each.record]}, error=each.error
                )
        except Exception:
            # A subscriber's own error must not stop the poller.
            logger.exception("a subscriber of deimos.error failed")

    # --- rows that could not be sent ---------------------------------------------------------------------------

    async def _remember(
        self, rows: Sequence[_Row], unsent: Sequence[Unsent], producers: Sequence[ModelProducer[Any]]
    ) -> None:
        """Keep rows that could not be sent, before the cursor moves past them, and forget those that were."""
        bad: dict[str, list[Unsent]] = {}
        for each in unsent:
            if not (each.is_refused and self.planned.spec.skip_too_large_messages):
                bad.setdefault(self._key(each.record), []).append(each)
        if len(self.failed.keys() | bad.keys()) > self.options.max_failures:
            raise DatabaseError(
                f"poller {self.name!r}: more than {self.options.max_failures} rows could not be sent (setting "
                "'pollers.max_failed_rows'); it goes on from here when that is mended"
            )
        for key, failures in bad.items():
            before = self.failed.get(key)
            attempts = 1 + (before.attempts if before is not None else 0)
            error = failures[0].error
            by = json.dumps([_label(each.producer) for each in failures])
            delay = min(_FIRST_RETRY * 2 ** (attempts - 1), _LAST_RETRY)
            await self.store.record(
                self.name,
                key,
                by,
                attempts=attempts,
                delay=delay + self.ahead(),
                error_class=class_path(error),
                text=described(spoken(error)),
            )
            self.failed[key] = FailedRow(0, key, by, attempts, is_due=False)
        for key in [self._key(row.record) for row in rows] if self.failed else ():
            if key in self.failed and key not in bad:
                await self._forget(key)

    async def _forget(self, key: str) -> None:
        await self.store.forget(self.name, key)
        self.failed.pop(key, None)

    async def _retry_failed(self, lease: Lease) -> None:
        """Send those that are due again, as they are now, by the producers that have not sent them."""
        groups: dict[str, list[str]] = {}
        for row in self.failed.values():
            if row.is_due:
                groups.setdefault(row.producers, []).append(row.key)
        for labels, keys in groups.items():
            wanted = set(json.loads(labels))
            producers = [producer for producer in self.planned.producers if _label(producer) in wanted]
            for first in range(0, len(keys), self.options.batch_rows):
                some = keys[first : first + self.options.batch_rows]
                lease.check()
                async with AsyncSession(self.engine, expire_on_commit=False) as session:
                    rows = await self._read(session, [self.table.having([cursor.read_key(key) for key in some])])
                    unsent = await self._send(session, rows, producers) if rows else []
                    await self._remember(rows, unsent, producers)
                for gone in set(some) - {self._key(row.record) for row in rows}:
                    await self._forget(gone)

    # --- for tests ---------------------------------------------------------------------------------------------

    async def has_more(self) -> bool:
        """Whether there are rows that a later run will send."""
        spec = self.planned.spec
        if spec.full_table:
            return self.runs == 0
        now = self._shifted(await self.store.bounds()).now
        query = self._query()
        if spec.mode == "state":
            query = query.where(*self._pending())
            if self.left:
                query = query.where(~self.table.having([cursor.read_key(key) for key in self.left]))
        else:
            after = self._behind(self.position)
            query = query.where(self.table.before(now + timedelta(seconds=1)))
            query = query if after is None else query.where(after)
        async with AsyncSession(self.engine) as session:
            return bool((await session.execute(self.table.any_of(query))).scalar_one())


async def _abandon(reading: asyncio.Task[_Page]) -> None:
    reading.cancel()
    await asyncio.wait([reading])
    if not reading.cancelled() and reading.exception() is None:
        await reading.result().session.close()


def _label(producer: ModelProducer[Any]) -> str:
    return f"{type(producer).__name__}:{producer.topic.name}"

"""Batch mode: the messages of one call as rows, and the search for those that cannot be written."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from deimos_async.consuming.on_error import DeadLetter, Retry, Skip
from deimos_async.database.transactions import depart_with
from deimos_async.database.upserts import ensure_begun
from deimos_async.errors import DeimosError
from deimos_async.message import Message
from deimos_async.models.binding import Binding
from deimos_async.models.failures import Failure, batch_error, is_of_a_row, telling_surroundings
from deimos_async.models.mapping import CREATED_AT, UPDATED_AT, Row
from deimos_async.models.members import write_rows
from deimos_async.models.messages import compact, groups, slices

__all__ = ["BatchWriting"]

logger = logging.getLogger("deimos_async.models")

Entry = tuple[Message[Any], Row]
Write = Callable[[Sequence[Entry]], Awaitable[None]]
Messages = Sequence[Message[Any]]

_CONSUMED = "deimos.ar_consumer.consume_batch"
_FAILED = "deimos.batch_consumption.initial_failure"
_VALID = "deimos.batch_consumption.valid_records"
_INVALID = "deimos.batch_consumption.invalid_records"


class BatchWriting:
    """One call with one batch.

    Flow: messages that do not matter are left out; a batch is compacted, or cut into slices in which a row occurs once;
    of each slice first the rows are written, then those that are deleted, in groups. Each write is within a savepoint,
    so that a bad row can be looked for by halving while the good ones stay.

    Source: Deimos 2.6, batch consumption and its fallback; differs by halving instead of writing row by row.

    Args:
        consumer: A `ModelConsumer`.
        binding: What it is bound to.
        session: In the handler's transaction.
    """

    def __init__(self, consumer: Any, binding: Binding, session: AsyncSession) -> None:
        self._consumer = consumer
        self._binding = binding
        self._session = session
        self._connection: AsyncConnection
        self._key_of = consumer.record_key if "record_key" in binding.overridden else binding.table.key_values
        self._failures: list[Failure] = []
        self._now: Row = {}
        self._count = 0

    async def write(self, messages: Messages) -> None:
        """Write the batch, and commit it if some messages have failed. See `ModelConsumer.consume_batch`."""
        began = time.perf_counter()
        binding, session = self._binding, self._session
        self._count = len(messages)
        with telling_surroundings():
            self._connection = await session.connection()
            if self._connection.dialect.name == "sqlite":
                # It takes a savepoint outside of a transaction for the transaction; others begin one with it.
                await ensure_begun(self._connection)
            kept = self._that_matter(messages)
            if self._consumer.compacted:
                await self._write_compacted(compact(kept))
            else:
                for part in slices(kept, self._rows_of(kept)):
                    await self._write_slice(*self._divided(part))
            if self._failures:
                await self._fail()
            if "post_process_batch" in binding.overridden:
                await self._consumer.post_process_batch(kept, session)
        if messages:
            self._tell_after_commit(_CONSUMED, {"topic": messages[0].topic}, time.perf_counter() - began)

    async def _fail(self) -> None:
        """Commit what could be written, and raise."""
        first = self._failures[0][1]
        if self._count == 1 and isinstance(first, DeadLetter | Retry):
            raise first
        if self._count > 1:
            await self._session.commit()
        raise batch_error(self._failures, self._count) from first

    # --- which messages ----------------------------------------------------------------------------------------

    def _that_matter(self, messages: Messages) -> Messages:
        if "process_message" not in self._binding.overridden:
            return messages
        kept = []
        for message in messages:
            try:
                if self._consumer.process_message(message):
                    kept.append(message)
            except Exception as error:
                self._refuse(message, error)
        if len(kept) < len(messages):
            logger.debug("%s: %d messages are not processed", self._binding.name, len(messages) - len(kept))
        return kept

    async def _write_compacted(self, messages: Messages) -> None:
        stored, removed = self._divided(messages)
        parts = slices(messages, self._rows_of(messages)) if stored and removed else []
        if len(parts) <= 1:
            await self._write_slice(stored, removed)
            return
        # Different keys lead to one row, and writes come before deletes.
        written, deleted = set(map(id, stored)), set(map(id, removed))
        for part in parts:
            await self._write_slice(
                [message for message in part if id(message) in written],
                [message for message in part if id(message) in deleted],
            )

    def _rows_of(self, messages: Messages) -> list[Hashable | None]:
        """What tells the rows apart that the messages' keys lead to; None where that is not to be seen from the key."""
        table, plan = self._binding.table, self._binding.plan()
        rows: list[Row] = []
        for message in messages:
            try:
                rows.append({} if message.key is None else {**(self._key_of(message.key) or {})})
            except Exception:
                # It fails again, and is told, when the message's turn comes.
                rows.append({})
        unfit: set[int] = set()
        table.fit(rows, lambda index, error: unfit.add(index))
        keys = [
            {} if index in unfit else {name: row[name] for name in table.key_columns if name in row}
            for index, row in enumerate(rows)
        ]
        try:
            return plan.identities(keys)
        except StatementError:
            found: list[Hashable | None] = []
            for key in keys:
                try:
                    found += plan.identities([key])
                except StatementError:
                    found.append(None)
            return found

    def _divided(self, messages: Messages) -> tuple[Messages, Messages]:
        """Messages whose rows are to be stored, and those whose rows are to be deleted."""
        consumer = self._consumer
        stored: list[Message[Any]] = []
        removed: list[Message[Any]] = []
        if "delete_record" in self._binding.overridden:
            for message in messages:
                try:
                    (removed if consumer.delete_record(message) else stored).append(message)
                except Exception as error:
                    self._refuse(message, error)
        else:
            stored = [message for message in messages if message.payload is not None]
            if len(stored) < len(messages):
                removed = [message for message in messages if message.payload is None]
        return stored, removed

    async def _write_slice(self, stored: Messages, removed: Messages) -> None:
        for group in groups(stored, self._binding.max_db_batch_size):
            await self._upsert(group)
        # A row without a key cannot be found again.
        keyed = [message for message in removed if message.key is not None]
        for group in groups(keyed, self._binding.max_db_batch_size):
            await self._remove(group)

    # --- rows --------------------------------------------------------------------------------------------------

    async def _upsert(self, messages: Messages) -> None:
        if "pre_process" in self._binding.overridden:
            await self._consumer.pre_process(messages)
        entries = self._fitted(self._described(messages), needs_key=False)
        self._stamp(entries)
        entries = self._accepted(entries)
        if not entries:
            return
        stored = await self._isolated(entries, self._write_rows, "upsert_records")
        if stored:
            self._tell_after_commit(_VALID, {"records": [row for _, row in stored], "consumer": type(self._consumer)})

    def _described(self, messages: Messages) -> list[Entry]:
        """The rows that messages speak of, as hooks give them."""
        table = self._binding.table
        is_overridden = "record_attributes" in self._binding.overridden
        attributes_of, pick = self._consumer.record_attributes, table.pick
        key_of, constants = self._key_of, table.constants
        entries: list[Entry] = []
        for message in messages:
            payload, key = message.payload, message.key
            try:
                fields = {} if payload is None else payload
                attributes = attributes_of(fields, key) if is_overridden else pick(fields)
                if attributes is not None:
                    of_key = {} if key is None else key_of(key) or {}
                    entries.append((message, {**constants, **attributes, **of_key}))
            except Exception as error:
                self._refuse(message, error)
        return entries

    def _fitted(self, entries: list[Entry], *, needs_key: bool) -> list[Entry]:
        """Rows with keys of columns and values that these take; those that cannot be are refused."""
        table = self._binding.table
        refused: set[int] = set()

        def refuse(index: int, error: Exception) -> None:
            if index not in refused:
                refused.add(index)
                self._refuse(entries[index][0], error)

        if self._binding.version_column is not None:
            self._set_versions(entries, refuse)
        if self._binding.import_column is not None and not needs_key:
            self._set_import_ids(entries, refuse)
        table.fit([row for _, row in entries], refuse)
        for name in table.key_columns:
            if None not in [row.get(name) for _, row in entries]:
                continue
            for index, (message, row) in enumerate(entries):
                # A message without a key may become a row without one; with a key it would be stored once more each
                # time that it is delivered.
                if row.get(name) is None and (needs_key or message.key is not None):
                    what = "its key has no value" if needs_key else "neither its key nor its payload has a value"
                    refuse(index, ValueError(f"{what} for column {name!r}; override record_key or key_columns"))
        kept = [entry for index, entry in enumerate(entries) if index not in refused] if refused else entries
        return self._fitted_inside(kept) if self._binding.may_relate and not needs_key else kept

    def _fitted_inside(self, entries: list[Entry]) -> list[Entry]:
        """As `_fitted`, for what lies in the rows under names of relationships."""
        associations, refused = self._binding.associations, set[int]()
        rows = [row for _, row in entries]
        if not associations.are_in(rows):
            return entries

        def refuse(index: int, error: Exception) -> None:
            if index not in refused:
                refused.add(index)
                self._refuse(entries[index][0], error)

        associations.fit(rows, refuse)
        return [entry for index, entry in enumerate(entries) if index not in refused]

    def _set_versions(self, entries: Sequence[Entry], refuse: Callable[[int, Exception], None]) -> None:
        binding = self._binding
        name, is_overridden = binding.version_column, "record_version" in binding.overridden
        assert name is not None
        attribute = binding.table.attributes.get(name, name)
        for index, (message, row) in enumerate(entries):
            if not is_overridden and (row.get(name) is not None or row.get(attribute) is not None):
                continue
            row.pop(name, None)  # of two names of a column the last one counts
            try:
                version = row[name] = self._consumer.record_version(message)
            except Exception as error:
                refuse(index, error)
                continue
            if version is None:
                refuse(index, ValueError(f"there is no version for column {name!r}; override record_version"))

    def _set_import_ids(self, entries: Sequence[Entry], refuse: Callable[[int, Exception], None]) -> None:
        name, generate = self._binding.import_column, self._binding.associations.import_ids.generate
        assert name is not None
        attribute = self._binding.table.attributes.get(name, name)
        for index, (_, row) in enumerate(entries):
            row.pop(attribute, None)  # of two names of a column the last one counts
            try:
                row[name] = generate()
            except Exception as error:
                refuse(index, error)

    def _accepted(self, entries: list[Entry]) -> list[Entry]:
        """Those that `should_consume` lets through."""
        if "should_consume" not in self._binding.overridden:
            return entries
        kept: list[Entry] = []
        unwanted: list[Entry] = []
        for message, row in entries:
            try:
                (kept if self._consumer.should_consume(row, message) else unwanted).append((message, row))
            except Exception as error:
                self._refuse(message, error)
        if unwanted and self._binding.events.wants(_INVALID):
            self._binding.events.emit(
                _INVALID, {"records": [row for _, row in unwanted], "consumer": type(self._consumer)}
            )
        return kept

    def _stamp(self, entries: Sequence[Entry]) -> None:
        """Set `created_at` and `updated_at`."""
        table = self._binding.table
        now = self._now = table.now()
        if not now:
            return
        for _, row in entries:
            row.update(table.stamps(row, now) if CREATED_AT in row or UPDATED_AT in row else now)

    async def _write_rows(self, entries: Sequence[Entry]) -> None:
        binding = self._binding
        rows = [row for _, row in entries]
        if binding.may_relate and binding.associations.are_in(rows):
            await binding.associations.write(self._connection, rows, self._now)
        else:
            await write_rows(self._connection, binding.table, binding.plan, rows, self._now)

    async def _remove(self, messages: Messages) -> None:
        if "deleted_query" in self._binding.overridden:
            await self._isolated([(message, {}) for message in messages], self._delete_by_query, "remove_records")
            return
        entries: list[Entry] = []
        for message in messages:
            try:
                entries.append((message, {**(self._key_of(message.key) or {})}))
            except Exception as error:
                self._refuse(message, error)
        entries = self._fitted(entries, needs_key=True)
        if entries:
            await self._isolated(entries, self._delete_rows, "remove_records")

    async def _delete_rows(self, entries: Sequence[Entry]) -> None:
        binding = self._binding
        plan, connection = binding.plan(), self._connection
        keys = [row for _, row in entries]
        version = binding.version_column
        associations = binding.associations
        if version is None:
            await associations.remove_below(connection, keys)
            await plan.delete(connection, keys)
            return
        now = {name: moment for name, moment in binding.table.now().items() if name == UPDATED_AT}
        mark = associations.deletion_mark()
        await plan.delete(connection, keys, versions=[row[version] for row in keys], values={**now, **mark})
        await associations.remove_below_marked(connection, mark)

    async def _delete_by_query(self, entries: Sequence[Entry]) -> None:
        statement = self._consumer.deleted_query([message for message, _ in entries])
        await self._session.execute(statement, execution_options={"synchronize_session": False})

    # --- bad rows ----------------------------------------------------------------------------------------------

    def _refuse(self, message: Message[Any], error: Exception) -> None:
        """Note that a message has failed, for an error that came before any statement."""
        if isinstance(error, Skip):
            logger.info("%s: a message is skipped: %s", self._binding.name, error)
            return
        if isinstance(error, DeimosError) and error.retriable:
            raise error
        # What a hook decides about one message must not decide about all of them.
        if not self._consumer.batch_message_fallback and not isinstance(error, DeadLetter | Retry):
            raise error
        self._failures.append((message, error))
        if not self._binding.commits_part and self._count > 1:
            raise batch_error(self._failures, self._count) from error

    async def _isolated(self, entries: Sequence[Entry], write: Write, operation: str) -> Sequence[Entry]:
        """Write entries, without those that cannot be; returns what was written.

        Raises:
            Exception: What the write raised, where it says nothing about single rows, or nothing is kept of a batch
                that fails.
        """
        if not self._binding.commits_part or self._count == 1:
            try:
                await write(entries)
            except Exception as error:
                if self._count > 1 or not self._consumer.batch_message_fallback or not is_of_a_row(error):
                    raise
                self._failures.append((entries[0][0], error))
                return ()
            return entries
        failure = await self._tried(entries, write)
        if failure is None:
            return entries
        if len(entries) > 1:
            logger.warning(
                "%s: %s of %d messages failed (%s); the bad ones are looked for",
                self._binding.name, operation, len(entries), type(failure).__name__,
            )  # fmt: skip
            self._binding.events.emit(
                _FAILED,
                {
                    "consumer": type(self._consumer),
                    "topic": entries[0][0].topic,
                    "operation": operation,
                    "count": len(entries),
                    "error": failure,
                },
            )
        stored: list[Entry] = []
        waiting = [(entries, failure)]
        while waiting:
            part, failure = waiting.pop()
            if len(part) == 1:
                self._failures.append((part[0][0], failure))
                continue
            middle = len(part) // 2
            failed = []
            for half in (part[:middle], part[middle:]):
                found = await self._tried(half, write)
                if found is None:
                    stored += half
                else:
                    failed.append((half, found))
            waiting += reversed(failed)
        return stored

    async def _tried(self, entries: Sequence[Entry], write: Write) -> Exception | None:
        """Write entries within a savepoint; returns the error if one of them is at fault. Raises others."""
        savepoint = await self._connection.begin_nested()
        try:
            await write(entries)
            await savepoint.commit()
        except Exception as error:
            if is_of_a_row(error):
                await savepoint.rollback()
                return error
            # MySQL has ended a deadlock's victim with its savepoints. To find that out later would hide the deadlock.
            with suppress(DBAPIError):
                await savepoint.rollback()
            raise
        return None

    # --- telling -----------------------------------------------------------------------------------------------

    def _tell_after_commit(self, name: str, payload: dict[str, Any], duration: float | None = None) -> None:
        """Tell an event when the rows are durable; what a subscriber raises then does not take them back."""
        if self._binding.events.wants(name):
            depart_with(self._session, self._tell, [(name, payload, duration)])

    async def _tell(self, told: Sequence[tuple[str, dict[str, Any], float | None]]) -> None:
        for name, payload, duration in told:
            self._binding.events.emit(name, payload, duration=duration)

"""`ModelConsumer`: what consumers derive from that keep a topic as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypeVar

from deimos_async.consuming.consumer import Circumstances, Consumer
from deimos_async.errors import LifecycleError
from deimos_async.message import Message
from deimos_async.models.batches import BatchWriting
from deimos_async.models.binding import Binding, bind
from deimos_async.models.single import write_one
from deimos_async.models.values import EpochUnit

if TYPE_CHECKING:  # only named in annotations
    from sqlalchemy import Executable, MetaData

__all__ = ["ModelConsumer"]

Model = TypeVar("Model", default=Any)


class ModelConsumer(Consumer, Generic[Model]):
    """Keeps a topic as the table of a mapped class: `class SaveWidgets(ModelConsumer[WidgetCopy])`.

    In batch mode (`batch=True`) a batch is written by a few statements and no objects of the model are made; in message
    mode each message is an object that is loaded, changed and saved. A tombstone deletes its row. All that is written
    is in the handler's transaction.

    Hooks are plain methods unless they are `async`. `message` is the whole `Message`; `record` is the dict of values
    that are about to be written, by the names of columns, already as the columns take them. What a hook raises for one
    message of a batch fails that message alone.

    A row's columns are those that the payload speaks of; others keep what is stored, or get their defaults in a new
    row. `created_at` and `updated_at`, where they are columns of date and time, are set here: the one when a row is
    made, the other each time.

    A row that is deleted takes along what belongs to it by relationships whose `cascade` says so.

    Source: Deimos 2.6, ActiveRecordConsumer. Differs: messages without a key are never compacted; columns that the
    payload does not speak of are left alone in batch mode too; deletes go by the key columns, whatever they are;
    hooks get whole messages; of a batch in which some messages fail, these alone go the way of `on_error`.
    """

    compacted: ClassVar[bool] = True
    """Batch mode: whether only the last message of each key in a batch is written. False: all, in order."""
    max_db_batch_size: ClassVar[int | None] = None
    """Batch mode: most rows written at once. None: the whole batch."""
    batch_message_fallback: ClassVar[bool] = True
    """Batch mode: whether the others are stored when some messages cannot be written. False: all of a call or none.

    Either way a batch that failed is tried again by the consumer's `OnError`, at last in halves.
    """
    version_column: ClassVar[str | None] = None
    """Batch mode: column of a version that grows with each change of a row. A message with a lower version than the
    stored row's changes nothing, in whatever order messages come. Needs `deleted_column`, unless nothing is deleted.
    """
    deleted_column: ClassVar[str | None] = None
    """With `version_column`: column that marks deleted rows (a boolean, or a time that may be NULL). They stay, with
    their version and without their values, so that an older message cannot bring them back.
    """
    tombstone_values: ClassVar[Mapping[str, Any]] = {}
    """With `deleted_column`: values of marked rows for columns that may not be NULL and have no default."""
    truncate_columns: ClassVar[bool] = False
    """Whether text is cut to the length of its column (`String(n)`), instead of failing. Keys are never cut."""
    timestamps_from_payload: ClassVar[bool] = False
    """Whether `created_at` and `updated_at` are the payload's, where it has them."""
    bulk_import_id_column: ClassVar[str | None] = "bulk_import_id"
    """Column that gets a new value with each write of a row in batch mode, in every table that has it; None: no column.

    By it rows are found again that have no other key, and those are told from others that `replace_associations`
    removes. It may be text or a UUID, and NULL.
    """
    bulk_import_id_generator: ClassVar[Callable[[], Any] | None] = None
    """Makes values of that column; None: random UUIDs, as text."""
    replace_associations: ClassVar[bool] = True
    """Whether rows that belong to a row are removed if a message gives others under the relationship's name.

    What a message does not name stays, and an empty list removes all. False: rows are only added and changed.
    """
    save_associations_first: ClassVar[bool] = False
    """Whether messages may have rows that a row belongs to (many-to-one), which are written before it."""
    epoch_unit: ClassVar[EpochUnit] = "seconds"
    """What a plain number means in a column of date and time: `"seconds"`, `"milliseconds"`, `"microseconds"`.

    Fields with a logical type (`timestamp-millis` and its like) are times already.
    """

    _bound: Binding | None = None

    # --- hooks -------------------------------------------------------------------------------------------------

    def record_attributes(self, payload: Any, key: Any) -> Mapping[str, Any] | None:
        """Values of columns for a message; None: the message is left out.

        Rows of other tables may lie under names of relationships: a list of dicts, or one dict where there is only one.
        They are written in the same transaction, with their foreign keys; see `replace_associations` and
        `save_associations_first`. They may have such rows in turn.

        Default: the payload's fields that are columns, but for `created_at` and `updated_at` unless
        `timestamps_from_payload`. The payload of a message that is no delete is `{}` if it has none.
        """
        return self._binding.table.pick(payload)

    def record_key(self, key: Any) -> Mapping[str, Any]:
        """Values of columns that a message's key says; in batch mode they go before those of the payload.

        Called for messages with a key, at times twice. Default: the fields of a mapping by their names; a single value
        is that of the field of `Key.field` where the table has such a column, else of the only key column.
        """
        return self._binding.table.key_values(key)

    def key_columns(self) -> Sequence[str]:
        """Columns by which a row is found: the primary key, or others on which a unique index is declared.

        Asked once, at start. No columns at all: each message becomes a row of its own. A hook that takes the argument
        `model` is asked for each class whose rows may lie in others, too; None: they are found by their primary key, or
        by the unique index that has their foreign key, or the only one.
        """
        return self._binding.table.key_columns

    def columns(self) -> Sequence[str]:
        """Columns that a stored row gets from a message, as far as the message speaks of them. Default: all.

        Asked once, at start, and for other classes as `key_columns`. Others are written in new rows only.
        """
        return list(self._binding.table.table.columns.keys())

    def process_message(self, message: Message[Any]) -> bool:
        """Whether the message matters at all. Asked before batches are compacted."""
        return True

    def should_consume(self, record: Mapping[str, Any], message: Message[Any]) -> bool:
        """Whether the record is to be written."""
        return True

    def delete_record(self, message: Message[Any]) -> bool:
        """Whether the message deletes its row. Default: it has no payload."""
        return message.payload is None

    def record_version(self, message: Message[Any]) -> Any:
        """The message's version, where the class has a `version_column`. Default: that field of the payload.

        Override it where tombstones delete rows, as they have no payload: `return message.offset` for one.
        """
        binding = self._binding
        return None if message.payload is None else binding.version_of(message.payload)

    async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
        """Batch mode: before records are made of these messages; it may change payloads in place."""

    def deleted_query(self, messages: Sequence[Message[Any]]) -> Executable:
        """Batch mode: the statement that deletes the rows of these messages; an update serves as well.

        Default: by the key columns. Messages without a key are not among them.
        """
        table = self._binding.table
        return table.delete_statement([table.fit_one(self.record_key(message.key)) for message in messages])

    async def post_process_batch(self, messages: Sequence[Message[Any]], session: AsyncSession) -> None:
        """Batch mode: after all messages that `process_message` let through were written, before the commit.

        Not called if one of them failed.
        """

    async def fetch_record(self, session: AsyncSession, payload: Any, key: Any) -> Model | None:
        """Message mode: the stored object, None if there is none. Default: by the key columns."""
        if key is None:
            return None
        table = self._binding.table
        values = table.fit_one(self.record_key(key))
        if not table.key_columns or table.without_key(values):
            return None
        found = await session.execute(
            select(table.model).where(*(table.column(name) == values[name] for name in table.key_columns))
        )
        record: Model | None = found.unique().scalar_one_or_none()
        return record

    def assign_key(self, record: Model, payload: Any, key: Any) -> None:
        """Message mode: give a new object its key, before its other values. Default: what `record_key` says."""
        if key is not None:
            columns, others, _ = self._binding.table.split(self.record_key(key))
            self._binding.table.assign(record, columns, others)

    async def destroy_record(self, session: AsyncSession, record: Model) -> None:
        """Message mode: delete a stored object. Default: `session.delete`."""
        await session.delete(record)

    # --- consuming ---------------------------------------------------------------------------------------------

    async def consume_message(self, message: Message[Any], session: AsyncSession) -> None:
        """Called with each message in message mode.

        Raises:
            DatabaseError (`retriable`): Not the message's fault; it is to be tried again.
            ValueError: A value does not fit its column.
            SQLAlchemyError: What else the database says about the row.
        """
        await write_one(self, self._binding, message, session)

    async def consume_batch(self, messages: list[Message[Any]], session: AsyncSession) -> None:
        """Called with each batch in batch mode.

        Raises:
            BatchWriteError: Some messages could not be written. With `batch_message_fallback` the others are, and the
                transaction is committed (unless offsets belong to it, as with `delivery="effectively_once"`).
            DatabaseError (`retriable`): Not the messages' fault; nothing is written.
            SQLAlchemyError: Without `batch_message_fallback`, or where the statement itself is wrong (no such table).
        """
        await BatchWriting(self, self._binding, session).write(messages)

    def _prepare(self, circumstances: Circumstances) -> Sequence[MetaData]:
        bind(self, ModelConsumer, circumstances)
        table = self._binding.table
        return tuple({table.table.metadata, *(relation.table.metadata for relation in table.relations.values())})

    @property
    def _binding(self) -> Binding:
        if self._bound is None:
            raise LifecycleError(f"{type(self).__name__} is used before the application has started it")
        return self._bound

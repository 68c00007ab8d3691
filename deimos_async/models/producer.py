"""`ModelProducer`: what producers derive from that send the rows of a mapped class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from sqlalchemy.ext.asyncio import AsyncSession, async_session
from sqlalchemy.orm import InstanceState, Session
from typing_extensions import TypeVar

from deimos_async.errors import ConfigurationError, DatabaseError
from deimos_async.models.classes import hook_problems, model_of
from deimos_async.models.columns import Attributes, ModelColumns, columns_of, state_of
from deimos_async.models.loading import load_missing, records_by_key
from deimos_async.models.mapping import mapped
from deimos_async.models.payloads import Change, Fields, deletion_of, messages_for, names_in
from deimos_async.producing.outlet import Outlets, TopicOutlet
from deimos_async.producing.producer import Producer, surrounding_session

if TYPE_CHECKING:  # only named in annotations
    from sqlalchemy import MetaData, Select

    from deimos_async.message import Delivery

__all__ = ["ModelProducer", "fields_of"]

Model = TypeVar("Model", default=Any)

_HOOKS = {
    "generate_payload": 2,
    "generate_deletion_payload": 1,
    "watched_attributes": 1,
    "poll_query": 1,
    "post_process": 1,
}
"""Hooks, and how many arguments they are called with."""
_MOST_NAMED = 5
"""Missing rows that an error names."""


class ModelProducer(Producer, Generic[Model]):
    """Sends rows of a mapped class: `class WidgetProducer(ModelProducer[WidgetRow])`.

    Rows come from a `KafkaSource` that lists the producer in `kafka_producers`, or are given to `send_events`. A
    payload is made of a row's columns: those that the schema does not have are left out, and values are coerced to the
    fields' types. Naive datetimes are UTC, unless the field is one of local time.

    Hooks are plain methods, but for `post_process`. What a hook raises is raised by whoever sends.

    Source: Deimos 2.6, ActiveRecordProducer. Differs: records given as mappings are loaded by one query, None leaves a
    record out, the model is inherited by subclasses.
    """

    refetch: ClassVar[bool] = True
    """Whether hooks get the record from the database for a row that is given as a mapping with its primary key."""

    # --- hooks -------------------------------------------------------------------------------------------------

    def generate_payload(self, attributes: Attributes, record: Model) -> Any:
        """The payload for a row; None sends nothing. Default: the attributes.

        Args:
            attributes: A dict of its own for each call: the row's values by the names of the model's attributes; of a
                column with another name also by that.
            record: The object; the mapping itself where a row is given as one and not fetched.
        """
        return attributes

    def generate_deletion_payload(self, record: Model) -> Any:
        """The payload when a row is deleted; None sends nothing. Default: the record's `deletion_payload()`."""
        return deletion_of(record, self._outlet().codec.key)

    def watched_attributes(self, record: Model) -> Collection[str]:
        """Attributes of which one must have changed for an update to be sent. Default: the fields of the schema."""
        return fields_of(self._outlet()).keys() or names_in(record)

    def poll_query(self, query: Select[Any]) -> Select[Any]:
        """The query of a poller, to be narrowed, or given options of loading. Default: as it is."""
        return query

    async def post_process(self, records: Sequence[Any]) -> None:
        """Called with all records of a call, those included that made no message, once their messages were taken.

        Records that are sent because they changed are given at the end of the transaction: before the commit where the
        messages are stored with it, after the sending where they leave after it. Not called if that raised.
        """

    # --- sending -----------------------------------------------------------------------------------------------

    async def send_event(
        self, record: Model | Mapping[str, Any], *, session: AsyncSession | None = None, backend: str | None = None
    ) -> Delivery | None:
        """Send one row; see `send_events`. Returns where it lies, with the backend `kafka` outside of a transaction."""
        deliveries = await self.send_events([record], session=session, backend=backend)
        return deliveries[0] if deliveries else None

    async def send_events(
        self,
        records: Iterable[Model | Mapping[str, Any]],
        *,
        session: AsyncSession | None = None,
        backend: str | None = None,
    ) -> list[Delivery] | None:
        """Send rows in order, encoded all before the first is sent.

        Args:
            records: Objects of the model, or mappings of attributes. With `refetch`, records for mappings that have the
                primary key are loaded by one query for 500 of them; the attributes stay those of the mapping.
            session: As for `produce`. It also loads the records; default a session of the application's.
            backend: As for `produce`.

        Returns:
            With the backend `kafka`, outside of a transaction, where the messages lie; else None.

        Raises:
            DatabaseError: Rows to be fetched do not exist.
            TypeError: One record or mapping instead of a list, or something that is neither.
            EncodeError, DeliveryError, ConfigurationError, NotRunningError: As `produce`.
        """
        way = self._way(backend)
        if way is None:
            return None
        outlets, _ = way
        outlet = outlets.topic(self.topic)
        if not outlet.codec.prepared:
            await outlet.codec.prepare()
        given = self._checked(records)
        reading = session if session is not None else surrounding_session(outlets.owner)
        async with AsyncExitStack() as stack:
            messages = await self._messages(given, reading, outlets, outlet, stack)
            deliveries = await self._produce(messages, session, backend)
        await self.post_process(given)
        return deliveries

    async def _send_attributes(
        self, rows: Sequence[Attributes], columns: ModelColumns, *, backend: str | None
    ) -> list[Delivery] | None:
        """As `send_events`, for rows whose attributes are known, all of them, where no hook wants to see records."""
        way = self._way(backend)
        if way is None:
            return None
        outlets, _ = way
        outlet = outlets.topic(self.topic)
        if not outlet.codec.prepared:
            await outlet.codec.prepare()
        changes = [Change("update", row, row, columns) for row in rows]
        messages = messages_for(
            self, fields_of(outlet), changes, truncate=outlets.truncate_columns, topic=self.topic.name
        )
        return await self._produce(messages, None, backend)

    def _checked(self, records: Any) -> list[Any]:
        if isinstance(records, str | bytes | Mapping) or state_of(records) is not None:
            raise TypeError("send_events takes a list of records; send_event takes one")
        found = list(records)
        for index, record in enumerate(found):
            if not isinstance(record, Mapping) and state_of(record) is None:
                raise TypeError(
                    f"record {index}: an object of a mapped class, or a mapping, not {type(record).__name__}"
                )
        return found

    async def _messages(
        self,
        given: Sequence[Any],
        session: AsyncSession | None,
        outlets: Outlets,
        outlet: TopicOutlet,
        stack: AsyncExitStack,
    ) -> list[dict[str, Any]]:
        fields = fields_of(outlet)
        await _complete([state for record in given if (state := state_of(record)) is not None], fields)
        keys = self._keys(given)
        if keys and session is None:
            session = await stack.enter_async_context(_opened(outlets, self))
        make = partial(self._make, given, keys, fields, outlets.truncate_columns)
        holder = session or next((found for record in given if (found := _session_of(state_of(record)))), None)
        # Where there is a session, hooks may load what belongs to a record by just touching it.
        return make(None) if holder is None else await holder.run_sync(make)

    def _make(
        self,
        given: Sequence[Any],
        keys: Mapping[int, tuple[Any, ...]],
        fields: Fields,
        truncate: bool,
        session: Session | None,
    ) -> list[dict[str, Any]]:
        columns = self._columns
        fetched: dict[Any, Any] = {}
        if keys:
            assert session is not None
            assert columns is not None
            fetched = records_by_key(session, columns, keys.values())
            missing = [key for key in keys.values() if key not in fetched]
            if missing:
                raise DatabaseError(self._not_found(columns, missing))
        changes = []
        for index, record in enumerate(given):
            state = state_of(record)
            if state is not None:
                of = columns_of(state.mapper)
                changes.append(Change("update", of.read(state), record, of))
            else:
                found = fetched[keys[index]] if index in keys else record
                changes.append(Change("update", dict(record), found, columns))
        return messages_for(self, fields, changes, truncate=truncate, topic=self.topic.name)

    def _keys(self, given: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
        """Positions of mappings whose records are to be fetched, with the primary keys."""
        columns = self._columns
        if not self.refetch or columns is None:
            return {}
        return {
            index: key
            for index, record in enumerate(given)
            if isinstance(record, Mapping) and (key := columns.key_of(record)) is not None
        }

    def _not_found(self, columns: ModelColumns, missing: Sequence[tuple[Any, ...]]) -> str:
        some = ", ".join(str(key[0] if len(key) == 1 else key) for key in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        return (
            f"{type(self).__name__}: there is no row of {columns.model.__name__} with {', '.join(columns.key)} {some}"
            f"{more}; set refetch = False to send mappings without their records"
        )

    # --- the class ---------------------------------------------------------------------------------------------

    @property
    def _model(self) -> Any:
        return model_of(type(self), ModelProducer)

    @property
    def _columns(self) -> ModelColumns | None:
        mapper = mapped(self._model)
        return None if mapper is None else columns_of(mapper)

    @property
    def _reads_records(self) -> bool:
        """Whether any hook that is called for a row wants more than attributes."""
        cls = type(self)
        return self.refetch and any(
            getattr(cls, name) is not getattr(ModelProducer, name)
            for name in ("generate_payload", "watched_attributes", "post_process")
        )

    @property
    def _takes_attributes(self) -> bool:
        """Whether attributes are all that hooks want of a row that is sent."""
        cls = type(self)
        return all(getattr(cls, name) is getattr(ModelProducer, name) for name in ("generate_payload", "post_process"))

    @property
    def _post_processes(self) -> bool:
        return type(self).post_process is not ModelProducer.post_process

    def _outlet(self) -> TopicOutlet:
        if self._outlets is None:
            raise ConfigurationError(f"{type(self).__name__} belongs to no application yet; use app.producer(...)")
        return self._outlets().topic(self.topic)

    def _problems(self) -> Iterable[str]:
        if self._model is not None and mapped(self._model) is None:
            name = getattr(self._model, "__name__", repr(self._model))
            yield f"{name} is no class that SQLAlchemy maps; ModelProducer[...] takes a declarative model"
        if not isinstance(self.refetch, bool):
            yield f"refetch={self.refetch!r} is not possible; True or False"
        yield from hook_problems(self, ModelProducer, _HOOKS, ("post_process",))

    def _metadata(self) -> Sequence[MetaData]:
        mapper = mapped(self._model)
        return () if mapper is None else (mapper.local_table.metadata,)  # type: ignore[attr-defined]


def fields_of(outlet: TopicOutlet) -> Fields:
    """The fields of a topic's schema by their names; empty for backends without fields."""
    return {field.name: field for field in outlet.codec.schema_fields()}


def _opened(outlets: Outlets, producer: Producer) -> AsyncSession:
    if outlets.open_session is None:
        raise ConfigurationError(
            f"{type(producer).__name__}: records are to be fetched, but there is no database; set 'database.url', give "
            "Deimos(engine=...) or session=, or set refetch = False"
        )
    return outlets.open_session()


def _session_of(state: InstanceState[Any] | None) -> AsyncSession | None:
    session = None if state is None else state.session
    return None if session is None else async_session(session)


async def _complete(states: Sequence[InstanceState[Any]], fields: Fields) -> None:
    """Load what records have not, or not any more, each in its own session; a record without one stays as it is."""
    missing = partial(_missing, fields)
    sessions = {state.session: None for state in states if state.session is not None}
    for session in sessions:
        own = [state for state in states if state.session is session]
        waiting = async_session(session)
        if waiting is None:
            load_missing(session, own, missing)
        else:
            await waiting.run_sync(load_missing, own, missing)


def _missing(fields: Fields, columns: ModelColumns, state: InstanceState[Any]) -> set[str]:
    return columns.missing(state, columns.wanted(fields))

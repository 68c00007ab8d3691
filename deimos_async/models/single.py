"""Message mode: one message as one object of the model."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from deimos_async.message import Message
from deimos_async.models.binding import Binding
from deimos_async.models.failures import telling_surroundings
from deimos_async.models.mapping import CREATED_AT, ModelTable, Row

__all__ = ["write_one"]

logger = logging.getLogger("deimos_async.models")


async def write_one(consumer: Any, binding: Binding, message: Message[Any], session: AsyncSession) -> None:
    """Create, change or delete the object that the message speaks of. See `ModelConsumer.consume_message`.

    `updated_at` is set although nothing else may change.

    Source: Deimos 2.6, message consumption; differs by finding and making objects by the same key columns.
    """
    if not consumer.process_message(message):
        logger.debug("%s: a message is not processed", binding.name)
        return
    table = binding.table
    payload, key = {} if message.payload is None else message.payload, message.key
    with telling_surroundings():
        record = await consumer.fetch_record(session, payload, key)
        if consumer.delete_record(message):
            if record is not None:
                await consumer.destroy_record(session, record)
        else:
            attributes = consumer.record_attributes(payload, key)
            if attributes is None:
                return
            columns, others = table.split(attributes)
            for name in table.managed:
                if name in columns and columns[name] is None:
                    del columns[name]
            if "should_consume" in binding.overridden and not consumer.should_consume({**columns, **others}, message):
                logger.debug("%s: a record is not consumed", binding.name)
                return
            if record is None:
                record = _new(consumer, table, key, columns)
                consumer.assign_key(record, payload, key)
                session.add(record)
            table.assign(record, columns, others)
            _stamp(table, record, columns)
        await session.flush()


def _new(consumer: Any, table: ModelTable, key: Any, columns: Row) -> Any:
    """A new object, not in the session. Dataclasses are made with the values that their constructor takes."""
    model = table.model
    if not dataclasses.is_dataclass(model):
        return model()
    values = {} if key is None else table.fit_one(consumer.record_key(key))
    values |= columns
    taken = {entry.name for entry in dataclasses.fields(model) if entry.init}
    named = {table.attributes.get(name, name): value for name, value in values.items()}
    return model(**{name: value for name, value in named.items() if name in taken})


def _stamp(table: ModelTable, record: Any, columns: Row) -> None:
    for name, moment in table.now().items():
        attribute = table.attributes.get(name, name)
        given = columns.get(name) is not None
        if name == CREATED_AT:
            if getattr(record, attribute) is None:
                setattr(record, attribute, moment)
        elif not (given and table.timestamps_from_payload):
            setattr(record, attribute, moment)

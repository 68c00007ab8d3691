"""Message mode: one message as one object of the model."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from deimos_async.database.upserts.mysql import zero_as_value
from deimos_async.message import Message
from deimos_async.models.binding import Binding
from deimos_async.models.failures import telling_surroundings
from deimos_async.models.mapping import ModelTable
from deimos_async.models.objects import ObjectTree, made, stamp

__all__ = ["write_one"]

logger = logging.getLogger("deimos_async.models")


async def write_one(consumer: Any, binding: Binding, message: Message[Any], session: AsyncSession) -> None:
    """Create, change or delete the object that the message speaks of. See `ModelConsumer.consume_message`.

    `updated_at` is set although nothing else may change.

    Source: Deimos 2.6, message consumption; differs by finding and making objects by the same key columns, and by
    taking objects of other tables too.
    """
    if not consumer.process_message(message):
        logger.debug("%s: a message is not processed", binding.name)
        return
    table, associations = binding.table, binding.associations
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
            columns, others, related = table.split(attributes)
            for name in table.managed:
                if name in columns and columns[name] is None:
                    del columns[name]
            if related:
                associations.fit_one(related)
            if "should_consume" in binding.overridden and not consumer.should_consume(
                {**columns, **others, **related}, message
            ):
                logger.debug("%s: a record is not consumed", binding.name)
                return
            objects = ObjectTree(associations, session)
            owners = await objects.owners(associations.root, related)
            is_new = record is None
            if is_new:
                by_values = key is not None and dataclasses.is_dataclass(table.model)
                of_key = table.fit_one(consumer.record_key(key)) if by_values else {}
                record = made(table, {**of_key, **columns})
                consumer.assign_key(record, payload, key)
            table.assign(record, columns, others)
            stamp(table, record, columns)
            async with await _storing(session, table, record) if is_new else nullcontext():
                if is_new or owners:
                    await objects.put(record, owners)
                await objects.own(associations.root, record, related)
                await session.flush()
        await session.flush()


async def _storing(session: AsyncSession, table: ModelTable, record: Any) -> AbstractAsyncContextManager[None]:
    """What must surround the statement that inserts an object."""
    connection = await session.connection()
    column = table.table.autoincrement_column
    if column is None or connection.dialect.name not in ("mysql", "mariadb"):
        return nullcontext()
    value = getattr(record, table.attributes.get(column.key, column.key), None)
    return zero_as_value(connection) if value == 0 else nullcontext()

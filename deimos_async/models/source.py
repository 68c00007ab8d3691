"""`KafkaSource`: a mapped class whose rows are sent as they change."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import MetaData, event
from sqlalchemy.orm import Session

from deimos_async.errors import ConfigurationError
from deimos_async.models import changes, statements
from deimos_async.models.columns import columns_of, state_of
from deimos_async.models.mapping import mapped
from deimos_async.models.payloads import PrimaryKeyPayload
from deimos_async.producing.producer import Producer

__all__ = ["KafkaConfig", "KafkaSource", "source_tables"]


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Which changes of a `KafkaSource` are sent.

    Attributes:
        create: Objects that are added to a session.
        update: Objects that are changed.
        delete: Objects that are deleted.
        bulk: Rows that `insert()`, `update()` and `delete()` of the class write through a session, whatever the others
            say.
    """

    create: bool = True
    update: bool = True
    delete: bool = True
    bulk: bool = True


class KafkaSource:
    """Rows of the class are sent when they change: `class WidgetRow(Base, KafkaSource)`.

    What a session's flush writes of objects, and what `insert(WidgetRow)`, `update(WidgetRow)` and `delete(WidgetRow)`
    write through a session, goes to every producer that `kafka_producers` returns: as the row is after the flush or the
    statement, defaults of the database included, in the order of the changes. Within one flush deletions come first. It
    leaves with the transaction and never when that, or its savepoint, rolls back; what a hook or the encoding raises is
    raised by the flush or the statement, and nothing of the transaction can be committed then.

    A change of an object is sent to the producers that watch what has really changed (`updated_at` alone is nothing);
    rows of statements where the statement sets what they watch. Rows that an INSERT leaves out for a duplicate are not
    sent, those that it updates instead are.

    Not seen: statements on tables (`insert(WidgetRow.__table__)`), SQL in text, `bulk_save_objects` and its like, and
    what the database does by itself (cascades, triggers).

    Source: Deimos 2.6, KafkaSource. Differs: messages leave with the commit, bulk updates and deletes are sent too,
    keys are those that the database gave.
    """

    kafka_config: ClassVar[KafkaConfig] = KafkaConfig()

    @classmethod
    def kafka_producers(cls) -> Sequence[Producer]:
        """The producers that get the changes. Import their module here: it may import the model."""
        raise ConfigurationError(
            f"{cls.__name__} is a KafkaSource without kafka_producers(); define that class method, which returns a "
            "list of what app.producer(...) or router.producer(...) made"
        )

    def deletion_payload(self) -> Any:
        """What is sent when the row is deleted, unless a producer says otherwise. Default: a tombstone.

        Its key is the primary key (of several columns: a mapping of their attributes), or what the topic has as key:
        the attribute of `Key.field`, for `Key.schema` always a mapping.
        """
        state = state_of(self)
        assert state is not None  # only mapped classes have rows
        key = columns_of(state.mapper).key
        values = {name: getattr(self, name) for name in key}
        return PrimaryKeyPayload(payload_key=values if len(key) > 1 else values[key[0]])


def source_tables(producers: Collection[Producer]) -> list[MetaData]:
    """MetaData of the mapped sources whose changes go to one of these producers."""
    found: list[MetaData] = []
    waiting: list[type[KafkaSource]] = KafkaSource.__subclasses__()
    while waiting:
        source = waiting.pop()
        waiting.extend(source.__subclasses__())
        mapper = mapped(source)
        if mapper is None or source.kafka_producers.__func__ is KafkaSource.kafka_producers.__func__:  # type: ignore[attr-defined]
            continue  # a mixin of the user's, or a class that says so when its first row changes
        if any(producer is known for producer in source.kafka_producers() for known in producers):
            found.append(mapper.local_table.metadata)  # type: ignore[attr-defined]
    return found


changes.listen(KafkaSource)
event.listen(Session, "do_orm_execute", statements.listener(KafkaSource))

"""Message mode: objects of models, with those of other tables that belong to them or that they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.collections import collection_adapter

from deimos_async.models.associations import Associations
from deimos_async.models.mapping import CREATED_AT, ModelTable, Row
from deimos_async.models.members import Member
from deimos_async.models.relations import Relation

__all__ = ["ObjectTree", "made", "stamp"]

Related = Mapping[str, Any]
"""Rows under names of relationships, as `Associations.fit` makes them."""


def made(table: ModelTable, values: Mapping[str, Any]) -> Any:
    """A new object, not in the session. Dataclasses are made with the values that their constructor takes.

    Args:
        values: By keys of columns; others than dataclasses are made without.
    """
    model = table.model
    if not dataclasses.is_dataclass(model):
        return model()
    taken = {entry.name for entry in dataclasses.fields(model) if entry.init}
    named = {table.attributes.get(name, name): value for name, value in values.items()}
    return model(**{name: value for name, value in named.items() if name in taken})


def stamp(table: ModelTable, record: Any, columns: Row) -> None:
    """Set an object's `created_at`, if it has none, and `updated_at`, unless it is the payload's."""
    for name, moment in table.now().items():
        attribute = table.attributes.get(name, name)
        given = columns.get(name) is not None
        if name == CREATED_AT:
            if getattr(record, attribute) is None:
                setattr(record, attribute, moment)
        elif not (given and table.timestamps_from_payload):
            setattr(record, attribute, moment)


class ObjectTree:
    """Makes, changes and deletes what lies in a message's row, by way of the session's unit of work.

    Objects that are stored are found as in batch mode. They are attached by relationships, so that the flush fills in
    foreign keys. An object comes into the session when all that it belongs to is set: nothing flushes half of one.
    """

    def __init__(self, associations: Associations, session: AsyncSession) -> None:
        self._associations = associations
        self._session = session

    async def owners(self, member: Member, related: Related) -> dict[str, Any]:
        """Objects that the row belongs to, by names of relationships; None: to none.

        They are in the session, with what lies in them.
        """
        found: dict[str, Any] = {}
        for name, value in related.items():
            relation = member.table.relations[name]
            if relation.owns:
                continue
            found[name] = None
            if value is not None:
                target = self._associations.member_of(relation.mapper)
                inner = _related(target, value)
                values = await self.owners(target, inner)
                stored = await self._stored(target, value, ())
                found[name] = record = self._assigned(target, stored, value, {})
                await self.put(record, values)
                await self.own(target, record, inner)
        return found

    async def put(self, record: Any, owners: Mapping[str, Any], above: tuple[Any, Relation] | None = None) -> None:
        """Bring an object into the session, attached to its owners and to the object that it lies in."""

        def attach(_: Any) -> None:
            for name, owner in owners.items():
                setattr(record, name, owner)
            if above is not None:
                _attach(*above, record)

        if owners or above is not None:
            # Attributes may have to be loaded to be set; a flush meanwhile would meet an object that is half attached.
            with self._session.no_autoflush:
                await self._session.run_sync(attach)
        self._session.add(record)

    async def own(self, member: Member, record: Any, related: Related) -> None:
        """Make what lies in the row belong to its object, which is in the session."""
        for name, value in related.items():
            relation = member.table.relations[name]
            if relation.owns:
                given = value if relation.is_list else [] if value is None else [value]
                await self._own(member, record, relation, given)

    async def _own(self, member: Member, record: Any, relation: Relation, given: Sequence[Row]) -> None:
        target = self._associations.member_of(relation.mapper)
        values = [_value(member.table, record, name) for name in relation.here]
        filled = {} if None in values else dict(zip(relation.there, values, strict=True))
        there = await self._belonging(target, record, relation, filled)
        chosen: list[tuple[Row, Any]] = []
        for row in given:
            whole = {**target.columns_of(row), **filled}
            found = _match(target, relation, whole, there)
            if found is None:
                found = await self._stored(target, whole, relation.there)
            chosen.append((row, found))
        if self._associations.replaces:
            await self._remove(record, relation, [old for old in there if not any(old is new for _, new in chosen)])
        for row, found in chosen:
            inner = _related(target, row)
            owners = await self.owners(target, inner)
            child = self._assigned(target, found, row, filled)
            await self.put(child, owners, (record, relation))
            await self.own(target, child, inner)

    async def _belonging(self, target: Member, record: Any, relation: Relation, filled: Row) -> list[Any]:
        """Stored objects that belong to the record; its relationship is then loaded."""
        found: list[Any] = []
        if inspect(record).persistent and filled:
            conditions = [target.table.column(name) == value for name, value in filled.items()]
            statement = select(target.table.model).where(*conditions)
            found = list((await self._session.execute(statement)).unique().scalars())
        if _is_loadable(record, relation):
            set_committed_value(record, relation.name, found if relation.is_list else next(iter(found), None))
        return found

    async def _stored(self, target: Member, row: Row, foreign_key: tuple[str, ...]) -> Any:
        """The stored object that a row speaks of; None: there is none, or it has no key."""
        if not target.has_key(row, foreign_key):
            return None
        conditions = [target.table.column(name) == row[name] for name in target.key_of(row, foreign_key)]
        found = await self._session.execute(select(target.table.model).where(*conditions))
        return found.unique().scalar_one_or_none()

    async def _remove(self, record: Any, relation: Relation, removed: Sequence[Any]) -> None:
        if not removed:
            return

        def detach(_: Any) -> None:
            for found in removed:
                _detach(record, relation, found)

        # What a deleted object takes along may have to be loaded; a flush meanwhile would delete it as an orphan.
        with self._session.no_autoflush:
            await self._session.run_sync(detach)
            for found in removed:
                await self._session.delete(found)
        # A flush inserts first, and a new row may take the place of a removed one in a unique index.
        await self._session.flush()

    def _assigned(self, target: Member, record: Any, row: Row, filled: Row) -> Any:
        """The object, or a new one, with the row's columns."""
        table = target.table
        columns = target.columns_of(row)
        for name in table.managed:
            if name in columns and columns[name] is None:
                del columns[name]
        if record is None:
            record = made(table, {**columns, **filled})
        table.assign(record, columns, {})
        stamp(table, record, columns)
        return record


def _match(target: Member, relation: Relation, row: Row, there: Sequence[Any]) -> Any:
    """Which of the stored objects a row speaks of; None: none of them."""
    if target.has_key(row, relation.there):
        key = target.key_of(row, relation.there)
        wanted = [row[name] for name in key]
        return next((old for old in there if [_value(target.table, old, name) for name in key] == wanted), None)
    return None if relation.is_list else next(iter(there), None)


def _related(member: Member, row: Row) -> Row:
    return {name: value for name, value in row.items() if name in member.table.relations}


def _value(table: ModelTable, record: Any, name: str) -> Any:
    return getattr(record, table.attributes.get(name, name))


def _is_loadable(record: Any, relation: Relation) -> bool:
    """Whether the attribute holds objects; those of `write_only` and `dynamic` relationships are statements."""
    return inspect(record).mapper.relationships[relation.name].lazy not in ("write_only", "dynamic")


def _attach(record: Any, relation: Relation, found: Any) -> None:
    if not relation.is_list:
        setattr(record, relation.name, found)
    elif not _is_loadable(record, relation):
        getattr(record, relation.name).add(found)
    else:
        members = collection_adapter(getattr(record, relation.name))
        if not any(found is other for other in members):
            members.append_with_event(found)


def _detach(record: Any, relation: Relation, found: Any) -> None:
    if not relation.is_list:
        setattr(record, relation.name, None)
    elif not _is_loadable(record, relation):
        getattr(record, relation.name).remove(found)
    else:
        collection_adapter(getattr(record, relation.name)).remove_with_event(found)

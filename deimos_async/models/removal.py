"""Rows that are removed, with what belongs to them as far as relationships say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapper

from deimos_async.database.upserts.rows import in_order
from deimos_async.models.mapping import ModelTable
from deimos_async.models.members import Member
from deimos_async.models.messages import groups
from deimos_async.models.relations import Relation

__all__ = ["MOST_KEYS", "MemberOf", "Values", "among", "belonging", "remove", "remove_below"]

MOST_KEYS = 500
"""Keys in one statement: MariaDB turns lists of a thousand into a join, which locks rows in another order."""

Values = tuple[Any, ...]
MemberOf = Callable[[Mapper[Any]], Member]
Below = frozenset[tuple[Relation, Values]]


def among(table: ModelTable, names: Sequence[str], values: Sequence[Values]) -> ColumnElement[bool]:
    """Whether columns have one of these combinations of values."""
    columns = [table.column(name) for name in names]
    if len(columns) == 1:
        return columns[0].in_([value[0] for value in values])
    return tuple_(*columns).in_(values)


def belonging(member: Member, relation: Relation, owners: Sequence[Values]) -> list[ColumnElement[bool]]:
    """What is true of the rows that belong to these owners by a relationship to the member."""
    conditions = [among(member.table, relation.there, owners)]
    if (of_class := member.table.of_class()) is not None:
        conditions.append(of_class)
    return conditions


async def remove(
    connection: AsyncConnection,
    member_of: MemberOf,
    member: Member,
    conditions: Sequence[ColumnElement[bool]],
    below: Below = frozenset(),
) -> None:
    """Delete rows of which the conditions are true, after what belongs to them. `below` as for `remove_below`."""
    await remove_below(connection, member_of, member, conditions, below)
    await connection.execute(delete(member.table.table).where(*conditions))


async def remove_below(
    connection: AsyncConnection,
    member_of: MemberOf,
    member: Member,
    conditions: Sequence[ColumnElement[bool]],
    below: Below = frozenset(),
) -> None:
    """Delete what belongs to the rows of which the conditions are true, where the relationship's cascade says "delete".

    With `passive_deletes` that is the database's part, but SQLite may not check foreign keys. The rows themselves are
    locked first, as writers do it.

    Args:
        below: Owners whose rows are being removed already: a row may belong to itself, or to one that belongs to it.

    Source: the meaning of `cascade` in SQLAlchemy's unit of work.
    """
    for relation in member.table.relations.values():
        if not relation.cascades or (relation.is_passive and connection.dialect.name != "sqlite"):
            continue
        here = [member.table.column(name) for name in relation.here]
        found = await connection.execute(select(*here).where(*conditions).with_for_update())
        owners = {owner for owner in map(tuple, found) if None not in owner and (relation, owner) not in below}
        target = member_of(relation.mapper)
        for some in groups(in_order(owners), MOST_KEYS):
            inner = below | {(relation, owner) for owner in some}
            await remove(connection, member_of, target, belonging(target, relation, some), inner)

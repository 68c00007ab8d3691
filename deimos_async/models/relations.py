"""Relationships of a model as bulk writes see them: which columns of which two tables are equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BinaryExpression, BooleanClauseList, Column, Table
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty
from sqlalchemy.sql import operators

__all__ = ["Relation", "relations_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A relationship under whose name rows of another table may lie.

    Attributes:
        name: The relationship's.
        mapper: Of the class that it leads to.
        table: Of that class.
        is_list: Whether a row may have several of them.
        owns: Whether the foreign key is in the other table (one-to-many, one-to-one), not in this one (many-to-one).
        here: Keys of the columns in this table.
        there: Keys of the columns in the other table that are equal to them, in the same order.
        cascades: Whether rows in the other table are deleted with the row that they belong to.
        is_passive: Whether that is left to the database.
    """

    name: str
    mapper: Mapper[Any]
    table: Any
    is_list: bool
    owns: bool
    here: tuple[str, ...]
    there: tuple[str, ...]
    cascades: bool
    is_passive: bool


def relations_of(mapper: Mapper[Any]) -> tuple[dict[str, Relation], dict[str, str]]:
    """Relationships of a class of one table, by name: those that can be written, and why others cannot."""
    usable: dict[str, Relation] = {}
    unusable: dict[str, str] = {}
    for name, found in mapper.relationships.items():
        problem = _problem(mapper, found)
        if problem is not None:
            unusable[name] = f"relationship {mapper.class_.__name__}.{name} {problem}"
            continue
        usable[name] = Relation(
            name,
            found.mapper,
            found.mapper.local_table,
            is_list=bool(found.uselist),
            owns=found.direction is RelationshipDirection.ONETOMANY,
            here=tuple(str(here.key) for here, _ in found.local_remote_pairs),
            there=tuple(str(there.key) for _, there in found.local_remote_pairs),
            cascades=found.direction is RelationshipDirection.ONETOMANY and found.cascade.delete,
            is_passive=bool(found.passive_deletes),
        )
    return usable, unusable


def _problem(mapper: Mapper[Any], relationship: RelationshipProperty[Any]) -> str | None:
    """Why rows cannot be written through a relationship; None: they can."""
    if relationship.viewonly:
        return "is viewonly; give rows under the one that writes its foreign key"
    if relationship.secondary is not None:
        table = getattr(relationship.secondary, "name", "another table")
        return (
            f"is many-to-many, through {table!r}; map that table as a class, and give its rows under a one-to-many "
            "relationship to it"
        )
    target = relationship.mapper
    if not isinstance(target.local_table, Table) or len(target.tables) != 1:
        return f"leads to {target.class_.__name__}, which is not mapped to one table"
    pairs = relationship.local_remote_pairs or ()
    if not _is_equality(relationship.primaryjoin, len(pairs)) or not all(
        here.table is mapper.local_table and there.table is target.local_table for here, there in pairs
    ):
        return "joins by more than equal columns, so its rows cannot be told from others; write them otherwise"
    return None


def _is_equality(join: Any, count: int) -> bool:
    """Whether the condition is `count` pairs of columns that are equal, and nothing else."""
    parts = list(join.clauses) if isinstance(join, BooleanClauseList) and join.operator is operators.and_ else [join]
    return len(parts) == count and all(
        isinstance(part, BinaryExpression)
        and part.operator is operators.eq
        and isinstance(part.left, Column)
        and isinstance(part.right, Column)
        for part in parts
    )

"""The columns of a mapped class as producers see them: names, keys, limits, and the values of a record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Enum, String, Text
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = ["Attributes", "ModelColumns", "columns_of", "is_expression", "state_of"]

Attributes = dict[str, Any]
"""Values of a row by the names of the model's attributes; a column of another name is there under both."""


class ModelColumns:
    """What is known of a mapper. Made by `columns_of`.

    Attributes:
        names: Attributes that are columns, in the model's order.
        key: Those of the primary key, in its order.
        deferred: Those that are loaded only when they are asked for.
        aliases: Names of columns that are no attributes, with the attributes.
    """

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self.model = mapper.class_
        found = {
            attribute.key: attribute.columns[0]
            for attribute in mapper.column_attrs
            if isinstance(attribute.columns[0], Column)
        }
        self.names = tuple(found)
        self.key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self.deferred = frozenset(name for name in found if mapper.column_attrs[name].deferred)
        self.aliases: Mapping[str, str] = {
            column.name: name for name, column in found.items() if column.name not in found
        }
        self._without_default = frozenset(
            name
            for name, column in found.items()
            if column.default is None and column.server_default is None and column not in mapper.primary_key
        )
        self._every = frozenset({*self.names, *self.aliases})
        self._types = {name: column.type for name, column in found.items()}
        self._limits = {name: limit for name, type_ in self._types.items() if (limit := _limit(type_)) is not None}

    @property
    def every(self) -> frozenset[str]:
        """All names of columns, those of attributes and others."""
        return self._every

    def wanted(self, fields: Collection[str]) -> tuple[str, ...]:
        """Attributes to be loaded where a schema has these fields: all but deferred ones that it does not name."""
        if not self.deferred:
            return self.names
        asked = {self.aliases.get(field, field) for field in fields}
        return tuple(name for name in self.names if name not in self.deferred or name in asked)

    def missing(self, state: InstanceState[Any], names: Iterable[str], *, is_new: bool = False) -> set[str]:
        """Which of these attributes must be loaded. In a new row, what was not set is NULL unless it has a default."""
        found = {name for name in names if name not in state.dict}
        return found - self._null(state) if found and is_new else found

    def read(self, state: InstanceState[Any], *, is_new: bool = False) -> Attributes:
        """The values that are known."""
        values = state.dict
        found = {name: values[name] for name in self.names if name in values}
        if is_new and len(found) < len(self.names):
            found |= dict.fromkeys(self._null(state))
        return self.with_aliases(found)

    def _null(self, state: InstanceState[Any]) -> frozenset[str]:
        return self._without_default - state.dict.keys() - state.expired_attributes

    def with_aliases(self, attributes: Attributes) -> Attributes:
        """The values, under the other names of their columns as well; changes the argument."""
        for alias, name in self.aliases.items():
            if name in attributes:
                attributes[alias] = attributes[name]
        return attributes

    def names_of(self, names: Iterable[str]) -> set[str]:
        """Every name of the attributes that are named."""
        found = {self.aliases.get(name, name) for name in names}
        return found | {alias for alias, name in self.aliases.items() if name in found}

    def key_of(self, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The primary key that a mapping has, by names of attributes or columns; None if part of it is missing."""
        by_attribute = {self.aliases.get(name, name): value for name, value in values.items() if value is not None}
        found = tuple(by_attribute[name] for name in self.key if name in by_attribute)
        return found if len(found) == len(self.key) else None

    def differs(self, name: str, old: Any, new: Any) -> bool:
        """Whether two values of an attribute are different for its type."""
        return not self._types[name].compare_values(old, new)

    def cut(self, attributes: Attributes) -> Attributes:
        """The values with text cut to the length of its column (`String(n)`); columns without one are left alone."""
        longer = {
            name: value[:limit]
            for name, limit in self._limits.items()
            if isinstance(value := attributes.get(name), str) and len(value) > limit
        }
        return self.with_aliases(attributes | longer) if longer else attributes


def _limit(type_: TypeEngine[Any]) -> int | None:
    if isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
    if not isinstance(type_, String) or isinstance(type_, Text | Enum):
        return None
    return type_.length


@lru_cache(maxsize=1024)
def columns_of(mapper: Mapper[Any]) -> ModelColumns:
    """The columns of a mapper, found once."""
    return ModelColumns(mapper)


def state_of(record: Any) -> InstanceState[Any] | None:
    """SQLAlchemy's state of an object of a mapped class; None for anything else."""
    try:
        found = instance_state(record)  # as `inspect` does, without looking at every class the object's derives from
    except AttributeError:
        return None
    return found if isinstance(found, InstanceState) else None


def is_expression(value: Any) -> bool:
    """Whether the value of an attribute is SQL, which the database will make a value of."""
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")
